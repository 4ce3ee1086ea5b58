//! Providers of a `MeshConfig`: who is asked whether requests may pass, and who is told of them.

use std::{collections::BTreeMap, time::Duration};

use mesh_core::config::{StringMatch, ToldBody};
use serde::{Deserialize, Serialize};

use crate::kinds::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// Where a provider is.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct ProviderAddress {
    /// Its full host name, without the namespace that may be written in front.
    pub host: String,
    /// Its port.
    pub port: u16,
}

/// Somebody who is asked whether a request may pass.
///
/// Source: `MeshConfig.ExtensionProvider.{envoy_ext_authz_http, envoy_ext_authz_grpc}`.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthzProvider {
    /// Where it is.
    pub at: ProviderAddress,
    /// It speaks gRPC; else HTTP.
    pub grpc: bool,
    /// How long it may take. Default 600 s.
    pub timeout: Duration,
    /// In front of the path, over HTTP.
    pub path_prefix: String,
    /// Without an answer requests pass.
    pub fail_open: bool,
    /// What requests are refused with for want of an answer. Default 403.
    pub status_on_error: u16,
    /// How much of the body is sent along.
    pub body: Option<ToldBody>,
    /// Headers sent along, over HTTP.
    pub include: Vec<StringMatch>,
    /// Headers added to the question, over HTTP.
    pub add: BTreeMap<String, String>,
    /// Headers of a yes that the application gets.
    pub to_upstream: Vec<StringMatch>,
    /// Headers of a no that the caller gets; empty is all.
    pub to_client: Vec<StringMatch>,
}

/// Somebody who is told of requests. Source: `MeshConfig.ExtensionProvider`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TelemetryProvider {
    /// `opentelemetry`: spans over OTLP.
    OpenTelemetry {
        /// Where it is.
        at: ProviderAddress,
        /// By HTTP at this path in place of gRPC. `http.path`.
        path: Option<String>,
    },
    /// `zipkin`.
    Zipkin {
        /// Where it is.
        at: ProviderAddress,
        /// Default `/api/v2/spans`.
        path: Option<String>,
    },
    /// `envoyFileAccessLog`.
    FileAccessLog {
        /// `/dev/stdout`.
        path: String,
        /// `logFormat.text`.
        text: Option<String>,
        /// `logFormat.labels`: a record of these.
        labels: BTreeMap<String, String>,
    },
    /// `envoyOtelAls`: access logs over OTLP.
    OtelAccessLog {
        /// Where it is.
        at: ProviderAddress,
        /// Default `otel_envoy_accesslog`.
        log_name: Option<String>,
        /// `logFormat.text`.
        text: Option<String>,
        /// `logFormat.labels`.
        labels: BTreeMap<String, String>,
    },
    /// `prometheus`.
    Prometheus,
}

fn address(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<ProviderAddress> {
    let service = fields.read("service", |node, path| reader.text(node, path));
    let port = fields.read("port", |node, path| reader.port(node, path));
    for (name, there) in [("service", service.is_some()), ("port", port.is_some())] {
        if !there && !fields.seen(name) {
            reader.missing(fields, name);
        }
    }
    let service = service?;
    let host = service.rsplit_once('/').map_or(service.value.as_str(), |(_, host)| host);
    if !host.contains('.') {
        reader.invalid(service.at, format!("{:?} is no full host name", service.value)).help =
            Some(format!("write {host}.NAMESPACE.svc.cluster.local"));
        return None;
    }
    Some(ProviderAddress { host: host.to_owned(), port: port? })
}

pub(super) fn authorizer(node: &Node, path: &str, grpc: bool, reader: &mut Reader<'_>) -> Option<AuthzProvider> {
    let mut fields = reader.fields(node, path)?;
    let at = address(&mut fields, reader);
    let mut out = AuthzProvider {
        at: ProviderAddress::default(),
        grpc,
        timeout: fields.read("timeout", |node, path| reader.some_time(node, path)).unwrap_or(Duration::from_secs(600)),
        path_prefix: String::new(),
        fail_open: fields.read("failOpen", |node, path| reader.boolean(node, path)).unwrap_or_default(),
        status_on_error: 403,
        body: None,
        include: Vec::new(),
        add: BTreeMap::new(),
        to_upstream: Vec::new(),
        to_client: Vec::new(),
    };
    if let Some(status) = fields.read("statusOnError", |node, path| reader.text(node, path)) {
        match status.parse() {
            Ok(code) if (400..600).contains(&code) => out.status_on_error = code,
            _ => drop(
                reader.invalid(status.at, format!("{path}.statusOnError {:?} is no status of a refusal", status.value)),
            ),
        }
    }
    if let Some((node, path)) = fields.take("includeRequestBodyInCheck") {
        out.body = told_body(node, &path, grpc, reader);
    }
    fields.ignored(reader, &["clearRouteCache"], "routes are always chosen after providers were asked");
    if !grpc {
        out.path_prefix = fields
            .read("pathPrefix", |node, path| reader.text(node, path))
            .map(|prefix| prefix.value)
            .unwrap_or_default();
        for name in ["includeHeadersInCheck", "includeRequestHeadersInCheck"] {
            out.include.extend(matches(&mut fields, name, reader));
        }
        out.add = fields
            .read("includeAdditionalHeadersInCheck", |node, path| Some(reader.labels(node, path)))
            .unwrap_or_default();
        out.to_upstream = matches(&mut fields, "headersToUpstreamOnAllow", reader);
        out.to_client = matches(&mut fields, "headersToDownstreamOnDeny", reader);
        fields.refused(
            reader,
            &["headersToDownstreamOnAllow"],
            "what a caller is told who may pass is the application's own answer",
        );
    }
    fields.close(reader);
    out.at = at?;
    Some(out)
}

fn told_body(node: &Node, path: &str, grpc: bool, reader: &mut Reader<'_>) -> Option<ToldBody> {
    let mut fields = reader.fields(node, path)?;
    let max_bytes = fields.read("maxRequestBytes", |node, path| reader.u32(node, path));
    let partial = fields.read("allowPartialMessage", |node, path| reader.boolean(node, path)).unwrap_or_default();
    let as_bytes = fields.read("packAsBytes", |node, path| reader.boolean(node, path)).unwrap_or_default();
    fields.close(reader);
    match max_bytes {
        Some(max_bytes @ 1..) => Some(ToldBody { max_bytes, partial, as_bytes: as_bytes && grpc }),
        _ => {
            reader.invalid(node.at, format!("{path}.maxRequestBytes must be greater than 0"));
            None
        }
    }
}

/// `x*` and `*x` are the beginning and the end, `*` anything; in any case, as headers are.
fn matches(fields: &mut Fields<'_>, name: &'static str, reader: &mut Reader<'_>) -> Vec<StringMatch> {
    let texts = fields.read(name, |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    let one = |text: At<String>| {
        let text = text.value.to_ascii_lowercase();
        match (text.strip_prefix('*'), text.strip_suffix('*')) {
            (Some(end), _) => StringMatch::Suffix { value: end.to_owned(), ignore_case: true },
            (_, Some(start)) => StringMatch::Prefix { value: start.to_owned(), ignore_case: true },
            _ => StringMatch::Exact { value: text, ignore_case: true },
        }
    };
    texts.into_iter().map(one).collect()
}

pub(super) fn telemetry(kind: &str, node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<TelemetryProvider> {
    let mut fields = reader.fields(node, path)?;
    let text = |fields: &mut Fields<'_>, name, reader: &mut Reader<'_>| {
        fields.read(name, |node, path| reader.text(node, path)).map(|it| it.value)
    };
    let out = match kind {
        "prometheus" => Some(TelemetryProvider::Prometheus),
        "opentelemetry" => {
            let at = address(&mut fields, reader);
            let mut path = None;
            if let Some((node, at)) = fields.take("http")
                && let Some(mut http) = reader.fields(node, &at)
            {
                path = text(&mut http, "path", reader);
                http.ignored(reader, &["timeout", "headers"], "spans are sent as the environment says");
                http.close(reader);
            }
            fields.ignored(
                reader,
                &[
                    "maxTagLength",
                    "resourceDetectors",
                    "dynatraceSampler",
                    "grpc",
                    "serviceAttributeEnrichment",
                    "initialMetadata",
                ],
                "spans are made as the environment says",
            );
            at.map(|at| TelemetryProvider::OpenTelemetry { at, path })
        }
        "zipkin" => {
            let at = address(&mut fields, reader);
            let path = text(&mut fields, "path", reader);
            fields.ignored(
                reader,
                &["maxTagLength", "enable64bitTraceId", "traceContextOption", "timeout", "headers"],
                "spans are made as the environment says",
            );
            at.map(|at| TelemetryProvider::Zipkin { at, path })
        }
        of => {
            let at = (of == "envoyOtelAls").then(|| address(&mut fields, reader));
            let path = text(&mut fields, "path", reader);
            let log_name = text(&mut fields, "logName", reader);
            let (mut format, mut labels) = (None, BTreeMap::new());
            if let Some((node, path)) = fields.take("logFormat")
                && let Some(mut map) = reader.fields(node, &path)
            {
                format = text(&mut map, "text", reader);
                labels = map.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
                map.close(reader);
            }
            fields.ignored(
                reader,
                &["omitEmptyValues", "filterStateObjectsToLog", "customTags"],
                "a record has all its fields",
            );
            match at {
                None => Some(TelemetryProvider::FileAccessLog {
                    path: path.unwrap_or_else(|| "/dev/stdout".to_owned()),
                    text: format,
                    labels,
                }),
                Some(at) => at.map(|at| TelemetryProvider::OtelAccessLog { at, log_name, text: format, labels }),
            }
        }
    };
    fields.close(reader);
    out
}
