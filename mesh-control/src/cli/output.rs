//! Printing: data on standard output, the rest on standard error, tables as kubectl lays them out.

use std::{
    fmt::Write as _,
    io::{ErrorKind, IsTerminal as _, Write},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anstream::ColorChoice;
use clap::ValueEnum;
use mesh_control::{diagnostic::Diagnostic, kinds::Key};
use serde_json::{Value, json};

use super::{Colour, FAILURE, Failure};

/// `--quiet`.
static QUIET: AtomicBool = AtomicBool::new(false);

/// How to print, in kubectl's words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, ValueEnum)]
pub(super) enum Format {
    /// Columns under a header.
    #[default]
    Table,
    /// The same with more columns.
    Wide,
    Yaml,
    Json,
    /// KIND/NAME, a line each.
    Name,
}

/// `-o` and `--no-headers`.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Printing {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    pub(super) output: Format,
    /// Leave the header of tables out.
    #[arg(long)]
    pub(super) no_headers: bool,
}

/// Rows under a header. The first columns are text, aligned left; those from `figures` on are numbers, aligned right.
#[derive(Clone, Debug)]
pub(super) struct Table {
    pub(super) header: Vec<&'static str>,
    pub(super) rows: Vec<Vec<String>>,
    pub(super) figures: usize,
}

impl Printing {
    /// A list: `value` for programs, `table` (with more columns if so told) or `names` for people. `nothing` is said when it is
    /// empty.
    pub(super) fn list<T: serde::Serialize>(
        self,
        items: &[T],
        nothing: &str,
        table: impl FnOnce(bool) -> Table,
        name: impl Fn(&T) -> String,
    ) -> Result<(), Failure> {
        match self.output {
            Format::Json => data(&json(&json!({ "items": items }))?),
            Format::Yaml => data(&yaml(&json!({ "items": items }))?),
            _ if items.is_empty() => {
                note(nothing);
                Ok(())
            }
            Format::Name => data(&items.iter().map(|item| name(item) + "\n").collect::<String>()),
            Format::Table | Format::Wide => data(&table(self.output == Format::Wide).text(self.no_headers)),
        }
    }

    /// One thing, told at length.
    pub(super) fn one(self, value: &Value, name: &str, text: impl FnOnce() -> String) -> Result<(), Failure> {
        match self.output {
            Format::Json => data(&json(value)?),
            Format::Yaml => data(&yaml(value)?),
            Format::Name => data(&format!("{name}\n")),
            Format::Table | Format::Wide => data(&text()),
        }
    }
}

impl Table {
    pub(super) fn text(&self, no_headers: bool) -> String {
        let text = aligned(&self.header, &self.rows, self.figures);
        if no_headers { text.split_once('\n').map_or("", |(_, rest)| rest).to_owned() } else { text }
    }
}

/// What `--color` and `--quiet` say, for all that is printed after.
pub(super) fn set_up(colour: Colour, quiet: bool) {
    match colour {
        // `anstream` looks at the terminal, NO_COLOR and CLICOLOR_FORCE itself.
        Colour::Auto => {}
        Colour::Always => ColorChoice::AlwaysAnsi.write_global(),
        Colour::Never => ColorChoice::Never.write_global(),
    }
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether somebody looks at standard output as it is written.
pub(super) fn is_terminal() -> bool {
    std::io::stdout().is_terminal()
}

/// Data. A reader that has gone away (`meshctl get vs | head -1`) is no failure.
pub(super) fn data(text: &str) -> Result<(), Failure> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => {
            Err(Failure::new(FAILURE, format!("standard output cannot be written: {error}")))
        }
        _ => Ok(()),
    }
}

/// For people, on standard error, unless they want quiet; nothing can be done if that is closed.
pub(super) fn note(text: &str) {
    if !QUIET.load(Ordering::Relaxed) {
        say(text);
    }
}

/// Why it did not go well.
pub(super) fn error(message: &str) {
    say(&format!("error: {message}"));
}

fn say(text: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Findings, on standard error; colours only on a terminal, which `anstream` sees to.
pub(super) fn diagnostics(diagnostics: &[Diagnostic]) {
    for diagnostic in diagnostics {
        if diagnostic.is_error() || !QUIET.load(Ordering::Relaxed) {
            say(&format!("{}\n", diagnostic.render(true)));
        }
    }
}

/// A value as JSON, with a line end.
pub(super) fn json<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|error| Failure::new(FAILURE, error.to_string()))?;
    Ok(text + "\n")
}

/// A value as a YAML document.
pub(super) fn yaml<T: serde::Serialize>(value: &T) -> Result<String, Failure> {
    serde_saphyr::to_string(value).map_err(|error| Failure::new(FAILURE, error.to_string()))
}

/// Rows under an upper-case header, columns three spaces apart, nothing cut.
pub(super) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    aligned(header, rows, usize::MAX)
}

/// The same; the columns from `figures` on are aligned right.
fn aligned(header: &[&str], rows: &[Vec<String>], figures: usize) -> String {
    let mut widths: Vec<usize> = header.iter().map(|title| title.chars().count()).collect();
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    let mut line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (index, (cell, width)) in cells.zip(&widths).enumerate() {
            let _ = match index < figures {
                true => write!(line, "{cell:<width$}   "),
                false => write!(line, "{cell:>width$}   "),
            };
        }
        text.push_str(line.trim_end());
        text.push('\n');
    };
    line(&mut header.iter().copied());
    for row in rows {
        line(&mut row.iter().map(String::as_str));
    }
    text
}

/// `virtualservice.networking.istio.io`, as kubectl writes a kind in front of a name.
pub(super) fn resource(key: &Key) -> String {
    let kind = key.kind.as_str().to_ascii_lowercase();
    match key.kind.group() {
        "" => kind,
        group => format!("{kind}.{group}"),
    }
}

/// How long ago, in kubectl's words: `5s`, `3m20s`, `2h`, `4d`.
pub(super) fn age(since_unix_ms: u64) -> String {
    let since = UNIX_EPOCH + Duration::from_millis(since_unix_ms);
    short_duration(SystemTime::now().duration_since(since).unwrap_or_default())
}

pub(super) fn short_duration(duration: Duration) -> String {
    let s = duration.as_secs();
    let (m, h, d) = (s / 60, s / 3600, s / 86_400);
    let pair = |big: u64, unit: &str, rest: u64, small: &str| match rest {
        0 => format!("{big}{unit}"),
        rest => format!("{big}{unit}{rest}{small}"),
    };
    match () {
        () if s < 120 => format!("{s}s"),
        () if m < 10 => pair(m, "m", s % 60, "s"),
        () if m < 180 => format!("{m}m"),
        () if h < 8 => pair(h, "h", m % 60, "m"),
        () if h < 48 => format!("{h}h"),
        () if d < 8 => pair(d, "d", h % 24, "h"),
        () => format!("{d}d"),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn tables_are_wide_enough_and_end_without_blanks() {
        let rows = vec![
            vec!["reviews".to_owned(), "<none>".to_owned(), "5s".to_owned()],
            vec!["a".to_owned(), String::new(), "1d".to_owned()],
        ];
        let expected = "NAME      HOST     AGE\nreviews   <none>   5s\na                  1d\n";
        assert_eq!(table(&["NAME", "HOST", "AGE"], &rows), expected);
    }

    #[test]
    fn ages_are_written_as_kubectl_does() {
        let cases = [(0, "0s"), (119, "119s"), (120, "2m"), (200, "3m20s"), (3600, "60m"), (10_800, "3h")];
        let cases = cases.into_iter().chain([(12_660, "3h31m"), (86_400, "24h"), (180_000, "2d2h"), (864_000, "10d")]);
        for (seconds, expected) in cases {
            assert_eq!(short_duration(Duration::from_secs(seconds)), expected, "{seconds}");
        }
    }
}
