//! Metrics in OpenMetrics text. Everything is read at the moment of the scrape, so that the data plane counts once and
//! nothing is kept twice.
//!
//! `families` says what there is, `encode` writes it, `figures` is what it is made of. What does not belong here:
//! counting itself, which is `obs::meter`'s and its users'.

mod document;
mod encode;
mod families;
mod figures;

use std::fmt::{Debug, Error, Formatter};
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::DescriptorEncoder;
use prometheus_client::registry::Registry;

use super::api::Status;
use figures::Scrape;

pub use document::document;
pub use figures::{Counts, Figures, Runtime};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// What every name begins with.
const PREFIX: &str = "edgesplice";
/// Most service ports that get series of their own: a scrape of so many takes some milliseconds and a megabyte.
pub const MOST_SERVICES: usize = 1_000;
/// Most backends that get series of their own.
pub const MOST_BACKENDS: usize = 2_000;

/// Where the numbers come from.
pub type ScrapeFn = Arc<dyn Fn() -> (Status, Figures) + Send + Sync>;

/// The registry of all metrics.
#[derive(Debug)]
pub struct Metrics(Registry);

impl Metrics {
    /// Metrics that read their numbers with `read` at each scrape.
    pub fn new(read: ScrapeFn) -> Self {
        let mut registry = Registry::with_prefix(PREFIX);
        registry.register_collector(Box::new(Families(read)));
        Self(registry)
    }

    /// One scrape.
    pub fn render(&self) -> Result<String, Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.0)?;
        Ok(text)
    }
}

struct Families(ScrapeFn);

impl Debug for Families {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.write_str("Families")
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let (status, figures) = (self.0)();
        let scrape = Scrape::new(status, figures, MOST_SERVICES, MOST_BACKENDS);
        let mut all = families::GROUPS.iter().flat_map(|(_, families)| families.iter());
        all.try_for_each(|family| family.encode(&scrape, &mut encoder))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::obs::api::tests::sample;
    use crate::obs::meter::Histogram;

    fn figures() -> Figures {
        let histogram = Histogram::default();
        histogram.observe(std::time::Duration::from_millis(3));
        let counts = || vec![("one", 1), ("two", 2)];
        Figures {
            refused: counts(),
            dials: counts(),
            dial_times: histogram.read(),
            dns_responses: counts(),
            dns_times: histogram.read(),
            updates: counts(),
            build_times: histogram.read(),
            rules_times: histogram.read(),
            probes: counts(),
            probe_times: histogram.read(),
            runtimes: vec![Runtime {
                name: "data-0".to_owned(),
                tasks: 3,
                queue: 0,
                busy_seconds: 1.5,
                parks: 9,
            }],
            restarts: counts(),
            admin_requests: counts(),
            ..Figures::default()
        }
    }

    fn rendered(status: fn() -> Status) -> String {
        Metrics::new(Arc::new(move || (status(), figures()))).render().unwrap()
    }

    #[test]
    fn a_scrape_is_open_metrics() {
        let text = rendered(sample);
        // What stands for this build, this process and this machine differs from run to run.
        let varies =
            ["_process_", "_build_info{", "_conntrack_", "_tcp_sockets", "_local_ports", "_listen_queue"];
        let stable: String = text
            .lines()
            .filter(|line| !line.starts_with("# HELP") && !varies.iter().any(|part| line.contains(part)))
            .fold(String::new(), |text, line| text + line + "\n");
        insta::assert_snapshot!(stable);
        assert!(text.contains("edgesplice_build_info{version=\""), "{text}");
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds", "max_fds", "threads"] {
            assert!(text.contains(&format!("\nedgesplice_process_{name} ")), "{name}: {text}");
        }
        assert!(text.lines().all(|l| l.starts_with("# ") || l.starts_with("edgesplice_")), "{text}");
        assert!(text.ends_with("# EOF\n"), "{text}");
    }

    #[test]
    fn every_family_stands_in_the_scrape_and_in_the_documentation() {
        let (text, document) = (rendered(sample), document());
        let mut names = std::collections::BTreeSet::new();
        for family in families::GROUPS.iter().flat_map(|(_, families)| families.iter()) {
            assert!(names.insert(family.name), "{} stands there twice", family.name);
            let head = format!("# TYPE {PREFIX}_{} {}\n", family.name, family.kind.as_str());
            assert!(text.contains(&head), "{head}");
            assert!(document.contains(&format!("`{PREFIX}_{}", family.name)), "{}", family.name);
        }
    }

    /// However many there are: a scrape must not grow with the cluster.
    #[test]
    fn series_are_bounded() {
        let many = || {
            let mut status = sample();
            let one = status.services[0].clone();
            status.services = (0..MOST_SERVICES + 500)
                .map(|n| {
                    let mut service = one.clone();
                    service.name = format!("s{n:04}");
                    // The last ones alone have clients.
                    service.connections_total = u64::from(n >= MOST_SERVICES);
                    service.backends = vec![one.backends[0].clone(); 3];
                    service
                })
                .collect();
            status
        };
        let text = rendered(many);
        let series =
            |name: &str| text.lines().filter(|l| l.starts_with(&format!("edgesplice_{name}{{"))).count();
        assert_eq!(series("service_connections_total"), MOST_SERVICES);
        assert_eq!(series("backend_connections_total"), MOST_BACKENDS);
        assert!(
            text.contains("service=\"s1499\"") && text.contains("service=\"s0000\""),
            "those with clients first"
        );
        assert!(!text.contains("service=\"s0999\""));
        assert!(text.contains("\nedgesplice_services_unlisted 500\n"), "{text}");
        assert!(text.contains("\nedgesplice_backends_unlisted 2500\n"), "{text}");
        assert!(text.contains("\nedgesplice_snapshot_service_ports 1500\n"));
        assert!(text.contains("\nedgesplice_snapshot_backends{state=\"ready\"} 4500\n"));
    }

    #[test]
    fn labels_cannot_break_the_format() {
        let odd = || {
            let mut status = sample();
            status.services[0].name = "a\"b\\c\nd".to_owned();
            status
        };
        let text = rendered(odd);
        assert!(text.contains(r#"service="a\"b\\c\nd""#), "{text}");
    }
}
