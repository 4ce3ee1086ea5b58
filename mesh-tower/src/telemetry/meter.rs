//! When the metrics of other conventions than Istio's are told, and with which values: by the layers, through what a call holds.
//!
//! Attempts and calls of clients, calls of servers. Names of methods are known once they were told; a server keeps only those
//! that its application answered otherwise than with `UNIMPLEMENTED`, so that callers cannot make names up. Targets are
//! spelled from configuration. Nothing is looked up and nothing is written where only Istio's metrics are asked for.

use std::{str::FromStr, sync::Arc, time::Duration};

use http::{Method, Version, uri::PathAndQuery};
use mesh_core::{
    cluster::Cluster,
    config::{self, Name},
    endpoint::Endpoint,
    outcome::{Failure, Outcome},
};

use super::{
    Telemetry, Teller,
    conventions::{
        BACKEND_SERVICE, CUSTOM, GRPC_AGAIN, GRPC_ATTEMPT, GRPC_CALL, GRPC_SERVED, GRPC_SERVED_STARTED, GRPC_STARTED,
        HTTP_CLIENT, HTTP_SERVER, LOCALITY, RPC_CLIENT, RPC_SERVER, SUBCHANNEL, Table, error_type, is_server_error,
        method_name, status_name,
    },
    sheet::{Line, Sheet},
};

/// By which conventions metrics are told. Default: Istio's alone.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MetricProfiles {
    /// `istio_requests_total` and what else Istio's dashboards and Kiali read.
    pub istio: bool,
    /// OpenTelemetry's semantic conventions: `http.*` and `rpc.*`.
    pub otel: bool,
    /// gRPC's own: `grpc.*` (gRFC A66, A78, A94, A96).
    pub grpc: bool,
    /// gRPC's label `grpc.lb.locality` (gRFC A78).
    pub locality: bool,
    /// gRPC's label `grpc.lb.backend_service` (gRFC A89).
    pub backend_service: bool,
    /// gRPC's label `grpc.client.call.custom`, of calls with a [`CallLabel`] (gRFC A108).
    pub custom: bool,
}

impl Default for MetricProfiles {
    fn default() -> Self {
        Self { istio: true, otel: false, grpc: false, locality: false, backend_service: false, custom: false }
    }
}

impl FromStr for MetricProfiles {
    type Err = String;

    /// `istio`, `otel`, `grpc` by commas, with gRPC's optional labels by their names; `none`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut profiles = Self { istio: false, ..Self::default() };
        for name in text.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            match name {
                "istio" => profiles.istio = true,
                "otel" => profiles.otel = true,
                "grpc" => profiles.grpc = true,
                LOCALITY => profiles.locality = true,
                BACKEND_SERVICE => profiles.backend_service = true,
                CUSTOM => profiles.custom = true,
                "none" => {}
                other => {
                    let may = format!("istio, otel, grpc, {LOCALITY}, {BACKEND_SERVICE}, {CUSTOM} and none");
                    return Err(format!("has {other:?}; it may have {may}, by commas"));
                }
            }
        }
        Ok(profiles)
    }
}

/// A response's extension by which an application says which of its routes a request took, `/reviews/{id}`: the label
/// `http.route`. Source: OpenTelemetry `http.route`.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct HttpRoute(pub Name);

/// A request's extension with what the application says of a gRPC call, out of few words: the label
/// `grpc.client.call.custom`, where that is asked for. Source: gRFC A108.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct CallLabel(pub Name);

/// What is measured beside Istio's metrics.
#[derive(Debug)]
pub(super) struct Measures {
    pub(super) profiles: MetricProfiles,
    pub(super) sheet: Arc<Sheet>,
}

impl Measures {
    pub(super) fn new(profiles: MetricProfiles) -> Self {
        Self { profiles, sheet: Sheet::open(super::metrics::is_theirs()) }
    }

    /// Is more measured of requests than Istio's metrics say?
    fn is_any(&self) -> bool {
        self.profiles.otel || self.profiles.grpc
    }

    /// Adds to a row.
    fn tell(&self, line: &Line<'_>, values: &[f64], spell: impl Fn(&Line<'_>) -> Vec<String>) -> bool {
        self.sheet.add(line, values, spell, true)
    }
}

/// One client call, as far as its metrics need to know.
#[derive(Debug)]
pub(crate) struct Meter {
    teller: Teller,
    method: &'static str,
    /// Of gRPC.
    path: Option<PathAndQuery>,
    /// What the application says of it.
    label: Option<Name>,
    /// Messages of a request that was all here.
    messages: u64,
}

/// How often a call was tried again, and how long it waited for that. Source: gRFC A96.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Again {
    pub(crate) retries: u32,
    pub(crate) unasked: u32,
    pub(crate) hedges: u32,
    pub(crate) delay: Duration,
}

impl Telemetry {
    /// Of a call that begins, where any is wanted.
    pub(crate) fn meter(&self, parts: &http::request::Parts, is_grpc: bool, messages: u64) -> Option<Meter> {
        if !self.shared.measures.is_any() {
            return None;
        }
        let path = if is_grpc { parts.uri.path_and_query().cloned() } else { None };
        let custom = is_grpc && self.shared.measures.profiles.custom;
        let label = if custom { parts.extensions.get().map(|CallLabel(label)| Name::clone(label)) } else { None };
        Some(Meter { teller: self.hold(), method: method_name(&parts.method), path, label, messages })
    }
}

/// Bytes of messages without the five that stand before each.
fn bare(bytes: u64, messages: u64) -> f64 {
    bytes.saturating_sub(messages.saturating_mul(5)) as f64
}

/// A status that is one: others are `UNKNOWN` to whoever reads them, and any number would be a row.
fn bounded(status: Option<u32>) -> u32 {
    status.filter(|status| *status <= 16).unwrap_or(2)
}

impl Meter {
    fn name(&self) -> &str {
        self.path.as_ref().map_or("", |path| path.path().trim_start_matches('/'))
    }

    /// Messages of a request that was all here.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    fn line<'a>(&'a self, table: &'static Table, cluster: Option<&'a Cluster>) -> Line<'a> {
        let config = cluster.map(Cluster::config);
        let service = config.and_then(|config| config.service.as_ref()).map(|service| &service.host);
        let name = if table.is_open { self.name() } else { self.method };
        let cluster = config.map_or("", |config| &*config.name);
        let label = self.label.as_ref().map_or("", |label| label);
        Line { table, texts: [name, cluster, label], numbers: [0; 3], admits: true, service, is_over: false }
    }

    /// An attempt of a gRPC call begins.
    pub(crate) fn began(&self, cluster: &Cluster) {
        let measures = self.teller.measures();
        if measures.profiles.grpc && self.path.is_some() {
            let spell = |line: &Line<'_>| vec![line.texts[0].to_owned(), target(line, Some(cluster)), label_of(line)];
            measures.tell(&self.line(&GRPC_STARTED, Some(cluster)), &[1.0], spell);
        }
    }

    /// An attempt has ended.
    pub(crate) fn tried(&self, cluster: &Cluster, endpoint: &Endpoint, tried: &Tried<'_>) {
        let measures = self.teller.measures();
        let seconds = tried.duration.as_secs_f64();
        let failure = tried.outcome.failure.map_or("", |failure| error_type(failure.details()));
        if self.path.is_none() {
            if measures.profiles.otel {
                let status = tried.outcome.status.unwrap_or(0);
                let mut line = self.line(&HTTP_CLIENT, Some(cluster));
                line.texts[2] = failure;
                line.numbers = [u32::from(status), u32::from(protocol(tried.version)), 0];
                let spell = |line: &Line<'_>| {
                    let (address, port) = address(line, Some(cluster));
                    let error = error_of(line.texts[2], line.numbers[0], 400);
                    let status = shown(line.numbers[0]);
                    vec![line.texts[0].to_owned(), address, port, status, error, version(line.numbers[1])]
                };
                measures.tell(&line, &[seconds], spell);
            }
            return;
        }
        if measures.profiles.grpc {
            let status = tried.outcome.grpc.or_else(|| tried.outcome.failure.map(Failure::grpc_status));
            let mut line = self.line(&GRPC_ATTEMPT, Some(cluster));
            let (level, place) = endpoint.place();
            // Apart only where that is told.
            let place = if measures.profiles.locality { [level, place] } else { [0; 2] };
            line.numbers = [bounded(status), place[0], place[1]];
            let spell = |line: &Line<'_>| {
                let status = status_name(line.numbers[0]).to_owned();
                let (place, name) = optional(line, measures.profiles, cluster, Some(endpoint));
                vec![line.texts[0].to_owned(), target(line, Some(cluster)), status, place, name, label_of(line)]
            };
            measures.tell(
                &line,
                &[seconds, bare(tried.sent.0, tried.sent.1), bare(tried.received.0, tried.received.1)],
                spell,
            );
        }
    }

    /// The call has ended.
    pub(crate) fn ended(&self, cluster: Option<&Cluster>, status: Option<u32>, duration: Duration, again: Again) {
        if self.path.is_none() {
            return;
        }
        let (measures, seconds, status) = (self.teller.measures(), duration.as_secs_f64(), bounded(status));
        if measures.profiles.otel {
            let mut line = self.line(&RPC_CLIENT, cluster);
            line.texts[2] = "";
            line.numbers[0] = status;
            let spell = |line: &Line<'_>| {
                let (address, port) = address(line, cluster);
                let status = status_name(line.numbers[0]);
                let error = if line.numbers[0] == 0 { "" } else { status };
                vec![line.texts[0].to_owned(), "grpc".to_owned(), address, port, status.to_owned(), error.to_owned()]
            };
            measures.tell(&line, &[seconds], spell);
        }
        if measures.profiles.grpc {
            let mut line = self.line(&GRPC_CALL, cluster);
            line.numbers[0] = status;
            let spell = |line: &Line<'_>| {
                let status = status_name(line.numbers[0]).to_owned();
                vec![line.texts[0].to_owned(), target(line, cluster), status, label_of(line)]
            };
            measures.tell(&line, &[seconds], spell);
            let Again { retries, unasked, hedges, delay } = again;
            if retries + unasked + hedges > 0 {
                let spell = |line: &Line<'_>| vec![line.texts[0].to_owned(), target(line, cluster), label_of(line)];
                let some = |count: u32| if count == 0 { f64::NAN } else { f64::from(count) };
                let values = [some(retries), some(unasked), some(hedges), delay.as_secs_f64()];
                measures.tell(&self.line(&GRPC_AGAIN, cluster), &values, spell);
            }
        }
    }
}

/// An attempt that has ended.
pub(crate) struct Tried<'a> {
    pub(crate) outcome: &'a Outcome,
    pub(crate) version: Version,
    pub(crate) duration: Duration,
    /// Bytes and messages.
    pub(crate) sent: (u64, u64),
    pub(crate) received: (u64, u64),
}

/// A request that a server has answered, or a caller has left.
pub(crate) struct Served<'a> {
    pub(crate) is_grpc: bool,
    pub(crate) path: &'a str,
    pub(crate) method: &'a Method,
    pub(crate) route: Option<&'a Name>,
    pub(crate) secure: bool,
    pub(crate) version: Version,
    pub(crate) status: u16,
    pub(crate) grpc: Option<u32>,
    /// It came to the application, and the answer is the application's.
    pub(crate) is_answered: bool,
    /// As its arrival was not told, since nobody knew its name.
    pub(crate) owed: bool,
    pub(crate) duration: Duration,
    /// Bytes and messages.
    pub(crate) sent: (u64, u64),
    pub(crate) received: (u64, u64),
}

impl Telemetry {
    /// A gRPC call came in; `false` if its name is not known, so that it is to be told later.
    pub(crate) fn served_began(&self, path: &str) -> bool {
        let measures = &self.shared.measures;
        if !measures.profiles.grpc {
            return true;
        }
        let line = served(&GRPC_SERVED_STARTED, path.trim_start_matches('/'), false);
        measures.sheet.add(&line, &[1.0], |line| vec![line.texts[0].to_owned()], false)
    }

    /// A request was served.
    pub(crate) fn served(&self, it: &Served<'_>) {
        let measures = &self.shared.measures;
        if !measures.is_any() {
            return;
        }
        let seconds = it.duration.as_secs_f64();
        if !it.is_grpc {
            if measures.profiles.otel {
                let mut line = served(&HTTP_SERVER, it.route.map_or("", |route| route), it.is_answered);
                line.texts[1] = method_name(it.method);
                line.texts[2] = if it.status == 0 { "cancelled" } else { "" };
                line.numbers = [u32::from(it.status), u32::from(protocol(it.version)), u32::from(it.secure)];
                let spell = |line: &Line<'_>| {
                    let scheme = if line.numbers[2] == 1 { "https" } else { "http" };
                    let error = error_of(line.texts[2], line.numbers[0], 500);
                    let (status, version) = (shown(line.numbers[0]), version(line.numbers[1]));
                    vec![line.texts[0].to_owned(), line.texts[1].to_owned(), scheme.to_owned(), status, error, version]
                };
                measures.tell(&line, &[seconds], spell);
            }
            return;
        }
        let name = it.path.trim_start_matches('/');
        // Who went away before the answer cancelled it.
        let status = if it.status == 0 { 1 } else { bounded(it.grpc) };
        let admits = it.is_answered && status != 12;
        if measures.profiles.otel {
            let mut line = served(&RPC_SERVER, name, admits);
            line.numbers[0] = status;
            let spell = |line: &Line<'_>| {
                let status = status_name(line.numbers[0]);
                let error = if is_server_error(line.numbers[0]) { status } else { "" };
                vec![line.texts[0].to_owned(), "grpc".to_owned(), status.to_owned(), error.to_owned()]
            };
            measures.tell(&line, &[seconds], spell);
        }
        if measures.profiles.grpc {
            let mut line = served(&GRPC_SERVED, name, admits);
            line.numbers[0] = status;
            let spell = |line: &Line<'_>| vec![line.texts[0].to_owned(), status_name(line.numbers[0]).to_owned()];
            measures.tell(&line, &[seconds, bare(it.sent.0, it.sent.1), bare(it.received.0, it.received.1)], spell);
            if it.owed {
                let line = served(&GRPC_SERVED_STARTED, name, admits);
                measures.tell(&line, &[1.0], |line| vec![line.texts[0].to_owned()]);
            }
        }
    }
}

fn served<'a>(table: &'static Table, name: &'a str, admits: bool) -> Line<'a> {
    Line { table, texts: [name, "", ""], numbers: [0; 3], admits, service: None, is_over: false }
}

/// gRPC's optional labels, as far as they are asked for.
fn optional(
    line: &Line<'_>,
    profiles: MetricProfiles,
    cluster: &Cluster,
    endpoint: Option<&Endpoint>,
) -> (String, String) {
    let place = endpoint.filter(|_| profiles.locality && !line.is_over).and_then(|it| cluster.locality_of(it));
    let place = place.map_or_else(String::new, |it| {
        format!("{{region=\"{}\", zone=\"{}\", sub_zone=\"{}\"}}", it.region, it.zone, it.sub_zone)
    });
    let name = if profiles.backend_service { line.texts[1].to_owned() } else { String::new() };
    (place, name)
}

/// What the application says of the call.
fn label_of(line: &Line<'_>) -> String {
    line.texts[2].to_owned()
}

/// What is called so as gRPC's libraries name it. Source: gRFC A66 `grpc.target`.
fn target(line: &Line<'_>, cluster: Option<&Cluster>) -> String {
    let Some(cluster) = cluster.filter(|_| !line.is_over) else { return line.table.other.to_owned() };
    match place_of(cluster.config()) {
        (host, Some(port)) => format!("xds:///{host}:{port}"),
        (host, None) => format!("xds:///{host}"),
    }
}

/// Target, locality and backend service of a connection, as far as they are asked for.
pub(super) fn labels_of_connection(profiles: MetricProfiles, cluster: &Cluster, endpoint: &Endpoint) -> [String; 3] {
    let texts = ["", &*cluster.config().name, ""];
    let line = Line { table: &SUBCHANNEL, texts, numbers: [0; 3], admits: true, service: None, is_over: false };
    let (place, name) = optional(&line, profiles, cluster, Some(endpoint));
    [target(&line, Some(cluster)), place, name]
}

/// `server.address` and `server.port`.
fn address(line: &Line<'_>, cluster: Option<&Cluster>) -> (String, String) {
    let Some(cluster) = cluster.filter(|_| !line.is_over) else { return (line.table.other.to_owned(), String::new()) };
    let (host, port) = place_of(cluster.config());
    (host.to_owned(), port.map_or_else(String::new, |port| port.to_string()))
}

/// The host of a cluster's service, and the port that Istio's names of clusters have.
fn place_of(config: &config::Cluster) -> (&str, Option<u16>) {
    let port = config.name.split('|').nth(1).and_then(|port| port.parse().ok());
    (config.service.as_ref().map_or(&*config.name, |service| &*service.host), port)
}

/// A failure's word, or the status where that is one.
fn error_of(failure: &str, status: u32, from: u32) -> String {
    match failure {
        "" if status >= from => status.to_string(),
        failure => failure.to_owned(),
    }
}

fn shown(status: u32) -> String {
    if status == 0 { String::new() } else { status.to_string() }
}

fn protocol(version: Version) -> u8 {
    match version {
        Version::HTTP_10 => 10,
        Version::HTTP_2 => 20,
        Version::HTTP_3 => 30,
        _ => 11,
    }
}

fn version(number: u32) -> String {
    match number {
        0 => String::new(),
        10 => "1.0".to_owned(),
        11 => "1.1".to_owned(),
        number => (number / 10).to_string(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// TE2, TE3, TE5: profiles and optional labels are named by commas; what is no name is refused by its own.
    #[test]
    fn profiles_are_chosen_by_name() {
        let of = |text: &str| text.parse::<MetricProfiles>();
        assert_eq!(of("istio").unwrap(), MetricProfiles::default());
        let all = of("istio, otel,grpc,grpc.lb.locality,grpc.lb.backend_service,grpc.client.call.custom").unwrap();
        assert!(all.istio && all.otel && all.grpc && all.locality && all.backend_service && all.custom);
        let none = of("none").unwrap();
        assert!(!none.istio && !none.otel && !none.grpc);
        assert!(of("datadog").unwrap_err().contains("\"datadog\""));
    }

    #[test]
    fn sizes_are_those_of_messages_alone() {
        assert_eq!((bare(15, 2), bare(3, 1)), (5.0, 0.0));
        assert_eq!((bounded(Some(4)), bounded(Some(77)), bounded(None)), (4, 2, 2));
        assert_eq!((error_of("", 503, 500), error_of("", 404, 500)), ("503".to_owned(), String::new()));
    }
}
