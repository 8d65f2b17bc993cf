//! What the HTTP requests of service ports came to. Labels are those of the service port and the class of the status:
//! no path, no method and no client, of which there is no end.

use super::super::encode::{Family, counter, histogram};
use super::super::figures::Scrape;
use super::traffic::{BACKEND, SERVICE, backends, services};
use crate::obs::api::HttpReport;

const BY_CLASS: &[&str] = &["namespace", "service", "port", "protocol", "class"];
const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The service ports at which HTTP was spoken.
fn spoken(s: &Scrape) -> impl Iterator<Item = ([&str; 4], &HttpReport)> {
    services(s).filter_map(|(labels, service)| Some((labels, service.http.as_ref()?)))
}

pub(super) const HTTP: &[Family] = &[
    counter("service_http_requests", BY_CLASS, "HTTP requests answered, by class of status", |s, out| {
        spoken(s).try_for_each(|([namespace, service, port, protocol], http)| {
            let mut classes = CLASSES.iter().zip(http.requests_by_class);
            classes
                .try_for_each(|(class, count)| out.put(&[namespace, service, port, protocol, class], count))
        })
    }),
    counter(
        "service_http_unanswered",
        SERVICE,
        "HTTP requests whose client went away before there was an answer",
        |s, out| spoken(s).try_for_each(|(labels, http)| out.put(&labels, http.unanswered_total)),
    ),
    counter(
        "service_http_retries",
        SERVICE,
        "HTTP requests sent again after a byte of them had been sent",
        |s, out| spoken(s).try_for_each(|(labels, http)| out.put(&labels, http.retries_total)),
    ),
    counter(
        "service_http_limited",
        SERVICE,
        "HTTP requests turned away because the DestinationRule's connectionPool.http allows no more",
        |s, out| spoken(s).try_for_each(|(labels, http)| out.put(&labels, http.limited_total)),
    ),
    counter(
        "service_http_other_connections",
        SERVICE,
        "Connections to an HTTP port that spoke something else and were relayed",
        |s, out| spoken(s).try_for_each(|(labels, http)| out.put(&labels, http.not_http_total)),
    ),
    histogram(
        "service_http_request_seconds",
        SERVICE,
        "Time from an HTTP request's head to its answer's",
        |s, out| {
            spoken(s).try_for_each(|(labels, http)| {
                let bounds = http.latency_bounds.iter().copied().chain([f64::INFINITY]);
                let buckets: Vec<_> = bounds.zip(http.latency_counts.iter().copied()).collect();
                out.histogram_of(&labels, http.latency_sum, &buckets)
            })
        },
    ),
    counter("backend_http_requests", BACKEND, "HTTP requests sent to a backend", |s, out| {
        backends(s).try_for_each(|(labels, backend)| out.put(&labels, backend.requests_total))
    }),
];
