//! Istio `Telemetry`: which requests are traced, logged and counted, and how. Source: `istio.telemetry.v1.Telemetry`.

use std::collections::BTreeMap;

use mesh_core::{
    config::{AccessLog, CustomTag, Labels, MetricChange, TagValue, Telling, Tracing as Traced},
    telling,
};

use super::{
    read::{Fields, Reader},
    yaml::{Node, Spot},
};

/// A `Telemetry`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Telemetry {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// Of traces, in order; later ones count more.
    pub tracing: Vec<(Mode, Tracing)>,
    /// Of logs: the condition of a line, or `None` for no log.
    pub logging: Vec<(Mode, Option<Option<String>>)>,
    /// Of metrics.
    pub metrics: Vec<(Mode, MetricChange)>,
}

/// Of which side of a call something holds. Istio `WorkloadMode`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Mode {
    /// Of both.
    #[default]
    Both,
    /// Of requests that a workload sends.
    Client,
    /// Of requests that it serves.
    Server,
}

impl Mode {
    /// Does it hold of this side?
    pub fn holds_of(self, server: bool) -> bool {
        match self {
            Self::Both => true,
            Self::Client => !server,
            Self::Server => server,
        }
    }
}

/// What one entry says of traces; what is `None` is inherited.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Tracing {
    /// Percentage.
    pub random: Option<f64>,
    /// No span goes out.
    pub disabled: Option<bool>,
    /// Added to spans.
    pub tags: Vec<CustomTag>,
}

const MODES: [(&str, Mode); 3] =
    [("CLIENT_AND_SERVER", Mode::Both), ("CLIENT", Mode::Client), ("SERVER", Mode::Server)];

/// Names of metrics, and what Istio's filter calls them.
const METRICS: [(&str, &str); 11] = [
    ("ALL_METRICS", ""),
    ("REQUEST_COUNT", "requests_total"),
    ("REQUEST_DURATION", "request_duration_milliseconds"),
    ("REQUEST_SIZE", "request_bytes"),
    ("RESPONSE_SIZE", "response_bytes"),
    ("TCP_OPENED_CONNECTIONS", "tcp_connections_opened_total"),
    ("TCP_CLOSED_CONNECTIONS", "tcp_connections_closed_total"),
    ("TCP_SENT_BYTES", "tcp_sent_bytes_total"),
    ("TCP_RECEIVED_BYTES", "tcp_received_bytes_total"),
    ("GRPC_REQUEST_MESSAGES", "request_messages_total"),
    ("GRPC_RESPONSE_MESSAGES", "response_messages_total"),
];

impl Telemetry {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("selector")
            && let Some(mut selector) = reader.fields(node, &path)
        {
            out.selector =
                selector.read("matchLabels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
            selector.close(reader);
        }
        fields.refused(reader, &["targetRef", "targetRefs"], "say which workloads with spec.selector.matchLabels");
        for (node, path) in entries(fields, "tracing", reader) {
            out.tracing.extend(tracing(node, &path, reader));
        }
        for (node, path) in entries(fields, "accessLogging", reader) {
            out.logging.extend(logging(node, &path, reader));
        }
        for (node, path) in entries(fields, "metrics", reader) {
            metrics(node, &path, &mut out.metrics, reader);
        }
        out
    }

    /// Adds what this says of one side; what it does not say stays.
    pub(crate) fn apply(&self, server: bool, telling: &mut Telling) {
        for (_, entry) in self.tracing.iter().filter(|(mode, _)| mode.holds_of(server)) {
            // Istio traces one request in a hundred where nobody says more.
            let tracing = telling.tracing.get_or_insert_with(|| Traced { random: 1.0, ..Traced::default() });
            tracing.random = entry.random.unwrap_or(tracing.random);
            match entry.disabled {
                Some(true) => tracing.overall = 0.0,
                Some(false) => tracing.overall = 100.0,
                None => {}
            }
            for tag in &entry.tags {
                tracing.tags.retain(|known| known.name != tag.name);
                tracing.tags.push(tag.clone());
            }
        }
        let mut logs = self.logging.iter().filter(|(mode, _)| mode.holds_of(server)).peekable();
        if logs.peek().is_some() {
            let log = |filter: &Option<String>| AccessLog { filter: filter.clone(), ..AccessLog::default() };
            telling.access_log = Some(logs.filter_map(|(_, entry)| entry.as_ref().map(log)).collect());
        }
        let metrics = self.metrics.iter().filter(|(mode, _)| mode.holds_of(server));
        telling.metrics.extend(metrics.map(|(_, change)| change.clone()));
    }
}

fn entries<'n>(fields: &mut Fields<'n>, name: &'static str, reader: &mut Reader<'_>) -> Vec<(&'n Node, String)> {
    fields.take(name).map(|(node, path)| reader.list(node, &path)).unwrap_or_default()
}

/// Providers are names of the mesh's; there is one of each kind here, whatever it is called.
fn providers(fields: &mut Fields<'_>, reader: &mut Reader<'_>) {
    fields.ignored(
        reader,
        &["providers"],
        "spans go where OTEL_EXPORTER_OTLP_ENDPOINT says, logs to standard output, metrics to the admin port",
    );
}

fn mode(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Mode {
    let Some((node, path)) = fields.take("match") else { return Mode::Both };
    let Some(mut fields) = reader.fields(node, &path) else { return Mode::Both };
    let mode = fields.read("mode", |node, path| reader.word(node, path, &MODES));
    fields.close(reader);
    mode.unwrap_or_default()
}

fn tracing(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(Mode, Tracing)> {
    let mut fields = reader.fields(node, path)?;
    let mode = mode(&mut fields, reader);
    providers(&mut fields, reader);
    let mut out = Tracing {
        random: fields.read("randomSamplingPercentage", |node, path| reader.percent(node, path)),
        disabled: fields.read("disableSpanReporting", |node, path| reader.boolean(node, path)),
        tags: Vec::new(),
    };
    if let Some((node, path)) = fields.take("customTags") {
        for (name, node) in reader.map(node, &path) {
            let value = tag(node, &format!("{path}.{}", name.value), reader);
            out.tags.extend(value.map(|value| CustomTag { name: name.value.clone(), value }));
        }
    }
    fields.ignored(
        reader,
        &["useRequestIdForTraceSampling", "enableIstioTags"],
        "sampling follows the trace's own flag, and spans always have Istio's tags",
    );
    fields.close(reader);
    Some((mode, out))
}

fn tag(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TagValue> {
    let mut fields = reader.fields(node, path)?;
    let mut found = Vec::new();
    for kind in ["literal", "environment", "header", "formatter"] {
        let Some((node, path)) = fields.take(kind) else { continue };
        let mut inner = reader.fields(node, &path)?;
        let mut text = |name: &'static str, reader: &mut Reader<'_>| {
            inner.read(name, |node, path| reader.text(node, path)).map(|it| it.value)
        };
        let value = match kind {
            "literal" => text("value", reader).map(TagValue::Literal),
            "formatter" => text("value", reader).map(TagValue::Format),
            _ => {
                let (name, default) = (text("name", reader), text("defaultValue", reader).unwrap_or_default());
                name.map(|name| match kind {
                    "environment" => TagValue::Environment { name, default },
                    _ => TagValue::Header { name, default },
                })
            }
        };
        if value.is_none() {
            reader.missing(&inner, if matches!(kind, "literal" | "formatter") { "value" } else { "name" });
        }
        inner.close(reader);
        if let Some(value) = value {
            let alone =
                Traced { tags: vec![CustomTag { name: String::new(), value: value.clone() }], ..Traced::default() };
            readable(Telling { tracing: Some(alone), ..Telling::default() }, node.at, &path, reader);
            found.push(value);
        }
    }
    fields.close(reader);
    if found.len() != 1 {
        let help = "write one of literal, environment, header and formatter";
        reader.invalid(node.at, format!("{path} has {} values", found.len())).help = Some(help.to_owned());
    }
    found.pop()
}

/// Says what cannot be read of it.
fn readable(telling: Telling, at: Spot, path: &str, reader: &mut Reader<'_>) {
    for why in telling::check(&telling) {
        reader.invalid(at, format!("{path}: {why}"));
    }
}

fn logging(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(Mode, Option<Option<String>>)> {
    let mut fields = reader.fields(node, path)?;
    let mode = mode(&mut fields, reader);
    providers(&mut fields, reader);
    let disabled = fields.read("disabled", |node, path| reader.boolean(node, path)).unwrap_or_default();
    let mut filter = None;
    if let Some((node, path)) = fields.take("filter")
        && let Some(mut inner) = reader.fields(node, &path)
    {
        filter = inner.read("expression", |node, path| reader.text(node, path));
        inner.close(reader);
    }
    fields.close(reader);
    if let Some(filter) = &filter {
        let log = AccessLog { filter: Some(filter.value.clone()), ..AccessLog::default() };
        let telling = Telling { access_log: Some(vec![log]), ..Telling::default() };
        readable(telling, filter.at, &format!("{path}.filter.expression"), reader);
    }
    Some((mode, (!disabled).then(|| filter.map(|it| it.value))))
}

fn metrics(node: &Node, path: &str, out: &mut Vec<(Mode, MetricChange)>, reader: &mut Reader<'_>) {
    let Some(mut fields) = reader.fields(node, path) else { return };
    providers(&mut fields, reader);
    fields.ignored(reader, &["reportingInterval"], "metrics are read when somebody asks for them");
    for (node, path) in entries(&mut fields, "overrides", reader) {
        out.extend(change(node, &path, reader));
    }
    fields.close(reader);
}

fn change(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<(Mode, MetricChange)> {
    let mut fields = reader.fields(node, path)?;
    let (mut mode, mut out) = (Mode::Both, MetricChange::default());
    if let Some((node, path)) = fields.take("match")
        && let Some(mut inner) = reader.fields(node, &path)
    {
        let metric = inner.read("metric", |node, path| reader.word(node, path, &METRICS));
        let custom = inner.read("customMetric", |node, path| reader.text(node, path));
        mode = inner.read("mode", |node, path| reader.word(node, path, &MODES)).unwrap_or_default();
        inner.close(reader);
        out.name = metric.map(str::to_owned).or_else(|| custom.map(|it| it.value)).unwrap_or_default();
    }
    out.drop = fields.read("disabled", |node, path| reader.boolean(node, path)).unwrap_or_default();
    if let Some((node, path)) = fields.take("tagOverrides") {
        let mut labels = BTreeMap::new();
        for (name, node) in reader.map(node, &path) {
            let path = format!("{path}.{}", name.value);
            let Some(mut inner) = reader.fields(node, &path) else { continue };
            let operations = [("UPSERT", false), ("REMOVE", true)];
            let removes = inner.read("operation", |node, path| reader.word(node, path, &operations));
            let value = inner.read("value", |node, path| reader.text(node, path));
            match (removes.unwrap_or_default(), value) {
                (true, _) => out.without.push(name.value.clone()),
                (false, Some(value)) => drop(labels.insert(name.value.clone(), value.value)),
                (false, None) => reader.missing(&inner, "value"),
            }
            inner.close(reader);
        }
        out.labels = labels;
        let telling = Telling { metrics: vec![out.clone()], ..Telling::default() };
        readable(telling, node.at, &path, reader);
    }
    fields.close(reader);
    Some((mode, out))
}
