//! `meshctl stat`: success, rate and latency of what answers, as `linkerd viz stat` shows them.

use std::collections::BTreeMap;

use mesh_control::api::observed::{Edge, Figures, Live, UNKNOWN};
use serde::Serialize;

use crate::cli::{
    Failure,
    client::Server,
    live::{Moments, millis, rate, success, sum},
    output::{Printing, Table},
    watching::{self, Watching},
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl stat
  meshctl stat service reviews
  meshctl stat workload -A -w")]
pub(in crate::cli) struct Stat {
    /// What to look at: workload or service.
    #[arg(default_value = "workload", value_parser = ["workload", "workloads", "service", "services", "svc"], hide_possible_values = true)]
    what: String,
    /// Which; all of them without.
    name: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Only requests of this workload, as NAME or NAME.NAMESPACE.
    #[arg(long, value_name = "WORKLOAD")]
    from: Option<String>,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    watching: Watching,
}

/// One line.
#[derive(Debug, PartialEq, Serialize)]
struct Line {
    namespace: String,
    name: String,
    /// Workloads that call it.
    clients: usize,
    /// 0 to 1; none without requests.
    success: Option<f64>,
    rps: f64,
    /// Milliseconds.
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    /// 0 to 1: of the clients' connections, those with mutual TLS.
    secured: Option<f64>,
}

impl Stat {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut moments = Moments::open(server).await?;
        let mut is_first = true;
        loop {
            let lines = self.lines(&moments.next().await?, server.namespace());
            if !self.watching.watch {
                let table = |_| self.table(&lines);
                let kind = if self.is_service() { "service" } else { "workload" };
                let nothing = "Nobody was asked for anything in the last quarter of an hour.";
                return self.printing.list(&lines, nothing, table, |line| format!("{kind}/{}", line.name));
            }
            watching::look(&self.table(&lines).text(self.printing.no_headers), is_first)?;
            is_first = false;
        }
    }

    fn is_service(&self) -> bool {
        self.what.starts_with('s')
    }

    fn lines(&self, live: &Live, namespace: &str) -> Vec<Line> {
        let mut of: BTreeMap<(String, String), Vec<&Edge>> = BTreeMap::new();
        for edge in &live.edges {
            let (service, place) = service_of(edge);
            let key = if self.is_service() {
                (place, service)
            } else {
                (edge.to.namespace.clone(), edge.to.workload.clone())
            };
            let by = |from: &String| edge.from.workload == *from || edge.from.name() == *from;
            let is_wanted = (self.all_namespaces || key.0 == namespace)
                && self.name.as_ref().is_none_or(|name| key.1 == *name || format!("{}.{}", key.1, key.0) == *name)
                && self.from.as_ref().is_none_or(by)
                && key.1 != UNKNOWN;
            if is_wanted {
                of.entry(key).or_default().push(edge);
            }
        }
        of.into_iter().map(|((namespace, name), edges)| Line::of(namespace, name, &edges)).collect()
    }

    fn table(&self, lines: &[Line]) -> Table {
        let mut header =
            vec!["NAME", "CLIENTS", "SUCCESS", "RPS", "LATENCY_P50", "LATENCY_P95", "LATENCY_P99", "SECURED"];
        if self.all_namespaces {
            header.insert(0, "NAMESPACE");
        }
        let figures = if self.all_namespaces { 2 } else { 1 };
        let rows = lines.iter().map(|line| {
            let figures = Figures {
                rate: line.rps,
                errors: 1.0 - line.success.unwrap_or(1.0),
                p50: line.p50,
                p95: line.p95,
                p99: line.p99,
            };
            let mut row = vec![
                line.name.clone(),
                line.clients.to_string(),
                success(&figures),
                rate(line.rps),
                millis(line.p50),
                millis(line.p95),
                millis(line.p99),
                line.secured.map_or_else(|| "-".to_owned(), |share| format!("{:.0}%", share * 100.0)),
            ];
            if self.all_namespaces {
                row.insert(0, line.namespace.clone());
            }
            row
        });
        Table { header, rows: rows.collect(), figures }
    }
}

impl Line {
    fn of(namespace: String, name: String, edges: &[&Edge]) -> Self {
        let Figures { rate, errors, p50, p95, p99 } = sum(edges.iter().copied());
        let mut clients: Vec<_> = edges.iter().map(|edge| &edge.from).collect();
        clients.sort();
        clients.dedup();
        let known = edges.iter().filter_map(|edge| edge.mtls);
        let (secure, all) = known.fold((0, 0), |(secure, all), mtls| (secure + u32::from(mtls), all + 1));
        Self {
            namespace,
            name,
            clients: clients.len(),
            success: (rate > 0.0).then_some(1.0 - errors),
            rps: rate,
            p50,
            p95,
            p99,
            secured: (all > 0).then(|| f64::from(secure) / f64::from(all)),
        }
    }
}

/// The name and the namespace of the service that was asked for.
fn service_of(edge: &Edge) -> (String, String) {
    let mut parts = edge.host.split('.');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(name), Some(namespace), Some("svc")) => (name.to_owned(), namespace.to_owned()),
        _ => (edge.host.clone(), edge.to.namespace.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::live::tests::edge;

    fn stat(what: &str) -> Stat {
        use clap::Parser;
        #[derive(clap::Parser)]
        struct Own {
            #[command(flatten)]
            stat: Stat,
        }
        Own::parse_from(["stat", what]).stat
    }

    /// TE19: what answers, with success, rate and latency, by workload and by service.
    #[test]
    fn what_answers_is_told_by_workload_and_service() {
        let live = Live { edges: vec![edge("v1", 30.0, 0.0, &[]), edge("v2", 10.0, 0.2, &[])], ..Live::default() };
        let by_workload = stat("workload");
        crate::cli::tests::snapshot(
            "stat-workload",
            &by_workload.table(&by_workload.lines(&live, "default")).text(false),
        );
        let by_service = stat("svc");
        crate::cli::tests::snapshot("stat-service", &by_service.table(&by_service.lines(&live, "default")).text(false));
        assert!(by_service.lines(&live, "shop").is_empty());
    }
}
