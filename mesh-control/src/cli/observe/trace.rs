//! `meshctl trace`: the last traces, and one of them as a waterfall.

use std::{
    collections::HashMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_control::api::observed::{Span, Summary};

use crate::cli::{
    Failure,
    client::Server,
    output::{self, Format, Printing, Table},
    spans::{self, NONE, Wanted},
    values,
};

/// Columns of the drawing.
const WIDTH: u64 = 40;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl trace --service reviews --slower 100ms
  meshctl trace 4bf92f3577b34da6a3ce929d0e0e4736")]
pub(in crate::cli) struct Trace {
    /// Which, by its id or the beginning of it; the last ones without.
    id: Option<String>,
    /// Only traces with a part of this service.
    #[arg(long)]
    service: Option<String>,
    /// Only traces in which something failed.
    #[arg(long)]
    errors: bool,
    /// Only traces that took at least so long.
    #[arg(long, value_name = "DURATION", value_parser = values::duration)]
    slower: Option<Duration>,
    /// So many of them at most.
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    #[command(flatten)]
    printing: Printing,
}

impl Trace {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if let Some(id) = &self.id {
            let newest = Wanted { id, limit: Some(1), ..Wanted::default() };
            let traces = spans::list(server, &newest).await?;
            let found = traces.first().map_or(id, |it| &it.id);
            let spans = spans::spans(server, found).await?;
            return match self.printing.output {
                Format::Json => output::data(&output::json(&spans)?),
                Format::Yaml => output::data(&output::yaml(&spans)?),
                Format::Name => output::data(&format!("trace/{found}\n")),
                format => output::data(&waterfall(&spans, format == Format::Wide)),
            };
        }
        let wanted = Wanted {
            id: "",
            service: self.service.as_deref(),
            errors: self.errors,
            slower: self.slower.unwrap_or_default(),
            limit: Some(self.limit),
        };
        let traces = spans::list(server, &wanted).await?;
        self.printing.list(&traces, NONE, |_| table(&traces, SystemTime::now()), |it| format!("trace/{}", it.id))
    }
}

fn table(traces: &[Summary], now: SystemTime) -> Table {
    let rows = traces.iter().map(|it| {
        let since = now.duration_since(UNIX_EPOCH + Duration::from_micros(it.start)).unwrap_or_default();
        vec![
            it.id.clone(),
            it.name.clone(),
            it.services.join(","),
            it.spans.to_string(),
            if it.is_error { "error" } else { "ok" }.to_owned(),
            values::for_people(Duration::from_micros(it.duration)),
            output::short_duration(since),
        ]
    });
    let header = vec!["TRACE", "ROOT", "SERVICES", "SPANS", "STATUS", "DURATION", "AGE"];
    Table { header, rows: rows.collect(), figures: usize::MAX }
}

/// Spans below those that caused them, each with its stretch of the whole.
fn waterfall(spans: &[Span], wide: bool) -> String {
    let begin = spans.iter().map(|span| span.start).min().unwrap_or_default();
    let end = spans.iter().map(|span| span.start + span.duration).max().unwrap_or_default();
    let whole = (end - begin).max(1);
    let mut rows = Vec::new();
    for (span, depth) in nested(spans) {
        let from = ((span.start - begin) * WIDTH / whole).min(WIDTH - 1);
        let length = (span.duration * WIDTH / whole).clamp(1, WIDTH - from);
        let times = |text: &str, count: u64| text.repeat(usize::try_from(count).unwrap_or_default());
        let bar = times(" ", from) + &times(if span.is_error { "x" } else { "=" }, length);
        let mut row = vec![
            format!("{}{}", "  ".repeat(depth), span.service),
            span.kind.clone(),
            span.name.clone(),
            span.status().unwrap_or(if span.is_error { "no answer" } else { "-" }).to_owned(),
            values::for_people(Duration::from_micros(span.start - begin)),
            values::for_people(Duration::from_micros(span.duration)),
        ];
        if wide {
            row.push(span.attribute(&["upstream_cluster", "url.path"]).unwrap_or("-").to_owned());
        }
        row.push(bar);
        rows.push(row);
    }
    let mut header = vec!["SERVICE", "KIND", "NAME", "STATUS", "AFTER", "TOOK"];
    if wide {
        header.push("CLUSTER OR PATH");
    }
    header.push("");
    output::table(&header, &rows)
}

/// Every span once, after its parent and with its depth; whose parent is unknown is a root.
fn nested(spans: &[Span]) -> Vec<(&Span, usize)> {
    let mut children: HashMap<&str, Vec<&Span>> = HashMap::new();
    let mut roots = Vec::new();
    for span in spans {
        match spans.iter().any(|it| it.id == span.parent && it.id != span.id) {
            true => children.entry(&span.parent).or_default().push(span),
            false => roots.push(span),
        }
    }
    let mut open: Vec<(&Span, usize)> = roots.into_iter().rev().map(|span| (span, 0)).collect();
    let mut out = Vec::new();
    while let Some((span, depth)) = open.pop() {
        out.push((span, depth));
        // A cycle cannot be reached from a root; taking the children away makes sure of it.
        let below = children.remove(span.id.as_str()).unwrap_or_default();
        open.extend(below.into_iter().rev().map(|span| (span, depth + 1)));
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::{spans::tests::page, tests::snapshot};

    /// TE12: a trace is drawn with its attempts side by side below what caused them.
    #[test]
    fn a_trace_is_a_waterfall() {
        snapshot("trace", &waterfall(&page(), false));
        snapshot("trace-wide", &waterfall(&page(), true));
        let summary = Summary {
            id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            name: "GET productpage.default.svc.cluster.local/*".to_owned(),
            service: "productpage".to_owned(),
            start: 1_000_000,
            duration: 9_000,
            spans: 4,
            services: vec!["productpage".to_owned(), "reviews".to_owned()],
            is_error: true,
        };
        snapshot("traces", &table(&[summary], UNIX_EPOCH + Duration::from_secs(4)).text(false));
    }
}
