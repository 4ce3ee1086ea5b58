//! The mesh as the console sees it, second by second: what `stat`, `edges`, `routes`, `status` and a stepwise `shift` read.

use bytes::Bytes;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use mesh_control::api::observed::{Edge, Figures, Live};

use super::{FAILURE, Failure, client::Server};

/// The longest event read: a few thousand edges.
const LONGEST: usize = 32 << 20;
/// Moments of the mesh, one a second.
pub(super) struct Moments {
    body: Incoming,
    buffer: Vec<u8>,
}

impl Moments {
    pub(super) async fn open(server: &Server) -> Result<Self, Failure> {
        Ok(Self { body: server.stream("/console/live").await?, buffer: Vec::new() })
    }

    /// The moment that is, at first, and then each as it comes.
    pub(super) async fn next(&mut self) -> Result<Live, Failure> {
        let gone = || Failure::new(super::UNREACHABLE, "the control plane went away");
        let mut searched = 0;
        loop {
            let found = self.buffer.get(searched..).and_then(|new| new.windows(2).position(|two| two == b"\n\n"));
            if let Some(at) = found.map(|at| at + searched) {
                let event: Vec<u8> = self.buffer.drain(..at + 2).collect();
                searched = 0;
                let text = String::from_utf8_lossy(&event);
                let data: String =
                    text.lines().filter_map(|line| line.strip_prefix("data:")).map(str::trim_start).collect();
                // Comments keep the connection alive; the very first event may come before anybody was looked at.
                if !data.is_empty() && data != "{}" {
                    return serde_json::from_str(&data).map_err(|error| {
                        Failure::new(FAILURE, format!("the control plane tells of the mesh in other words: {error}"))
                    });
                }
                continue;
            }
            searched = self.buffer.len().saturating_sub(1);
            if searched > LONGEST {
                return Err(Failure::new(FAILURE, "the control plane tells too much at once"));
            }
            let frame = self.body.frame().await.ok_or_else(gone)?.map_err(|_| gone())?;
            self.buffer.extend_from_slice(&frame.into_data().unwrap_or_else(|_| Bytes::new()));
        }
    }
}

/// `12.3`.
pub(super) fn rate(rate: f64) -> String {
    format!("{rate:.1}")
}

/// `99.50%`, or nothing where there was no request.
pub(super) fn success(figures: &Figures) -> String {
    if figures.rate > 0.0 { format!("{:.2}%", (1.0 - figures.errors) * 100.0) } else { "-".to_owned() }
}

/// `7ms`, with a digit more below ten.
pub(super) fn millis(of: Option<f64>) -> String {
    match of {
        None => "-".to_owned(),
        Some(of) if of < 10.0 => format!("{of:.1}ms"),
        Some(of) => format!("{of:.0}ms"),
    }
}

/// What several edges add up to. Percentiles are those of the worst: what they are together is not known from their parts.
pub(super) fn sum<'a>(edges: impl Iterator<Item = &'a Edge>) -> Figures {
    let (mut out, mut failed) = (Figures::default(), 0.0);
    let worst = |a: Option<f64>, b: Option<f64>| match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    };
    for edge in edges {
        let figures = edge.figures;
        out.rate += figures.rate;
        failed += figures.rate * figures.errors;
        out.p50 = worst(out.p50, figures.p50);
        out.p95 = worst(out.p95, figures.p95);
        out.p99 = worst(out.p99, figures.p99);
    }
    out.errors = if out.rate > 0.0 { failed / out.rate } else { 0.0 };
    out
}

#[cfg(test)]
pub(super) mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_control::api::observed::{Outcome, Place, UNKNOWN};

    use super::*;

    /// An edge to `reviews` of `version`, with so many requests a second.
    pub(crate) fn edge(version: &str, rate: f64, errors: f64, outcomes: &[(&str, u64)]) -> Edge {
        let place = |workload: String| Place {
            namespace: "default".to_owned(),
            workload,
            service: "reviews".to_owned(),
            version: version.to_owned(),
        };
        let outcome = |(code, count): &(&str, u64)| {
            (Outcome { code: (*code).to_owned(), grpc: UNKNOWN.to_owned(), flags: "-".to_owned() }, *count)
        };
        Edge {
            from: Place { version: "v1".to_owned(), ..place("productpage-v1".to_owned()) },
            to: place(format!("reviews-{version}")),
            host: "reviews.default.svc.cluster.local".to_owned(),
            protocol: "http".to_owned(),
            figures: Figures { rate, errors, p50: Some(4.0), p95: Some(rate), p99: Some(40.0) },
            mtls: Some(true),
            source_principal: "spiffe://cluster.local/ns/default/sa/bookinfo-productpage".to_owned(),
            destination_principal: "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".to_owned(),
            outcomes: outcomes.iter().map(outcome).collect(),
        }
    }

    #[test]
    fn edges_add_up() {
        let edges = [edge("v1", 30.0, 0.0, &[]), edge("v2", 10.0, 0.2, &[])];
        let all = sum(edges.iter());
        assert_eq!((all.rate, all.p95), (40.0, Some(30.0)));
        assert!((all.errors - 0.05).abs() < 1e-9);
        assert_eq!(
            (success(&all), rate(all.rate), millis(all.p50)),
            ("95.00%".to_owned(), "40.0".to_owned(), "4.0ms".to_owned())
        );
        assert_eq!(success(&sum([].iter())), "-");
    }

    #[test]
    fn failures_are_as_the_console_counts_them() {
        let of = |code: &str, grpc: &str| {
            Outcome { code: code.to_owned(), grpc: grpc.to_owned(), flags: String::new() }.is_failure()
        };
        assert!(of("503", UNKNOWN) && of("0", UNKNOWN) && of("200", "14") && of("200", "5"));
        assert!(!of("404", UNKNOWN) && !of("200", "0") && !of("200", ""));
    }
}
