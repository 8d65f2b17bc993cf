//! What the HTTP requests of service ports came to. Labels are those of the service port and the class of the status:
//! no path, no method and no client, of which there is no end.

use std::fmt::Error;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::MetricType;

use crate::obs::api::{HttpReport, ServiceReport};

use super::{Families, ServiceLabels, service_labels};

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

pub(super) fn requests(out: &mut Families<'_>, services: &[ServiceReport]) -> Result<(), Error> {
    let spoken = || services.iter().filter_map(|s| Some((s, s.http.as_ref()?)));
    let by_class = spoken().flat_map(|(service, http)| {
        CLASSES.iter().zip(http.requests_by_class).map(|(class, count)| {
            let [a, b, c, d] = service_labels(service);
            ([a, b, c, d, ("class", *class)], count)
        })
    });
    out.counters("service_http_requests", "HTTP requests answered, by class of status", by_class)?;
    let each =
        |value: fn(&HttpReport) -> u64| spoken().map(move |(s, http)| (service_labels(s), value(http)));
    let left = "HTTP requests whose client went away before there was an answer";
    out.counters("service_http_unanswered", left, each(|http| http.unanswered_total))?;
    let again = "HTTP requests sent again after a byte of them had been sent";
    out.counters("service_http_retries", again, each(|http| http.retries_total))?;
    let other = "Connections to an HTTP port that spoke something else and were relayed";
    out.counters("service_http_other_connections", other, each(|http| http.not_http_total))?;
    out.histograms(
        "service_http_request_seconds",
        "Time from an HTTP request's head to its answer's",
        spoken().map(|(s, http)| (service_labels(s), http)),
    )
}

impl Families<'_> {
    fn histograms<'a>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (ServiceLabels<'a>, &'a HttpReport)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, http) in series {
            let bounds = http.latency_bounds.iter().copied().chain([f64::INFINITY]);
            let buckets: Vec<_> = bounds.zip(http.latency_counts.iter().copied()).collect();
            let count = http.latency_counts.iter().sum();
            encode(&mut family, &labels, http.latency_sum, count, &buckets)?;
        }
        Ok(())
    }
}

fn encode(
    family: &mut prometheus_client::encoding::MetricEncoder<'_>,
    labels: &impl EncodeLabelSet,
    sum: f64,
    count: u64,
    buckets: &[(f64, u64)],
) -> Result<(), Error> {
    family.encode_family(labels)?.encode_histogram::<[(&str, &str); 0]>(sum, count, buckets, None)
}
