//! Metrics in OpenMetrics text. Everything is read from the status at the moment of the scrape, so that the data plane
//! counts once and nothing is kept twice.

mod http;

use std::fmt::{Debug, Error, Formatter};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::exemplar::Exemplar;
use prometheus_client::registry::Registry;

use super::api::{BackendReport, ServiceReport, Status};
use super::process::Process;
use super::{COMMIT, VERSION};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every state of a source, so that one series each can say which one holds.
const SOURCE_STATES: [&str; 4] = ["synced", "cached", "stale", "error"];

/// Where the numbers come from.
pub type StatusFn = Arc<dyn Fn() -> Status + Send + Sync>;

/// The registry of all metrics.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Metrics that read `status` at each scrape.
    pub fn new(status: StatusFn) -> Self {
        let mut registry = Registry::with_prefix("edgesplice");
        registry.register_collector(Box::new(StatusCollector(status)));
        registry.register_collector(Box::new(ProcessCollector));
        Self(registry)
    }

    /// One scrape.
    pub fn render(&self) -> Result<String, Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

struct StatusCollector(StatusFn);

impl Debug for StatusCollector {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("StatusCollector")
    }
}

type ServiceLabels<'a> = [(&'static str, &'a str); 4];
type BackendLabels<'a> = [(&'static str, &'a str); 5];

impl Collector for StatusCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let status = (self.0)();
        let mut out = Families(encoder);
        agent(&mut out, &status)?;
        service_ports(&mut out, &status.services)?;
        http::requests(&mut out, &status.services)?;
        backends(&mut out, &status.services)
    }
}

fn agent(out: &mut Families<'_>, status: &Status) -> Result<(), Error> {
    out.info("build", "What was built", &[("version", VERSION), ("commit", COMMIT)])?;
    out.gauge("ready", "Whether every readiness condition holds", &u64::from(status.ready))?;
    let conditions = status.conditions.iter().map(|c| ([("condition", c.name.as_str())], u64::from(c.ok)));
    out.gauges("condition", "Whether a readiness condition holds", conditions)?;
    let source = &status.source;
    let age = "Seconds since the data in force was last known to be current";
    out.gauge("source_age_seconds", age, &source.age_seconds)?;
    let state = |s| ([("kind", source.kind.as_str()), ("state", s)], u64::from(source.state == s));
    out.gauges(
        "source_state",
        "1 for the state that the source is in",
        SOURCE_STATES.into_iter().map(state),
    )?;
    let proxy = &status.proxy;
    out.gauge(
        "proxy_connections_active",
        "Connections of all service ports open now",
        &proxy.active_connections,
    )?;
    out.counter("proxy_connections_accepted", "Connections accepted", &proxy.accepted_total)?;
    out.counter("proxy_connections_refused", "Connections that had nowhere to go", &proxy.refused_total)?;
    out.counter("proxy_accept_pauses", "Times that accepting paused at a limit", &proxy.accept_pauses_total)?;
    out.gauge("udp_flows", "UDP flows of all service ports now", &proxy.udp_flows)?;
    out.counter("udp_datagrams_dropped", "Datagrams passed on to nobody", &proxy.udp_dropped_total)?;
    let unreachable = "UDP flows whose backend was reported unreachable";
    out.counter("udp_flows_unreachable", unreachable, &proxy.udp_unreachable_total)?;
    if let Some(dns) = &status.dns {
        out.counter("dns_cluster_queries", "Queries for the cluster's names", &dns.cluster_queries_total)?;
        out.counter("dns_foreign_queries", "Queries for other names", &dns.foreign_queries_total)?;
        out.counter("dns_refused", "DNS packets refused or dropped", &dns.refused_total)?;
        let asked = "Questions sent to servers for other names";
        out.counter("dns_upstream_questions", asked, &dns.upstream_questions_total)?;
        out.counter("dns_upstream_failures", "Questions no server answered", &dns.upstream_failures_total)?;
        out.counter("dns_cached_answers", "Answers given from memory", &dns.cached_answers_total)?;
        out.counter("dns_stale_answers", "Answers given beyond their time", &dns.stale_answers_total)?;
    }
    out.counter("rules_repairs", "Times that changed rules were repaired", &status.rules.repairs_total)?;
    let good = u64::from(status.rules.last_error.is_empty());
    out.gauge("rules_in_force", "Whether the last pass over the rules was good", &good)?;
    out.gauge("warnings", "Warnings that status shows", &status.warnings.len())
}

fn service_labels(s: &ServiceReport) -> ServiceLabels<'_> {
    [
        ("namespace", &s.namespace),
        ("service", &s.name),
        ("port", &s.port.name),
        ("protocol", &s.port.protocol),
    ]
}

fn service_ports(out: &mut Families<'_>, services: &[ServiceReport]) -> Result<(), Error> {
    let each = |value: fn(&ServiceReport) -> u64| services.iter().map(move |s| (service_labels(s), value(s)));
    let ready = |s: &ServiceReport| s.backends.iter().filter(|b| b.state == "ready").count() as u64;
    out.gauges(
        "service_connections_active",
        "Connections of a service port open now",
        each(|s| s.active_connections),
    )?;
    out.counters("service_connections", "Connections of a service port", each(|s| s.connections_total))?;
    out.counters("service_bytes_in", "Bytes from clients to backends", each(|s| s.bytes_in_total))?;
    out.counters("service_bytes_out", "Bytes from backends to clients", each(|s| s.bytes_out_total))?;
    out.gauges("service_backends_ready", "Backends of a service port that may be picked", each(ready))
}

fn backends(out: &mut Families<'_>, services: &[ServiceReport]) -> Result<(), Error> {
    fn labels<'a>(s: &'a ServiceReport, b: &'a BackendReport) -> BackendLabels<'a> {
        [
            ("namespace", &s.namespace),
            ("service", &s.name),
            ("port", &s.port.name),
            ("protocol", &s.port.protocol),
            ("backend", &b.address),
        ]
    }
    let each = |value: fn(&BackendReport) -> u64| {
        services.iter().flat_map(move |s| s.backends.iter().map(move |b| (labels(s, b), value(b))))
    };
    let ejected = |b: &BackendReport| u64::from(b.state == "ejected");
    out.gauges(
        "backend_connections_active",
        "Connections to a backend open now",
        each(|b| b.active_connections),
    )?;
    out.counters("backend_connections", "Connections to a backend", each(|b| b.connections_total))?;
    out.counters("backend_failures", "Failed dials of a backend", each(|b| b.failures_total))?;
    out.counters("backend_http_requests", "HTTP requests sent to a backend", each(|b| b.requests_total))?;
    out.gauges("backend_ejected", "Whether a backend is out after failures", each(ejected))
}

#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    /// Where a number cannot be read, its series is left out: a wrong zero would be believed.
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let process = Process::read();
        let mut out = Families(encoder);
        if let Some(cpu) = process.cpu_seconds {
            out.counter("process_cpu_seconds", "Processor time used", &cpu)?;
        }
        if let Some(rss) = process.resident_bytes {
            out.gauge("process_resident_memory_bytes", "Resident memory", &rss)?;
        }
        if let Some(open) = process.open_fds {
            out.gauge("process_open_fds", "Open descriptors", &open)?;
        }
        if let Some(most) = process.max_fds {
            out.gauge("process_max_fds", "Most descriptors allowed", &most)?;
        }
        if let Some(threads) = process.threads {
            out.gauge("process_threads", "Threads", &threads)?;
        }
        Ok(())
    }
}

/// Writes one metric family at a time.
struct Families<'a>(DescriptorEncoder<'a>);

type NoExemplar<'a, S> = Option<&'a Exemplar<S, f64>>;

impl Families<'_> {
    fn info(
        &mut self,
        name: &str,
        help: &str,
        labels: &[(&'static str, &'static str); 2],
    ) -> Result<(), Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(labels)
    }

    fn gauge(&mut self, name: &str, help: &str, value: &impl EncodeGaugeValue) -> Result<(), Error> {
        self.0.encode_descriptor(name, help, None, MetricType::Gauge)?.encode_gauge(value)
    }

    fn counter(&mut self, name: &str, help: &str, value: &impl EncodeCounterValue) -> Result<(), Error> {
        let none: NoExemplar<'_, [(&str, &str); 0]> = None;
        self.0.encode_descriptor(name, help, None, MetricType::Counter)?.encode_counter(value, none)
    }

    fn gauges<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (S, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (labels, value) in series {
            family.encode_family(&labels)?.encode_gauge(&value)?;
        }
        Ok(())
    }

    fn counters<S: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        series: impl Iterator<Item = (S, u64)>,
    ) -> Result<(), Error> {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        for (labels, value) in series {
            let none: NoExemplar<'_, [(&str, &str); 0]> = None;
            family.encode_family(&labels)?.encode_counter(&value, none)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obs::api::tests::sample;

    #[test]
    #[expect(clippy::too_many_lines, reason = "most of it is the expected text")]
    fn a_scrape_is_open_metrics() {
        let text = Metrics::new(Arc::new(sample)).render().unwrap();
        // What stands for this build and this process differs from run to run.
        let stable: String = text
            .lines()
            .filter(|l| !l.contains("_process_") && !l.contains("_build_info{"))
            .fold(String::new(), |text, line| text + line + "\n");
        insta::assert_snapshot!(stable, @r#"
        # HELP edgesplice_build What was built
        # TYPE edgesplice_build info
        # HELP edgesplice_ready Whether every readiness condition holds
        # TYPE edgesplice_ready gauge
        edgesplice_ready 0
        # HELP edgesplice_condition Whether a readiness condition holds
        # TYPE edgesplice_condition gauge
        edgesplice_condition{condition="rules"} 0
        # HELP edgesplice_source_age_seconds Seconds since the data in force was last known to be current
        # TYPE edgesplice_source_age_seconds gauge
        edgesplice_source_age_seconds 61.5
        # HELP edgesplice_source_state 1 for the state that the source is in
        # TYPE edgesplice_source_state gauge
        edgesplice_source_state{kind="manifests",state="synced"} 0
        edgesplice_source_state{kind="manifests",state="cached"} 0
        edgesplice_source_state{kind="manifests",state="stale"} 0
        edgesplice_source_state{kind="manifests",state="error"} 1
        # HELP edgesplice_proxy_connections_active Connections of all service ports open now
        # TYPE edgesplice_proxy_connections_active gauge
        edgesplice_proxy_connections_active 2
        # HELP edgesplice_proxy_connections_accepted Connections accepted
        # TYPE edgesplice_proxy_connections_accepted counter
        edgesplice_proxy_connections_accepted_total 40
        # HELP edgesplice_proxy_connections_refused Connections that had nowhere to go
        # TYPE edgesplice_proxy_connections_refused counter
        edgesplice_proxy_connections_refused_total 1
        # HELP edgesplice_proxy_accept_pauses Times that accepting paused at a limit
        # TYPE edgesplice_proxy_accept_pauses counter
        edgesplice_proxy_accept_pauses_total 0
        # HELP edgesplice_udp_flows UDP flows of all service ports now
        # TYPE edgesplice_udp_flows gauge
        edgesplice_udp_flows 3
        # HELP edgesplice_udp_datagrams_dropped Datagrams passed on to nobody
        # TYPE edgesplice_udp_datagrams_dropped counter
        edgesplice_udp_datagrams_dropped_total 0
        # HELP edgesplice_udp_flows_unreachable UDP flows whose backend was reported unreachable
        # TYPE edgesplice_udp_flows_unreachable counter
        edgesplice_udp_flows_unreachable_total 1
        # HELP edgesplice_dns_cluster_queries Queries for the cluster's names
        # TYPE edgesplice_dns_cluster_queries counter
        edgesplice_dns_cluster_queries_total 0
        # HELP edgesplice_dns_foreign_queries Queries for other names
        # TYPE edgesplice_dns_foreign_queries counter
        edgesplice_dns_foreign_queries_total 0
        # HELP edgesplice_dns_refused DNS packets refused or dropped
        # TYPE edgesplice_dns_refused counter
        edgesplice_dns_refused_total 0
        # HELP edgesplice_dns_upstream_questions Questions sent to servers for other names
        # TYPE edgesplice_dns_upstream_questions counter
        edgesplice_dns_upstream_questions_total 0
        # HELP edgesplice_dns_upstream_failures Questions no server answered
        # TYPE edgesplice_dns_upstream_failures counter
        edgesplice_dns_upstream_failures_total 0
        # HELP edgesplice_dns_cached_answers Answers given from memory
        # TYPE edgesplice_dns_cached_answers counter
        edgesplice_dns_cached_answers_total 0
        # HELP edgesplice_dns_stale_answers Answers given beyond their time
        # TYPE edgesplice_dns_stale_answers counter
        edgesplice_dns_stale_answers_total 0
        # HELP edgesplice_rules_repairs Times that changed rules were repaired
        # TYPE edgesplice_rules_repairs counter
        edgesplice_rules_repairs_total 1
        # HELP edgesplice_rules_in_force Whether the last pass over the rules was good
        # TYPE edgesplice_rules_in_force gauge
        edgesplice_rules_in_force 1
        # HELP edgesplice_warnings Warnings that status shows
        # TYPE edgesplice_warnings gauge
        edgesplice_warnings 1
        # HELP edgesplice_service_connections_active Connections of a service port open now
        # TYPE edgesplice_service_connections_active gauge
        edgesplice_service_connections_active{namespace="shop",service="web",port="http",protocol="TCP"} 2
        # HELP edgesplice_service_connections Connections of a service port
        # TYPE edgesplice_service_connections counter
        edgesplice_service_connections_total{namespace="shop",service="web",port="http",protocol="TCP"} 40
        # HELP edgesplice_service_bytes_in Bytes from clients to backends
        # TYPE edgesplice_service_bytes_in counter
        edgesplice_service_bytes_in_total{namespace="shop",service="web",port="http",protocol="TCP"} 1536
        # HELP edgesplice_service_bytes_out Bytes from backends to clients
        # TYPE edgesplice_service_bytes_out counter
        edgesplice_service_bytes_out_total{namespace="shop",service="web",port="http",protocol="TCP"} 1048576
        # HELP edgesplice_service_backends_ready Backends of a service port that may be picked
        # TYPE edgesplice_service_backends_ready gauge
        edgesplice_service_backends_ready{namespace="shop",service="web",port="http",protocol="TCP"} 1
        # HELP edgesplice_service_http_requests HTTP requests answered, by class of status
        # TYPE edgesplice_service_http_requests counter
        edgesplice_service_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",class="1xx"} 0
        edgesplice_service_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",class="2xx"} 30
        edgesplice_service_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",class="3xx"} 0
        edgesplice_service_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",class="4xx"} 2
        edgesplice_service_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",class="5xx"} 1
        # HELP edgesplice_service_http_unanswered HTTP requests whose client went away before there was an answer
        # TYPE edgesplice_service_http_unanswered counter
        edgesplice_service_http_unanswered_total{namespace="shop",service="web",port="http",protocol="TCP"} 1
        # HELP edgesplice_service_http_retries HTTP requests sent again after a byte of them had been sent
        # TYPE edgesplice_service_http_retries counter
        edgesplice_service_http_retries_total{namespace="shop",service="web",port="http",protocol="TCP"} 2
        # HELP edgesplice_service_http_other_connections Connections to an HTTP port that spoke something else and were relayed
        # TYPE edgesplice_service_http_other_connections counter
        edgesplice_service_http_other_connections_total{namespace="shop",service="web",port="http",protocol="TCP"} 1
        # HELP edgesplice_service_http_request_seconds Time from an HTTP request's head to its answer's
        # TYPE edgesplice_service_http_request_seconds histogram
        edgesplice_service_http_request_seconds_sum{namespace="shop",service="web",port="http",protocol="TCP"} 3.5
        edgesplice_service_http_request_seconds_count{namespace="shop",service="web",port="http",protocol="TCP"} 33
        edgesplice_service_http_request_seconds_bucket{le="0.001",namespace="shop",service="web",port="http",protocol="TCP"} 20
        edgesplice_service_http_request_seconds_bucket{le="0.1",namespace="shop",service="web",port="http",protocol="TCP"} 32
        edgesplice_service_http_request_seconds_bucket{le="+Inf",namespace="shop",service="web",port="http",protocol="TCP"} 33
        # HELP edgesplice_backend_connections_active Connections to a backend open now
        # TYPE edgesplice_backend_connections_active gauge
        edgesplice_backend_connections_active{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.2:30080"} 1
        edgesplice_backend_connections_active{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.3:30080"} 1
        # HELP edgesplice_backend_connections Connections to a backend
        # TYPE edgesplice_backend_connections counter
        edgesplice_backend_connections_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.2:30080"} 20
        edgesplice_backend_connections_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.3:30080"} 20
        # HELP edgesplice_backend_failures Failed dials of a backend
        # TYPE edgesplice_backend_failures counter
        edgesplice_backend_failures_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.2:30080"} 3
        edgesplice_backend_failures_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.3:30080"} 3
        # HELP edgesplice_backend_http_requests HTTP requests sent to a backend
        # TYPE edgesplice_backend_http_requests counter
        edgesplice_backend_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.2:30080"} 0
        edgesplice_backend_http_requests_total{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.3:30080"} 0
        # HELP edgesplice_backend_ejected Whether a backend is out after failures
        # TYPE edgesplice_backend_ejected gauge
        edgesplice_backend_ejected{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.2:30080"} 0
        edgesplice_backend_ejected{namespace="shop",service="web",port="http",protocol="TCP",backend="192.0.2.3:30080"} 1
        # EOF
        "#);
        assert!(text.contains("edgesplice_build_info{version=\""), "{text}");
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "threads"] {
            assert!(text.contains(&format!("\nedgesplice_process_{name} ")), "{name}: {text}");
        }
        assert!(text.lines().all(|l| l.starts_with("# ") || l.starts_with("edgesplice_")), "{text}");
    }

    #[test]
    fn labels_cannot_break_the_format() {
        let odd = || {
            let mut status = sample();
            status.services[0].name = "a\"b\\c\nd".to_owned();
            status
        };
        let text = Metrics::new(Arc::new(odd)).render().unwrap();
        assert!(text.contains(r#"service="a\"b\\c\nd""#), "{text}");
    }
}
