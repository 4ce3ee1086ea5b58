//! Names of metrics and labels: Istio's, so that its dashboards and Kiali read ours. Counting is the caller's.
//!
//! Labels stand in the order of Envoy's own output; a value nobody knows is [`UNKNOWN`]. Source: Istio `stats` filter.

use crate::config::Labels;

/// Counter of requests, HTTP and gRPC.
pub const REQUESTS_TOTAL: &str = "istio_requests_total";
/// Histogram of durations in milliseconds.
pub const REQUEST_DURATION: &str = "istio_request_duration_milliseconds";
/// Histogram of request bytes on the wire, headers and body.
pub const REQUEST_BYTES: &str = "istio_request_bytes";
/// Histogram of response bytes on the wire, headers and body.
pub const RESPONSE_BYTES: &str = "istio_response_bytes";
/// Counter of gRPC messages sent to a server.
pub const REQUEST_MESSAGES_TOTAL: &str = "istio_request_messages_total";
/// Counter of gRPC messages sent by a server.
pub const RESPONSE_MESSAGES_TOTAL: &str = "istio_response_messages_total";
/// Counter of connections opened.
pub const TCP_CONNECTIONS_OPENED_TOTAL: &str = "istio_tcp_connections_opened_total";
/// Counter of connections closed.
pub const TCP_CONNECTIONS_CLOSED_TOTAL: &str = "istio_tcp_connections_closed_total";
/// Counter of bytes of responses, as seen from the server.
pub const TCP_SENT_BYTES_TOTAL: &str = "istio_tcp_sent_bytes_total";
/// Counter of bytes of requests, as seen from the server.
pub const TCP_RECEIVED_BYTES_TOTAL: &str = "istio_tcp_received_bytes_total";
/// Counter of endpoints ejected as outliers, by cluster and by what found them. Source: gRFC A91.
pub const EJECTIONS_ENFORCED: &str = "grpc_lb_outlier_detection_ejections_enforced";
/// TLS connections that did not come about, by `direction` (`inbound`, `outbound`) and `reason`.
pub const TLS_REFUSED: &str = "mesh_tls_refused_total";
/// TLS connections that were ended because they could not stand any longer, or take no new requests, by `direction` and
/// `reason`.
pub const TLS_RETIRED: &str = "mesh_tls_retired_total";
/// Counter of outliers found and not ejected, by cluster, what found them, and why not. Source: gRFC A91.
pub const EJECTIONS_UNENFORCED: &str = "grpc_lb_outlier_detection_ejections_unenforced";
/// Gauge of 1 with labels `component` and `tag`.
pub const BUILD: &str = "istio_build";

/// Upper bounds of every histogram, milliseconds and bytes alike: Envoy's defaults.
pub const BUCKETS: [f64; 19] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
];

/// Labels of the request metrics, in Envoy's order.
pub const LABELS: [&str; 25] = [
    "reporter",
    "source_workload",
    "source_canonical_service",
    "source_canonical_revision",
    "source_workload_namespace",
    "source_principal",
    "source_app",
    "source_version",
    "source_cluster",
    "destination_workload",
    "destination_workload_namespace",
    "destination_principal",
    "destination_app",
    "destination_version",
    "destination_service",
    "destination_canonical_service",
    "destination_canonical_revision",
    "destination_service_name",
    "destination_service_namespace",
    "destination_cluster",
    "request_protocol",
    "response_code",
    "grpc_response_status",
    "response_flags",
    "connection_security_policy",
];

/// Of a label nobody knows the value of.
pub const UNKNOWN: &str = "unknown";
/// Of a canonical revision nobody knows.
pub const LATEST: &str = "latest";
/// Label `reporter` of a client.
pub const REPORTER_SOURCE: &str = "source";
/// Label `reporter` of a server.
pub const REPORTER_DESTINATION: &str = "destination";
/// Label `connection_security_policy` of a server over mutual TLS; a client always says [`UNKNOWN`].
pub const MUTUAL_TLS: &str = "mutual_tls";
/// Label `connection_security_policy` of a server in plaintext.
pub const NO_TLS: &str = "none";

/// Label `request_protocol`.
pub const fn request_protocol(is_grpc: bool) -> &'static str {
    if is_grpc { "grpc" } else { "http" }
}

/// Label `request_protocol` of a connection whose bytes nobody looks into.
pub const TCP: &str = "tcp";

/// Counts the messages of a gRPC body as its chunks pass, however they are cut: each has five bytes before it, of which
/// four say how long it is. Source: gRPC over HTTP/2, `Length-Prefixed-Message`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Messages {
    count: u64,
    /// Bytes of a message's head that have passed.
    head: u8,
    /// What they say so far.
    length: u32,
    /// Bytes of the message still to come.
    left: u32,
}

impl Messages {
    /// Those of a body that is all here.
    pub fn of(body: &[u8]) -> u64 {
        let mut messages = Self::default();
        messages.passed(body);
        messages.count
    }

    /// The next chunk of the body.
    pub fn passed(&mut self, mut chunk: &[u8]) {
        loop {
            let inside = usize::try_from(self.left).unwrap_or(usize::MAX).min(chunk.len());
            self.left = self.left.saturating_sub(u32::try_from(inside).unwrap_or(u32::MAX));
            chunk = chunk.get(inside..).unwrap_or_default();
            if self.left > 0 {
                return;
            }
            while self.head < 5 {
                let Some((byte, rest)) = chunk.split_first() else { return };
                // The first says whether it is compressed.
                if self.head > 0 {
                    self.length = self.length << 8 | u32::from(*byte);
                }
                self.head += 1;
                chunk = rest;
            }
            self.count += 1;
            self.left = self.length;
            (self.head, self.length) = (0, 0);
        }
    }

    /// Messages begun so far.
    pub fn count(&self) -> u64 {
        self.count
    }
}

/// A value for a label: itself, or [`UNKNOWN`] when empty.
pub const fn or_unknown(value: &str) -> &str {
    if value.is_empty() { UNKNOWN } else { value }
}

/// The canonical service of a workload: the first of three labels, else the workload's name.
pub fn canonical_name<'a>(labels: &'a Labels, workload: &'a str) -> &'a str {
    first_of(labels, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"]).unwrap_or(workload)
}

/// The canonical revision of a workload: the first of three labels, else [`LATEST`].
pub fn canonical_revision(labels: &Labels) -> &str {
    first_of(labels, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"]).unwrap_or(LATEST)
}

fn first_of<'a>(labels: &'a Labels, names: &[&str]) -> Option<&'a str> {
    names.iter().find_map(|name| labels.get(*name)).map(String::as_str).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// TE1: messages are counted by what their heads say, wherever the chunks are cut.
    #[test]
    fn messages_are_counted_however_they_are_cut() {
        let body = [&[0, 0, 0, 0, 3][..], b"abc", &[1, 0, 0, 0, 0], &[0, 0, 0, 1, 0], &[7; 256]].concat();
        assert_eq!(Messages::of(&body), 3);
        for size in [1, 2, 3, 4, 5, 6, 7, 100] {
            let mut messages = Messages::default();
            body.chunks(size).for_each(|chunk| messages.passed(chunk));
            assert_eq!(messages.count(), 3, "in chunks of {size}");
            messages.passed(&[0, 0, 0, 0]);
            assert_eq!(messages.count(), 3, "a head that is not whole");
        }
        assert_eq!(Messages::of(&[]), 0);
    }

    #[test]
    fn canonical_names_fall_back_in_order() {
        let labels = |pairs: &[(&str, &str)]| -> Labels {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let app = ("app", "reviews");
        let kubernetes = ("app.kubernetes.io/name", "kube");
        let istio = ("service.istio.io/canonical-name", "istio");
        assert_eq!(canonical_name(&labels(&[app, kubernetes, istio]), "reviews-v1"), "istio");
        assert_eq!(canonical_name(&labels(&[app, kubernetes]), "reviews-v1"), "kube");
        assert_eq!(canonical_name(&labels(&[app]), "reviews-v1"), "reviews");
        assert_eq!(canonical_name(&labels(&[]), "reviews-v1"), "reviews-v1");
        assert_eq!(canonical_revision(&labels(&[("version", "v1")])), "v1");
        assert_eq!(canonical_revision(&labels(&[])), "latest");
        assert_eq!((or_unknown(""), or_unknown("x")), ("unknown", "x"));
    }

    /// TE1: nineteen buckets and twenty-five labels, as Istio has them.
    #[test]
    fn buckets_and_labels_are_in_order_without_repeats() {
        assert!(BUCKETS.windows(2).all(|pair| pair[0] < pair[1]));
        let unique: std::collections::BTreeSet<_> = LABELS.iter().collect();
        assert_eq!(unique.len(), LABELS.len());
    }
}
