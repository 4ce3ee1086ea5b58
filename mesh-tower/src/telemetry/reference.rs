//! Writes `docs/telemetry-reference.md` from the code: every metric with its type, unit and labels, the attributes of spans, the
//! operators of log lines. `MESH_REGENERATE=1` writes it, and without that it is compared. Tests only.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use mesh_core::telemetry::{BUCKETS, LABELS};

use super::{
    conventions::{Instrument, Kind, TABLES},
    sheet::prometheus_name,
};

/// A metric that is told of without a table: name, type, unit, labels, what it says.
type Own = (&'static str, &'static str, &'static str, &'static str, &'static str);

/// Of the process itself.
const OWN: &[Own] = &[
    ("istio_build", "gauge", "1", "component, tag", "the version of this process"),
    (
        "mesh_metric_series_dropped_total",
        "counter",
        "{request}",
        "",
        "requests told under the word for others, for want of room",
    ),
    (
        "mesh_certificate_not_before_seconds",
        "gauge",
        "s since 1970",
        "",
        "from when the certificate holds; 0 while there is none",
    ),
    (
        "mesh_certificate_not_after_seconds",
        "gauge",
        "s since 1970",
        "",
        "until when the certificate holds; 0 while there is none",
    ),
    ("mesh_certificates_obtained_total", "counter", "{certificate}", "", "certificates there have been"),
    (
        "mesh_certificate_failures",
        "gauge",
        "{attempt}",
        "",
        "attempts at the next that failed since the last that did not",
    ),
    (
        "mesh_tls_refused_total",
        "counter",
        "{connection}",
        "direction, reason",
        "TLS connections that did not come about",
    ),
    (
        "mesh_tls_retired_total",
        "counter",
        "{connection}",
        "direction, reason",
        "TLS connections that were ended, or take no new requests",
    ),
    (
        "mesh_mirrors_dropped_total",
        "counter",
        "{request}",
        "",
        "copies that were not sent, since too many were under way",
    ),
    (
        "mesh_rate_limit_service_total",
        "counter",
        "{request}",
        "result",
        "answers of services that count requests for the whole mesh",
    ),
    ("mesh_authorization_shadow_total", "counter", "{request}", "result", "verdicts of rules that are only tried"),
    (
        "grpc_lb_outlier_detection_ejections_enforced",
        "counter",
        "{ejection}",
        "cluster, detection_method",
        "endpoints ejected as outliers (gRFC A91)",
    ),
    (
        "grpc_lb_outlier_detection_ejections_unenforced",
        "counter",
        "{ejection}",
        "cluster, detection_method, unenforced_reason",
        "outliers found and not ejected (gRFC A91)",
    ),
];

/// Attributes of spans, and what they are of.
const ATTRIBUTES: &[(&str, &str, &str)] = &[
    ("http.request.method", "all", "the method"),
    ("http.response.status_code", "all", "the status; absent where there was none"),
    ("http.request.resend_count", "attempt", "how often it was tried before; absent of the first"),
    ("server.address", "call, attempt", "the service's host"),
    ("network.peer.address", "attempt", "the endpoint's address"),
    ("upstream_cluster", "attempt", "the cluster's name"),
    ("response_flags", "all", "Envoy's letters, `-` for none"),
    ("attempts", "call", "how often it was tried"),
    ("url.path", "server", "the path, without its query"),
    ("istio.canonical_service", "server", "who serves"),
    ("istio.canonical_revision", "server", "which version of it"),
    ("istio.namespace", "server", "in which namespace"),
    ("rpc.system.name", "attempt, server", "`grpc`, of gRPC"),
    ("rpc.method", "attempt, server", "`pkg.Service/Method`, of gRPC"),
    ("rpc.response.status_code", "all", "the gRPC status, a number"),
    ("previous-rpc-attempts", "attempt", "gRPC's word for the resend count (gRFC A72)"),
    ("transparent-retry", "attempt", "false (gRFC A72)"),
];

/// Operators of log lines.
const OPERATORS: &[(&str, &str)] = &[
    ("START_TIME", "when it began; RFC 3339"),
    (
        "REQ",
        "`%REQ(NAME?OTHER):LENGTH%`: a header of the request, else the other; `:METHOD`, `:PATH`, `:AUTHORITY` among them",
    ),
    ("REQ_WITHOUT_QUERY", "the path without its query"),
    ("RESP", "a header of the response"),
    ("TRAILER", "as `RESP`"),
    ("PROTOCOL", "`HTTP/1.1`, `HTTP/2`"),
    ("RESPONSE_CODE", "the status; 0 when there was none"),
    ("RESPONSE_CODE_DETAILS", "why, in a word of Envoy's: `via_upstream`"),
    ("RESPONSE_FLAGS", "Envoy's letters: `UH,URX`, `-`"),
    ("GRPC_STATUS", "the gRPC status, a number"),
    ("GRPC_STATUS_NUMBER", "the same"),
    ("BYTES_RECEIVED", "bytes of the request"),
    ("BYTES_SENT", "bytes of the response"),
    ("DURATION", "milliseconds in all"),
    ("RESPONSE_DURATION", "milliseconds until the response's head"),
    ("UPSTREAM_HOST", "the endpoint's address"),
    ("UPSTREAM_REMOTE_ADDRESS", "the same"),
    ("UPSTREAM_CLUSTER", "the cluster's name"),
    ("UPSTREAM_CLUSTER_RAW", "the same"),
    ("UPSTREAM_REQUEST_ATTEMPT_COUNT", "how often it was tried"),
    ("DOWNSTREAM_REMOTE_ADDRESS", "the caller's address with its port"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS", "the same"),
    ("DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT", "the caller's address"),
    ("DOWNSTREAM_DIRECT_REMOTE_ADDRESS_WITHOUT_PORT", "the same"),
    ("DOWNSTREAM_PEER_URI_SAN", "the caller's SPIFFE id"),
    ("ROUTE_NAME", "the route's name"),
    ("TRACE_ID", "the trace's id"),
    ("CONNECTION_TERMINATION_DETAILS", "`-`: taken, and nothing here"),
    ("UPSTREAM_TRANSPORT_FAILURE_REASON", "`-`"),
    ("UPSTREAM_LOCAL_ADDRESS", "`-`"),
    ("DOWNSTREAM_LOCAL_ADDRESS", "`-`"),
    ("REQUESTED_SERVER_NAME", "`-`"),
    ("REQUEST_DURATION", "`-`"),
    ("RESPONSE_TX_DURATION", "`-`"),
    ("DYNAMIC_METADATA", "`-`"),
    ("FILTER_STATE", "`-`"),
    ("HOSTNAME", "`-`"),
];

/// Istio's metrics of requests.
const REQUESTS: &[(&str, &str, &str, &str)] = &[
    ("istio_requests_total", "counter", "{request}", "requests, one each, however often it was tried"),
    (
        "istio_request_duration_milliseconds",
        "histogram",
        "ms",
        "from the request's arrival to the response's last byte",
    ),
    ("istio_request_bytes", "histogram", "By", "headers and body of requests"),
    ("istio_response_bytes", "histogram", "By", "headers and body of responses"),
    ("istio_request_messages_total", "counter", "{message}", "messages of gRPC requests"),
    ("istio_response_messages_total", "counter", "{message}", "messages of gRPC responses"),
];

fn joined(bounds: &[f64]) -> String {
    bounds.iter().map(f64::to_string).collect::<Vec<_>>().join(" ")
}

fn quoted(labels: &[&str]) -> String {
    labels.iter().map(|label| format!("`{label}`")).collect::<Vec<_>>().join(", ")
}

fn written() -> String {
    let mut text = String::from(
        "# Metrics, spans and logs, name by name\n\n\
         Written from the code (`MESH_REGENERATE=1 cargo test -p mesh-tower --lib reference`); what it is all about is in\n\
         [telemetry.md](telemetry.md). Labels stand as Prometheus has them; those without a value are left out.\n\n\
         ## Istio's metrics of requests\n\n\
         With `MESH_METRICS_PROFILE=istio`, the default. Of both sides, by the label `reporter`.\n\n\
         | metric | type | unit | what |\n|---|---|---|---|\n",
    );
    for (name, kind, unit, what) in REQUESTS {
        let _ = writeln!(text, "| `{name}` | {kind} | {unit} | {what} |");
    }
    let _ = writeln!(text, "\nLabels: {}.\n\nBounds of all histograms: {}.", quoted(&LABELS), joined(&BUCKETS));
    let profiles = [
        ("istio", "Istio's metrics of connections whose bytes a gateway hands on"),
        ("otel", "OpenTelemetry's metrics (`MESH_METRICS_PROFILE=otel`)"),
        ("grpc", "gRPC's metrics (`MESH_METRICS_PROFILE=grpc`)"),
    ];
    for (profile, title) in profiles {
        let _ = writeln!(
            text,
            "\n## {title}\n\n| metric | of the convention | type | unit | labels | what |\n|---|---|---|---|---|---|"
        );
        let (mut bounds, mut seen) = (Vec::new(), BTreeSet::new());
        for table in TABLES.into_iter().filter(|table| table.profile == profile) {
            let labels: Vec<String> = table.labels.iter().map(|label| label.replace('.', "_")).collect();
            let labels = quoted(&labels.iter().map(String::as_str).collect::<Vec<_>>());
            for instrument in table.instruments {
                let Instrument { name, kind, unit, help } = instrument;
                let word = match kind {
                    Kind::Counter => "counter",
                    Kind::UpDown => "gauge",
                    Kind::Histogram(of) => {
                        if seen.insert(joined(of)) {
                            bounds.push((name, joined(of)));
                        }
                        "histogram"
                    }
                };
                let _ = writeln!(
                    text,
                    "| `{}` | `{name}` | {word} | {unit} | {labels} | {help} |",
                    prometheus_name(instrument)
                );
            }
        }
        for (name, bounds) in bounds {
            let _ = writeln!(text, "\nBounds of `{name}` and of what has the like: {bounds}.");
        }
    }
    text.push_str("\n## Of the process itself\n\n| metric | type | unit | labels | what |\n|---|---|---|---|---|\n");
    for (name, kind, unit, labels, what) in OWN {
        let labels: Vec<&str> = labels.split(", ").filter(|label| !label.is_empty()).collect();
        let _ = writeln!(text, "| `{name}` | {kind} | {unit} | {} | {what} |", quoted(&labels));
    }
    text.push_str("\n## Attributes of spans\n\nBeside these the tags that a `Telemetry` adds.\n\n| attribute | spans | what |\n|---|---|---|\n");
    for (name, spans, what) in ATTRIBUTES {
        let _ = writeln!(text, "| `{name}` | {spans} | {what} |");
    }
    text.push_str("\n## Operators of log lines\n\n| operator | what |\n|---|---|\n");
    for (name, what) in OPERATORS {
        let _ = writeln!(text, "| `%{name}%` | {what} |");
    }
    text
}

/// The code of this crate and of `mesh-core`, without tests.
fn sources() -> Vec<String> {
    fn read(folder: &Path, all: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                read(&path, all);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("telemetry/reference.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                all.push(text.split("\n#[cfg(test)]\nmod tests {").next().unwrap_or_default().to_owned());
            }
        }
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = Vec::new();
    read(&here.join("src"), &mut all);
    read(&here.join("../mesh-core/src"), &mut all);
    all
}

/// Words in quotation marks that begin so.
fn words<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
    let is_word = |word: &&str| word.bytes().all(|it| it.is_ascii_alphanumeric() || b"_.-".contains(&it));
    text.split('"').filter(move |word| word.starts_with(start) && word.len() > start.len()).filter(is_word)
}

/// TE1, TE2, TE3, TE12, TE16: the reference is what the code says, and leaves nothing out that the code tells.
#[test]
fn the_reference_is_what_the_code_says() {
    let known: BTreeSet<&str> = OWN.iter().map(|own| own.0).collect();
    let sources = sources();
    for text in &sources {
        for word in words(text, "mesh_").chain(words(text, "grpc_lb_")) {
            let is_metric = ["_total", "_seconds", "_failures", "forced"].iter().any(|end| word.ends_with(end));
            assert!(!is_metric || known.contains(word), "{word} is in no reference");
        }
        // Attributes stand in `facts([("name", value)])`.
        for part in text.split("facts([").skip(1) {
            let part = part.split("])").next().unwrap_or_default();
            for name in part.split("(\"").skip(1).filter_map(|rest| rest.split('"').next()) {
                // What has braces is made of a value.
                let is_known = name.contains('{') || ATTRIBUTES.iter().any(|attribute| attribute.0 == name);
                assert!(is_known, "{name} is in no reference");
            }
        }
    }
    let operators = sources.iter().find(|text| text.starts_with("//! The operators of log lines")).unwrap();
    let parsed = operators.split("\"START_TIME\" =>").nth(1).unwrap().split("=> Operator::Nothing").next().unwrap();
    let upper = |word: &&str| word.len() > 2 && word.bytes().all(|it| it.is_ascii_uppercase() || it == b'_');
    for name in parsed.split('"').filter(upper) {
        assert!(OPERATORS.iter().any(|operator| operator.0 == name), "{name} is in no reference");
    }

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/telemetry-reference.md");
    let written = written();
    if std::env::var_os("MESH_REGENERATE").is_some() {
        std::fs::write(&path, &written).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(there == written, "docs/telemetry-reference.md is not what the code says: MESH_REGENERATE=1 writes it");
}
