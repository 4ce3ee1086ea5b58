//! `meshctl top`: the requests of now by source, destination, method and path, as `linkerd viz top` shows them.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use crate::cli::{
    Failure,
    client::Server,
    output::Table,
    spans::{Call, Calls},
    tap::Wanted,
    values, watching,
};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Top {
    #[command(flatten)]
    wanted: Wanted,
    /// Lines at most.
    #[arg(long, default_value_t = 30, value_name = "N")]
    limit: usize,
    /// End after so long, and print the last look; on a terminal it goes on until interrupted.
    #[arg(long = "for", value_name = "DURATION", value_parser = values::duration)]
    time: Option<Duration>,
}

/// Requests that are alike.
#[derive(Clone, Debug, Default)]
struct Kin {
    count: u64,
    failures: u64,
    /// Microseconds.
    best: u64,
    worst: u64,
    last: u64,
}

/// Source, destination, method and path.
type Key = (String, String, String, String);

#[derive(Debug, Default)]
struct Board {
    kin: BTreeMap<Key, Kin>,
}

/// Different paths that are kept.
const MOST: usize = 10_000;

impl Top {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let mut calls = Calls::begin(server).await?;
        let (mut board, begun, mut is_first) = (Board::default(), Instant::now(), true);
        loop {
            let new = calls.next().await?;
            let has_news = !new.is_empty();
            new.iter().filter(|call| self.wanted.takes(call)).for_each(|call| board.add(call));
            let is_over = self.time.is_some_and(|time| begun.elapsed() >= time);
            // Whoever reads a file of it wants the end of the story, or each change.
            let is_shown = crate::cli::output::is_terminal() || is_over || (self.time.is_none() && has_news);
            if is_shown {
                watching::look(&board.table(self.limit).text(false), is_first)?;
                is_first = false;
            }
            if is_over {
                return Ok(());
            }
        }
    }
}

impl Board {
    fn add(&mut self, call: &Call) {
        let source = call.source.clone().unwrap_or_else(|| "outside".to_owned());
        let key = (source, call.destination.clone(), call.method.clone(), call.path.clone());
        if self.kin.len() >= MOST && !self.kin.contains_key(&key) {
            return;
        }
        let kin = self.kin.entry(key).or_insert_with(|| Kin { best: u64::MAX, ..Kin::default() });
        kin.count += 1;
        kin.failures += u64::from(call.is_error);
        kin.best = kin.best.min(call.duration);
        kin.worst = kin.worst.max(call.duration);
        kin.last = call.duration;
    }

    /// The most frequent first.
    fn table(&self, limit: usize) -> Table {
        let mut lines: Vec<(&Key, &Kin)> = self.kin.iter().collect();
        lines.sort_by_key(|(_, kin)| std::cmp::Reverse(kin.count));
        let time = |micros: u64| values::for_people(Duration::from_micros(micros));
        let rows = lines.into_iter().take(limit).map(|((source, destination, method, path), kin)| {
            vec![
                source.clone(),
                destination.clone(),
                method.clone(),
                path.clone(),
                kin.count.to_string(),
                time(kin.best),
                time(kin.worst),
                time(kin.last),
                format!("{:.2}%", 100.0 - 100.0 * kin.failures as f64 / kin.count.max(1) as f64),
            ]
        });
        let header = vec!["SOURCE", "DESTINATION", "METHOD", "PATH", "COUNT", "BEST", "WORST", "LAST", "SUCCESS"];
        Table { header, rows: rows.collect(), figures: 4 }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::cli::{spans, tests::snapshot};

    /// TE19: requests that are alike are one line, the most frequent first, and hostile paths cannot grow it.
    #[test]
    fn requests_that_are_alike_are_one_line() {
        let mut board = Board::default();
        let mut calls = spans::calls("t", &spans::tests::page());
        calls.iter().for_each(|call| board.add(call));
        calls.iter().filter(|call| call.path == "/reviews/0").for_each(|call| board.add(call));
        snapshot("top", &board.table(30).text(false));
        let one = calls.remove(0);
        (0..2 * MOST).for_each(|n| board.add(&Call { path: format!("/{n}"), ..one.clone() }));
        assert_eq!(board.kin.len(), MOST);
    }
}
