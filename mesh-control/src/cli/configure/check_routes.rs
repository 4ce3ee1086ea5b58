//! `meshctl check-routes --config ROUTES --tests TESTS`: do routes do what their tests say? In this process, by the code that
//! routes requests; no control plane is asked.
//!
//! It reads the files of Envoy's `router_check_tool`: a `RouteConfiguration` as YAML or proto JSON, and a list of cases with
//! what goes in and what should come out. `file.rs` reads both, `table.rs` decides by the routes, `case.rs` judges one case.

use std::{collections::BTreeSet, path::PathBuf};

use clap::ValueEnum;
use serde::Serialize;

use crate::cli::{FAILURE, Failure, output};

mod case;
mod file;
mod table;

use case::Verdict;
use table::Table;

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct CheckRoutes {
    /// The routes: a RouteConfiguration as YAML or JSON.
    #[arg(short, long, value_name = "ROUTES")]
    config: PathBuf,
    /// The cases, as Envoy's router_check_tool has them.
    #[arg(short, long, value_name = "TESTS")]
    tests: PathBuf,
    /// Print the cases that fail, and no others.
    #[arg(long)]
    only_show_failures: bool,
    /// Fail when less than this share of the routes, in percent, was the subject of a case that passed.
    #[arg(short, long, value_name = "PERCENT")]
    fail_under: Option<f64>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Text)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Text,
    Json,
}

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Report<'a> {
    passed: usize,
    failed: usize,
    routes: usize,
    routes_checked: usize,
    cases: &'a [Verdict],
    not_acted_on: &'a BTreeSet<String>,
}

impl CheckRoutes {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let mut ignored = BTreeSet::new();
        let mut table = Table::read(&self.config, &mut ignored)?;
        let cases = file::cases(&self.tests, &mut ignored)?;
        let mut verdicts = Vec::with_capacity(cases.len());
        for case in &cases {
            verdicts.push(case.judge(&mut table)?);
        }
        let failed = verdicts.iter().filter(|verdict| !verdict.passed).count();
        let checked: BTreeSet<_> =
            verdicts.iter().filter(|verdict| verdict.passed).filter_map(|one| one.rule).collect();
        let cases = verdicts.len();
        verdicts.retain(|verdict| !verdict.passed || !self.only_show_failures);
        let report = Report {
            passed: cases - failed,
            failed,
            routes: table.routes(),
            routes_checked: checked.len(),
            cases: &verdicts,
            not_acted_on: &ignored,
        };
        match self.output {
            Format::Json => output::data(&output::json(&report)?)?,
            Format::Text => {
                for field in &ignored {
                    output::note(&format!("warning: {field} is not acted on"));
                }
                let told: String = verdicts.iter().map(Verdict::to_string).collect();
                output::data(&format!("{told}{}\n", report.summary()))?;
            }
        }
        if failed > 0 {
            return Err(Failure::new(FAILURE, format!("{failed} of {cases} cases failed")));
        }
        match self.fail_under {
            Some(wanted) if report.coverage() < wanted => {
                let message = format!("{:.1} % of the routes were checked, less than {wanted} %", report.coverage());
                Err(Failure::new(FAILURE, message))
            }
            _ => Ok(()),
        }
    }
}

impl Report<'_> {
    fn coverage(&self) -> f64 {
        if self.routes == 0 { 100.0 } else { 100.0 * self.routes_checked as f64 / self.routes as f64 }
    }

    fn summary(&self) -> String {
        let Self { passed, failed, routes, routes_checked, .. } = self;
        format!(
            "{passed} passed, {failed} failed; {routes_checked} of {routes} routes checked ({:.1} %)",
            self.coverage()
        )
    }
}
