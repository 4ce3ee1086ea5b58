//! `meshctl analyze`: what is wrong or seldom meant among objects, with the codes, levels and exit code of `istioctl analyze`.
//!
//! With a control plane, the files are looked at in the company of what it holds and of who runs; with `--offline` alone.

use clap::ValueEnum;
use mesh_control::{
    analyze,
    api::{AnalyzeRequest, Analyzed},
    diagnostic::{Diagnostic, Level},
};

use crate::cli::{FOUND, Failure, client::Server, input::Files, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Analyze {
    /// Files, as with -f; without any, what the control plane holds.
    #[arg(value_name = "FILE")]
    more: Vec<std::path::PathBuf>,
    #[command(flatten)]
    files: Files,
    /// Ask no control plane: look at the files alone.
    #[arg(long)]
    offline: bool,
    /// Leave out a finding: CODE=Kind NAMESPACE/NAME, where * stands for any text; may be repeated.
    #[arg(short = 'S', long = "suppress", value_name = "CODE=OBJECT", value_parser = suppression)]
    suppress: Vec<(String, String)>,
    /// Fail with 79 when something of at least this level is found.
    #[arg(long, value_enum, default_value_t = Threshold::Error)]
    failure_threshold: Threshold,
    /// Print what is of at least this level.
    #[arg(long, value_enum, default_value_t = Threshold::Info)]
    output_threshold: Threshold,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Log)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Threshold {
    Info,
    Warning,
    Error,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// One line a finding, as istioctl writes it.
    Log,
    /// With the line of the file and a caret.
    Long,
    Json,
    Yaml,
}

impl Threshold {
    fn level(self) -> Level {
        match self {
            Self::Info => Level::Info,
            Self::Warning => Level::Warning,
            Self::Error => Level::Error,
        }
    }
}

impl Analyze {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let files = self.files.and(self.more).read()?;
        let Analyzed { mut diagnostics } = if self.offline {
            Analyzed { diagnostics: analyze::files(&files) }
        } else {
            server.post("/analyze", &AnalyzeRequest { files }).await?
        };
        diagnostics.retain(|it| !self.suppress.iter().any(|(code, object)| is_suppressed(it, code, object)));
        let failed = diagnostics.iter().any(|it| it.level >= self.failure_threshold.level());
        // What is counted in the end is what made it fail, shown or not.
        let found: Vec<Level> = diagnostics.iter().map(|it| it.level).collect();
        diagnostics.retain(|it| it.level >= self.output_threshold.level());
        match self.output {
            Format::Log => {
                output::data(&diagnostics.iter().map(|it| analyze::line(it) + "\n").collect::<String>())?;
            }
            Format::Long => {
                output::data(&diagnostics.iter().map(|it| format!("{it}\n\n")).collect::<String>())?;
            }
            Format::Json => output::data(&output::json(&diagnostics)?)?,
            Format::Yaml => output::data(&output::yaml(&diagnostics)?)?,
        }
        if diagnostics.is_empty() && matches!(self.output, Format::Log | Format::Long) {
            output::note("No issues found.");
        }
        if !failed {
            return Ok(());
        }
        let count = |level: Level| {
            let count = found.iter().filter(|it| **it == level).count();
            let plural = if count == 1 { "" } else { "s" };
            (count > 0).then(|| format!("{count} {}{plural}", analyze::level_name(level)))
        };
        let counts: Vec<String> = [Level::Error, Level::Warning, Level::Info].into_iter().filter_map(count).collect();
        Err(Failure::new(FOUND, format!("analysis found {}", counts.join(", "))))
    }
}

fn suppression(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((code, object)) if !code.is_empty() && !object.is_empty() => Ok((code.to_owned(), object.to_owned())),
        _ => Err("a finding is left out by CODE=OBJECT, as in IST0103=VirtualService default/reviews".to_owned()),
    }
}

fn is_suppressed(it: &Diagnostic, code: &str, object: &str) -> bool {
    (code == "*" || it.code == code) && analyze::object_of(it).is_some_and(|(of, _)| fits(object, of))
}

/// `*` stands for any text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let mut last = None;
    for part in parts {
        last = Some(part);
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    match last {
        None => rest.is_empty(),
        Some(part) => text.ends_with(part),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_star_is_any_text() {
        let name = "VirtualService default/reviews";
        for pattern in ["*", name, "VirtualService *", "* default/*", "*reviews", "V*/r*s"] {
            assert!(fits(pattern, name), "{pattern}");
        }
        for pattern in ["", "VirtualService", "DestinationRule *", "*ratings", "V*/x*"] {
            assert!(!fits(pattern, name), "{pattern}");
        }
    }
}
