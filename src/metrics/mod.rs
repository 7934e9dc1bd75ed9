//! Metrics: counters, and a page of them in the text formats that Prometheus reads.
//!
//! Imports no other module. Other modules keep plain counters; [`Page`] is composed on request.

mod count;
mod histogram;

pub use count::{Counter, Gauge, GaugeGuard};
pub use histogram::DurationHistogram;

use std::fmt;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, MetricEncoder, NoLabelSet,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::{Registry, Unit};

use histogram::Durations;

/// A text format of a [`Page`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// The text format of Prometheus, version 0.0.4, which every tool reads.
    Prometheus,
    /// OpenMetrics 1.0, which servers of Prometheus ask for.
    OpenMetrics,
}

impl TextFormat {
    /// Chooses the format for the `Accept` header of a request.
    pub fn accepted(header: &str) -> Self {
        let is_open = header
            .split(',')
            .any(|range| range.trim().split(';').next() == Some("application/openmetrics-text"));
        if is_open { Self::OpenMetrics } else { Self::Prometheus }
    }

    /// Returns the media type.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        }
    }
}

/// A page of current metrics.
#[derive(Debug, Default)]
pub struct Page {
    families: Vec<Family>,
}

/// Names and values of the labels of one sample.
pub type MetricLabels = Vec<(&'static str, String)>;

/// A metric family.
#[derive(Debug)]
struct Family {
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    samples: Samples,
}

/// The samples of a family.
#[derive(Debug)]
enum Samples {
    Counters(Vec<(MetricLabels, u64)>),
    /// Total times, in seconds.
    Times(Vec<(MetricLabels, f64)>),
    Gauges(Vec<(MetricLabels, f64)>),
    Durations(Vec<(MetricLabels, Durations)>),
}

impl Page {
    /// Adds a counter family; the page appends `_total` to `name`.
    pub fn counters(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (MetricLabels, u64)>,
    ) {
        self.add(name, help, None, Samples::Counters(samples.into_iter().collect()));
    }

    /// Adds a counter without labels.
    pub fn counter(&mut self, name: &'static str, help: &'static str, value: u64) {
        self.counters(name, help, [(MetricLabels::new(), value)]);
    }

    /// Adds a gauge family.
    pub fn gauges(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (MetricLabels, f64)>,
    ) {
        self.add(name, help, None, Samples::Gauges(samples.into_iter().collect()));
    }

    /// Adds a gauge without labels.
    #[expect(clippy::cast_precision_loss, reason = "counts below 2^53")]
    pub fn gauge(&mut self, name: &'static str, help: &'static str, value: usize) {
        self.gauges(name, help, [(MetricLabels::new(), value as f64)]);
    }

    /// Adds a counter family of total times; the page appends `_seconds_total` to `name`.
    pub fn times(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (MetricLabels, Duration)>,
    ) {
        let seconds = samples.into_iter().map(|(labels, time)| (labels, time.as_secs_f64()));
        self.add(name, help, Some(Unit::Seconds), Samples::Times(seconds.collect()));
    }

    /// Adds a duration histogram; the page appends `_seconds` to `name`.
    pub fn histogram(
        &mut self,
        name: &'static str,
        help: &'static str,
        histogram: &DurationHistogram,
    ) {
        self.histograms(name, help, [(MetricLabels::new(), histogram)]);
    }

    /// Adds a family of duration histograms; the page appends `_seconds` to `name`.
    pub fn histograms<'h>(
        &mut self,
        name: &'static str,
        help: &'static str,
        samples: impl IntoIterator<Item = (MetricLabels, &'h DurationHistogram)>,
    ) {
        let samples =
            samples.into_iter().map(|(labels, histogram)| (labels, histogram.durations()));
        self.add(name, help, Some(Unit::Seconds), Samples::Durations(samples.collect()));
    }

    /// Renders the page as text.
    ///
    /// # Errors
    /// None in practice: writing to a string does not fail.
    pub fn render(self, format: TextFormat) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut text = String::new();
        encode(&mut text, &registry)?;
        Ok(match format {
            TextFormat::OpenMetrics => text,
            TextFormat::Prometheus => as_prometheus(&text),
        })
    }

    /// Adds a family.
    fn add(
        &mut self,
        name: &'static str,
        help: &'static str,
        unit: Option<Unit>,
        samples: Samples,
    ) {
        self.families.push(Family { name, help, unit, samples });
    }
}

/// Converts a page from OpenMetrics.
///
/// In the format of Prometheus, the family name of a counter has the suffix `_total`, and there are
/// neither units nor an end mark.
fn as_prometheus(page: &str) -> String {
    let mut text = String::with_capacity(page.len() + 1024);
    let mut help = None;
    for line in page.lines() {
        if line.starts_with("# HELP ") {
            help = Some(line);
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or((kind, "untyped"));
            let suffix = if kind == "counter" { "_total" } else { "" };
            let help = help.take().and_then(|help| help.splitn(4, ' ').nth(3)).unwrap_or("");
            for part in
                ["# HELP ", name, suffix, " ", help, "\n# TYPE ", name, suffix, " ", kind, "\n"]
            {
                text.push_str(part);
            }
        } else if !line.starts_with('#') {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for Family { name, help, unit, samples } in &self.families {
            let kind = match samples {
                Samples::Counters(_) | Samples::Times(_) => MetricType::Counter,
                Samples::Gauges(_) => MetricType::Gauge,
                Samples::Durations(_) => MetricType::Histogram,
            };
            let mut metric = encoder.encode_descriptor(name, help, unit.as_ref(), kind)?;
            match samples {
                Samples::Counters(samples) => encode_counters(&mut metric, samples)?,
                Samples::Times(samples) => encode_counters(&mut metric, samples)?,
                Samples::Gauges(samples) => {
                    for (labels, number) in samples {
                        if labels.is_empty() {
                            metric.encode_gauge(number)?;
                        } else {
                            metric.encode_family(labels)?.encode_gauge(number)?;
                        }
                    }
                }
                Samples::Durations(samples) => {
                    for (labels, Durations { sum, buckets }) in samples {
                        let count = buckets.iter().map(|(_, count)| count).sum();
                        let (sum, buckets) = (*sum, &buckets[..]);
                        if labels.is_empty() {
                            metric.encode_histogram::<NoLabelSet>(sum, count, buckets, None)?;
                        } else {
                            let mut metric = metric.encode_family(labels)?;
                            metric.encode_histogram::<NoLabelSet>(sum, count, buckets, None)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// Encodes the samples of a counter family.
fn encode_counters<N: EncodeCounterValue>(
    metric: &mut MetricEncoder<'_>,
    samples: &[(MetricLabels, N)],
) -> Result<(), fmt::Error> {
    for (labels, number) in samples {
        if labels.is_empty() {
            metric.encode_counter::<NoLabelSet, _, u64>(number, None)?;
        } else {
            metric.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(number, None)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_in_both_text_formats() {
        let text = example().render(TextFormat::OpenMetrics).unwrap();
        for line in [
            "# TYPE svcdns_answers counter",
            "svcdns_answers_total{rcode=\"NOERROR\"} 3",
            "svcdns_answers_total{rcode=\"a\\\"b\"} 0",
            "svcdns_lists_total 1",
            "svcdns_keys 2.0",
            "# UNIT svcdns_publication_seconds seconds",
            "# TYPE svcdns_waits_seconds counter",
            "svcdns_waits_seconds_total{service=\"a\"} 1.5",
            "svcdns_publication_seconds_count 1",
            "svcdns_publication_seconds_bucket{le=\"0.003\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));

        let text = example().render(TextFormat::Prometheus).unwrap();
        for line in [
            "# HELP svcdns_answers_total Answers sent",
            "# TYPE svcdns_answers_total counter",
            "svcdns_answers_total{rcode=\"NOERROR\"} 3",
            "# TYPE svcdns_keys gauge",
            "svcdns_keys 2.0",
            "# TYPE svcdns_publication_seconds histogram",
            "svcdns_publication_seconds_bucket{le=\"0.003\"} 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        assert!(!text.contains("# UNIT") && !text.contains("# EOF"), "{text}");
    }

    #[test]
    fn the_accept_header_chooses_the_format() {
        for (header, format) in [
            ("", TextFormat::Prometheus),
            ("*/*", TextFormat::Prometheus),
            ("text/plain;version=0.0.4", TextFormat::Prometheus),
            ("application/openmetrics-text", TextFormat::OpenMetrics),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;q=0.5",
                TextFormat::OpenMetrics,
            ),
        ] {
            assert_eq!(TextFormat::accepted(header), format, "{header}");
        }
    }

    fn example() -> Page {
        let mut page = Page::default();
        page.counters(
            "svcdns_answers",
            "Answers sent",
            [(vec![("rcode", "NOERROR".to_owned())], 3), (vec![("rcode", "a\"b".to_owned())], 0)],
        );
        page.counter("svcdns_lists", "Lists read", 1);
        page.gauge("svcdns_keys", "Keys", 2);
        let histogram = DurationHistogram::new();
        histogram.observe(Duration::from_millis(2));
        page.histogram("svcdns_publication", "Publications", &histogram);
        let waited = [(vec![("service", "a".to_owned())], Duration::from_millis(1500))];
        page.times("svcdns_waits", "Waits", waited);
        page
    }
}
