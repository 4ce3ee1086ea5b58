//! How rows are written: names and labels as Prometheus wants them, and the same as handles of an application's recorder.

use std::{fmt::Write as _, sync::Arc};

use metrics::{Counter, Gauge, Histogram, Key, Label, Level, Metadata, Unit};

use super::{Cell, Row};
use crate::telemetry::conventions::{Instrument, Kind, Table};

static METADATA: Metadata<'static> = Metadata::new("mesh::telemetry", Level::INFO, Some(module_path!()));

/// One instrument of a row in an application's recorder.
pub(super) enum Handle {
    Counter(Counter),
    Gauge(Gauge),
    Histogram(Histogram),
}

impl Handle {
    pub(super) fn add(&self, value: f64) {
        match self {
            Self::Counter(counter) => counter.increment(value as u64),
            Self::Gauge(gauge) => gauge.increment(value),
            Self::Histogram(histogram) => histogram.record(value),
        }
    }
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Handle")
    }
}

/// The handles of a row, described to the recorder.
pub(super) fn handles(table: &Table, labels: &[String]) -> Box<[Handle]> {
    let pairs = table.labels.iter().zip(labels).filter(|(_, value)| !value.is_empty());
    let labels: Vec<Label> = pairs.map(|(name, value)| Label::new(underscored(name), value.clone())).collect();
    let handle = |instrument: &Instrument| {
        let name = prometheus_name(instrument);
        let unit = match instrument.unit {
            "s" => Some(Unit::Seconds),
            "By" => Some(Unit::Bytes),
            _ => Some(Unit::Count),
        };
        let key = Key::from_parts(name.clone(), labels.clone());
        metrics::with_recorder(|recorder| match instrument.kind {
            Kind::Counter => {
                recorder.describe_counter(name.into(), unit, instrument.help.into());
                Handle::Counter(recorder.register_counter(&key, &METADATA))
            }
            Kind::UpDown => {
                recorder.describe_gauge(name.into(), unit, instrument.help.into());
                Handle::Gauge(recorder.register_gauge(&key, &METADATA))
            }
            Kind::Histogram(_) => {
                recorder.describe_histogram(name.into(), unit, instrument.help.into());
                Handle::Histogram(recorder.register_histogram(&key, &METADATA))
            }
        })
    };
    table.instruments.iter().map(handle).collect()
}

/// An instrument's name as Prometheus has it: with its unit, and `_total` of a counter. Source: OpenTelemetry's
/// "Prometheus and OpenMetrics compatibility".
pub(in crate::telemetry) fn prometheus_name(instrument: &Instrument) -> String {
    let mut name = underscored(instrument.name);
    match instrument.unit {
        "s" => name.push_str("_seconds"),
        "By" => name.push_str("_bytes"),
        _ => {}
    }
    if matches!(instrument.kind, Kind::Counter) {
        name.push_str("_total");
    }
    name
}

fn underscored(name: &str) -> String {
    name.replace(['.', '-'], "_")
}

/// Labels as they stand between the braces; without those that have no value.
pub(super) fn label_text(names: &[&str], values: &[String]) -> Arc<str> {
    let mut text = String::with_capacity(256);
    for (name, value) in names.iter().zip(values).filter(|(_, value)| !value.is_empty()) {
        if !text.is_empty() {
            text.push(',');
        }
        let _ = write!(text, "{}=\"", underscored(name));
        for c in value.chars() {
            match c {
                '"' | '\\' => text.extend(['\\', c]),
                '\n' => text.push_str("\\n"),
                c => text.push(c),
            }
        }
        text.push('"');
    }
    text.into()
}

/// The instruments of one table with its rows. Format: Prometheus text exposition 0.0.4.
pub(super) fn write(text: &mut String, rows: &[(&Arc<str>, &Row)]) {
    let Some((_, first)) = rows.first() else { return };
    for (at, instrument) in first.named.table.instruments.iter().enumerate() {
        let name = prometheus_name(instrument);
        let kind = match instrument.kind {
            Kind::Counter => "counter",
            Kind::UpDown => "gauge",
            Kind::Histogram(_) => "histogram",
        };
        let mut is_headed = false;
        for (labels, row) in rows {
            let Some(cell) = row.cells.get(at) else { continue };
            if let Cell::Buckets { counts, .. } = cell
                && counts.iter().all(|count| *count == 0)
            {
                continue;
            }
            if !std::mem::replace(&mut is_headed, true) {
                let _ = writeln!(text, "\n# HELP {name} {}\n# TYPE {name} {kind}", instrument.help);
            }
            match cell {
                Cell::Sum(sum) => drop(writeln!(text, "{name}{{{labels}}} {sum}")),
                Cell::Buckets { counts, sum } => {
                    let bounds = instrument.kind.bounds().unwrap_or_default();
                    histogram(text, &name, labels, counts, bounds, *sum);
                }
            }
        }
    }
}

fn histogram(text: &mut String, name: &str, labels: &str, counts: &[u64], bounds: &[f64], sum: f64) {
    let comma = if labels.is_empty() { "" } else { "," };
    let mut count = 0;
    for (within, bound) in counts.iter().zip(bounds) {
        count += within;
        let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"{bound}\"}} {count}");
    }
    let count: u64 = counts.iter().sum();
    let _ = writeln!(text, "{name}_bucket{{{labels}{comma}le=\"+Inf\"}} {count}");
    let _ = writeln!(text, "{name}_sum{{{labels}}} {sum}");
    let _ = writeln!(text, "{name}_count{{{labels}}} {count}");
}
