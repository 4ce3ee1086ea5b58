//! `meshctl routes`: the routes of hosts beside the requests they got: what was asked for, and what came of it.

use mesh_control::{
    api::{
        Objects,
        observed::{Edge, Live},
    },
    kinds::Kind,
};
use mesh_core::config::Labels;
use serde::Serialize;

use crate::cli::{
    Failure,
    client::Server,
    live::{Moments, millis, rate, success, sum},
    output::{Printing, Table},
    rules, values,
    watching::{self, Watching},
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Routes {
    /// Only of this host.
    host: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    watching: Watching,
}

/// One destination of one route.
#[derive(Debug, Serialize)]
struct Line {
    host: String,
    /// May be empty.
    route: String,
    matches: String,
    destination: String,
    /// In percent, as asked for.
    weight: u64,
    /// In percent of the host's requests, as they went; none without requests.
    actual: Option<f64>,
    rps: f64,
    success: String,
    p95: Option<f64>,
}

impl Routes {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut moments = Moments::open(server).await?;
        let mut is_first = true;
        loop {
            let live = moments.next().await?;
            let objects: Objects = server.get("/objects").await?;
            let lines = self.lines(&objects, &live, server.namespace());
            if !self.watching.watch {
                let nothing = "There is no rule about it: requests go to all workloads of a service alike.";
                let name = |line: &Line| format!("{}/{}", line.host, line.destination);
                return self.printing.list(&lines, nothing, |_| table(&lines), name);
            }
            watching::look(&table(&lines).text(self.printing.no_headers), is_first)?;
            is_first = false;
        }
    }

    fn lines(&self, objects: &Objects, live: &Live, namespace: &str) -> Vec<Line> {
        let mut lines = Vec::new();
        for item in rules::of_kind(&objects.items, Kind::VirtualService) {
            let here = &item.key.namespace;
            if !self.all_namespaces && here != namespace {
                continue;
            }
            for route in rules::routes(&item.object) {
                for (to, subset, weight) in &route.to {
                    let host = values::full_host(to, here);
                    let wanted = self.host.as_ref().map(|wanted| values::full_host(wanted, namespace));
                    if wanted.is_some_and(|wanted| wanted != host) {
                        continue;
                    }
                    let labels = labels_of(objects, &host, subset);
                    let all: Vec<&Edge> = live.edges.iter().filter(|edge| edge.host == host).collect();
                    let own = all.iter().copied().filter(|edge| is_of(edge, &labels));
                    let (own, all) = (sum(own), sum(all.iter().copied()));
                    lines.push(Line {
                        host: host.clone(),
                        route: route.name.clone(),
                        matches: route.matches.clone(),
                        destination: if subset.is_empty() { to.clone() } else { subset.clone() },
                        weight: *weight,
                        actual: (all.rate > 0.0).then(|| own.rate / all.rate * 100.0),
                        rps: own.rate,
                        success: success(&own),
                        p95: own.p95,
                    });
                }
            }
        }
        lines
    }
}

/// The labels of a subset; none for the whole host.
fn labels_of(objects: &Objects, host: &str, subset: &str) -> Labels {
    let rules = rules::about(&objects.items, Kind::DestinationRule, host);
    let subsets = rules.first().map(|rule| rules::subsets(&rule.object)).unwrap_or_default();
    subsets.into_iter().find(|(name, _)| name == subset).map(|(_, labels)| labels).unwrap_or_default()
}

/// Metrics tell of a workload its version alone.
fn is_of(edge: &Edge, labels: &Labels) -> bool {
    labels.get("version").is_none_or(|version| edge.to.version == *version)
}

fn table(lines: &[Line]) -> Table {
    let rows = lines.iter().map(|line| {
        vec![
            line.host.split('.').next().unwrap_or_default().to_owned(),
            line.matches.clone(),
            line.destination.clone(),
            format!("{}%", line.weight),
            line.actual.map_or_else(|| "-".to_owned(), |share| format!("{share:.1}%")),
            line.success.clone(),
            rate(line.rps),
            millis(line.p95),
        ]
    });
    let header = vec!["HOST", "MATCH", "DESTINATION", "WEIGHT", "ACTUAL", "SUCCESS", "RPS", "LATENCY_P95"];
    Table { header, rows: rows.collect(), figures: 3 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_control::{api::Item, kinds::Key};
    use serde_json::json;

    use super::*;
    use crate::cli::{live::tests::edge, output::Format, tests::snapshot};

    /// TE19: what weights ask for stands beside what became of it.
    #[test]
    fn weights_stand_beside_what_happened() {
        let item = |kind, object| Item { key: Key::new(kind, "default", "reviews"), created: 0, object };
        let to =
            |subset: &str, weight: u32| json!({"destination": {"host": "reviews", "subset": subset}, "weight": weight});
        let subset = |name: &str| json!({"name": name, "labels": {"version": name}});
        let objects = Objects {
            items: vec![
                item(
                    Kind::DestinationRule,
                    json!({"spec": {"host": "reviews", "subsets": [subset("v1"), subset("v2")]}}),
                ),
                item(
                    Kind::VirtualService,
                    json!({"spec": {"hosts": ["reviews"], "http": [{"route": [to("v1", 80), to("v2", 20)]}]}}),
                ),
            ],
        };
        let live = Live { edges: vec![edge("v1", 30.0, 0.0, &[]), edge("v2", 10.0, 0.2, &[])], ..Live::default() };
        let printing = Printing { output: Format::Table, no_headers: false };
        let all = Routes { host: None, all_namespaces: false, printing, watching: Watching { watch: false } };
        snapshot("routes", &table(&all.lines(&objects, &live, "default")).text(false));
        let other = Routes { host: Some("ratings".to_owned()), ..all };
        assert!(other.lines(&objects, &live, "default").is_empty());
    }
}
