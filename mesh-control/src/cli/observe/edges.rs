//! `meshctl edges`: who calls whom, as whom, and how safely, as `linkerd viz edges` shows it.

use mesh_control::api::observed::{Edge, Live, UNKNOWN};
use serde::Serialize;

use crate::cli::{
    Failure,
    client::Server,
    live::{Moments, rate, success},
    output::{Printing, Table},
    watching::{self, Watching},
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Edges {
    /// Only of this workload, on either end, as NAME or NAME.NAMESPACE.
    workload: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    printing: Printing,
    #[command(flatten)]
    watching: Watching,
}

/// One line.
#[derive(Debug, Serialize)]
struct Line {
    src: String,
    dst: String,
    host: String,
    protocol: String,
    /// Whom the callee took the caller for.
    client_id: String,
    /// Whom the caller took the callee for.
    server_id: String,
    /// None where the callee says nothing.
    secured: Option<bool>,
    rps: f64,
    success: String,
}

impl Edges {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut moments = Moments::open(server).await?;
        let mut is_first = true;
        loop {
            let lines = self.lines(&moments.next().await?, server.namespace());
            if !self.watching.watch {
                let nothing = "Nobody called anybody in the last quarter of an hour.";
                let name = |line: &Line| format!("{}->{}", line.src, line.dst);
                return self.printing.list(&lines, nothing, |wide| table(&lines, wide), name);
            }
            watching::look(&table(&lines, false).text(self.printing.no_headers), is_first)?;
            is_first = false;
        }
    }

    fn lines(&self, live: &Live, namespace: &str) -> Vec<Line> {
        let is_wanted = |edge: &&Edge| {
            let is_here = [&edge.from, &edge.to].into_iter().any(|end| end.namespace == namespace);
            let is_it = |name: &String| {
                [&edge.from, &edge.to].into_iter().any(|end| end.workload == *name || end.name() == *name)
            };
            (self.all_namespaces || is_here) && self.workload.as_ref().is_none_or(is_it)
        };
        let line = |edge: &Edge| Line {
            src: edge.from.name(),
            dst: if edge.to.workload == UNKNOWN { edge.host.clone() } else { edge.to.name() },
            host: edge.host.clone(),
            protocol: edge.protocol.clone(),
            client_id: edge.source_principal.clone(),
            server_id: edge.destination_principal.clone(),
            secured: edge.mtls,
            rps: edge.figures.rate,
            success: success(&edge.figures),
        };
        live.edges.iter().filter(is_wanted).map(line).collect()
    }
}

fn table(lines: &[Line], wide: bool) -> Table {
    let mut header = vec!["SRC", "DST", "CLIENT_ID", "SERVER_ID", "SECURED"];
    if wide {
        header.extend(["HOST", "PROTOCOL", "SUCCESS", "RPS"]);
    }
    // An identity is known by its account; the trust domain is the same all over.
    let id = |id: &str| match id.split("/ns/").nth(1).and_then(|rest| rest.split_once("/sa/")) {
        Some((namespace, account)) => format!("{account}.{namespace}"),
        None if id.is_empty() => "<none>".to_owned(),
        None => id.to_owned(),
    };
    let rows = lines.iter().map(|line| {
        let secured = match line.secured {
            Some(true) => "√",
            Some(false) => "×",
            None => "-",
        };
        let mut row =
            vec![line.src.clone(), line.dst.clone(), id(&line.client_id), id(&line.server_id), secured.to_owned()];
        if wide {
            row.extend([line.host.clone(), line.protocol.clone(), line.success.clone(), rate(line.rps)]);
        }
        row
    });
    Table { header, rows: rows.collect(), figures: usize::MAX }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::live::tests::edge;

    /// TE19: who calls whom, by the identities both showed.
    #[test]
    fn edges_show_both_identities() {
        let mut plain = edge("v2", 10.0, 0.2, &[]);
        (plain.mtls, plain.source_principal) = (Some(false), String::new());
        let live = Live { edges: vec![edge("v1", 30.0, 0.0, &[]), plain], ..Live::default() };
        let printing = Printing { output: crate::cli::output::Format::Table, no_headers: false };
        let all = Edges { workload: None, all_namespaces: false, printing, watching: Watching { watch: false } };
        let lines = all.lines(&live, "default");
        crate::cli::tests::snapshot("edges", &table(&lines, false).text(false));
        crate::cli::tests::snapshot("edges-wide", &table(&lines, true).text(false));
        assert!(all.lines(&live, "shop").is_empty());
        let one = Edges { workload: Some("reviews-v2".to_owned()), ..all };
        assert_eq!(one.lines(&live, "default").len(), 1);
    }
}
