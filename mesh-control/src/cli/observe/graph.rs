//! `meshctl graph`: who calls whom at the moment, for people, for Graphviz, as a drawing or for programs. What is told is what the console
//! shows.

use clap::ValueEnum;
use serde::Deserialize;

use crate::cli::{Failure, client::Server, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Graph {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Table,
    Json,
    Dot,
    Svg,
}

#[derive(Debug, Deserialize)]
struct Answer {
    edges: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    from: String,
    to: String,
    protocol: String,
    rate: f64,
    errors: f64,
    p50: Option<f64>,
    p95: Option<f64>,
    p99: Option<f64>,
    mtls: Option<bool>,
}

impl Graph {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        match self.output {
            Format::Table => table(&server.get::<Answer>("/graph.json").await?.edges),
            Format::Json => output::data(&server.text("/graph.json").await?),
            Format::Dot => output::data(&server.text("/graph.dot").await?),
            Format::Svg => output::data(&server.text("/graph.svg").await?),
        }
    }
}

fn table(edges: &[Edge]) -> Result<(), Failure> {
    let header = ["FROM", "TO", "PROTOCOL", "RPS", "SUCCESS", "P50", "P95", "P99", "SECURED"];
    let millis = |of: Option<f64>| of.map_or_else(|| "-".to_owned(), |of| format!("{of:.0}ms"));
    let rows: Vec<Vec<String>> = edges
        .iter()
        .map(|edge| {
            let secured = match edge.mtls {
                Some(true) => "mtls",
                Some(false) => "plaintext",
                None => "<unknown>",
            };
            vec![
                edge.from.clone(),
                edge.to.clone(),
                edge.protocol.clone(),
                format!("{:.1}", edge.rate),
                format!("{:.2}%", (1.0 - edge.errors) * 100.0),
                millis(edge.p50),
                millis(edge.p95),
                millis(edge.p99),
                secured.to_owned(),
            ]
        })
        .collect();
    if rows.is_empty() {
        output::note("Nobody called anybody in the last quarter of an hour.");
        return Ok(());
    }
    output::data(&output::table(&header, &rows))
}
