//! The service graph, as JSON, as DOT and as SVG: who calls whom, how often, with what success, how fast, and how safely.
//!
//! Nodes are workloads, and services that were asked for and not reached. The layout of the SVG is the library's.

use std::{collections::BTreeMap, fmt::Write as _};

use layout::{
    backends::svg::SVGWriter,
    gv::{DotParser, GraphBuilder},
};
use mesh_core::telemetry::UNKNOWN;
use serde::Serialize;

use crate::api::observed::{Edge, Figures, Place};

/// More nodes are not drawn: nobody could read it. JSON and DOT have them all.
const DRAWN: usize = 100;

/// Who calls whom.
#[derive(Debug, PartialEq, Serialize)]
pub(super) struct Graph {
    nodes: Vec<Node>,
    edges: Vec<Line>,
}

#[derive(Debug, PartialEq, Serialize)]
struct Node {
    id: String,
    namespace: String,
    workload: String,
    service: String,
    version: String,
}

#[derive(Debug, PartialEq, Serialize)]
struct Line {
    from: String,
    to: String,
    host: String,
    protocol: String,
    #[serde(flatten)]
    figures: Figures,
    mtls: Option<bool>,
}

impl Graph {
    pub(super) fn of(edges: &[Edge]) -> Self {
        let mut nodes = BTreeMap::new();
        let mut end = |place: &Place, host: &str| {
            let id = id(place, host);
            nodes.entry(id.clone()).or_insert_with(|| Node {
                id: id.clone(),
                namespace: place.namespace.clone(),
                workload: place.workload.clone(),
                service: if place.workload == UNKNOWN { host.to_owned() } else { place.service.clone() },
                version: place.version.clone(),
            });
            id
        };
        let edges = edges.iter().map(|edge| Line {
            from: end(&edge.from, "outside"),
            to: end(&edge.to, &edge.host),
            host: edge.host.clone(),
            protocol: edge.protocol.clone(),
            figures: edge.figures,
            mtls: edge.mtls,
        });
        let edges = edges.collect();
        Self { nodes: nodes.into_values().collect(), edges }
    }

    /// For Graphviz.
    pub(super) fn dot(&self) -> String {
        let mut text = "digraph mesh {\n  rankdir=LR;\n  node [shape=box];\n".to_owned();
        for node in &self.nodes {
            let _ = writeln!(text, "  {} [label={}];", quoted(&node.id), quoted(&node.id));
        }
        for edge in &self.edges {
            let Figures { rate, errors, p95, .. } = edge.figures;
            let mut label = format!("{rate:.1}/s");
            if errors > 0.0 {
                let _ = write!(label, ", {:.1} % failed", errors * 100.0);
            }
            if let Some(p95) = p95 {
                let _ = write!(label, ", p95 {p95:.0} ms");
            }
            if edge.mtls == Some(true) {
                label += ", mTLS";
            }
            let colour = if errors > 0.05 { "red" } else { "black" };
            let _ = writeln!(
                text,
                "  {} -> {} [label={}, color={colour}];",
                quoted(&edge.from),
                quoted(&edge.to),
                quoted(&label)
            );
        }
        text + "}\n"
    }

    /// Drawn.
    pub(super) fn svg(&self) -> Result<String, String> {
        if self.nodes.len() > DRAWN {
            return Err(format!("{} workloads are too many to draw; /graph.dot has them all", self.nodes.len()));
        }
        let parsed = DotParser::new(&self.dot()).process()?;
        let mut builder = GraphBuilder::new();
        builder.visit_graph(&parsed);
        let mut graph = builder.get();
        let mut writer = SVGWriter::new();
        graph.do_it(false, false, false, &mut writer);
        Ok(writer.finalize())
    }
}

/// `reviews-v1.default`, or what was asked for when nobody answered.
fn id(place: &Place, host: &str) -> String {
    match place.workload.as_str() {
        UNKNOWN => host.to_owned(),
        workload => format!("{workload}.{}", place.namespace),
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn seen() -> Edge {
        let place = |workload: &str| Place {
            namespace: "default".to_owned(),
            workload: workload.to_owned(),
            service: workload.to_owned(),
            version: "v1".to_owned(),
        };
        Edge {
            from: place(UNKNOWN),
            to: place("reviews-v1"),
            host: "reviews".to_owned(),
            protocol: "http".to_owned(),
            figures: Figures { rate: 2.0, errors: 0.5, p50: Some(3.0), p95: Some(7.0), p99: Some(9.0) },
            mtls: Some(true),
            source_principal: String::new(),
            destination_principal: String::new(),
            outcomes: Vec::new(),
        }
    }

    /// TE20: the graph in Graphviz' language, with rate, failures, latency and mutual TLS on the edge, and drawn from that.
    #[test]
    fn the_graph_is_told_and_drawn() {
        let graph = Graph::of(&[seen()]);
        let dot = graph.dot();
        let edge = "\"outside\" -> \"reviews-v1.default\" [label=\"2.0/s, 50.0 % failed, p95 7 ms, mTLS\", color=red];";
        assert!(dot.contains(edge), "{dot}");
        let svg = graph.svg().unwrap();
        assert!(svg.contains("<svg") && svg.contains("reviews-v1.default"), "{svg}");
        assert_eq!(quoted("a\"b\\"), "\"a\\\"b\\\\\"");
    }
}
