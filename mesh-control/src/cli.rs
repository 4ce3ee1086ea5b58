//! The command line: its grammar, and how every verb ends.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed or not found, 2 wrong usage,
//! 65 bad input, 69 no control plane, 79 `analyze` found something. `diff` ends with 1 for differences alone.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use mesh_control::diagnostic::Diagnostic;

mod analyze;
mod apply;
mod cert;
mod check_routes;
mod client;
mod dashboard;
mod delete;
mod dev;
mod diff;
mod explain;
mod fields;
mod get;
mod graph;
mod input;
mod output;
mod proxy_config;
mod proxy_status;
mod validate;
mod version;
mod workload;

use client::Server;

/// Failed, or not found.
const FAILURE: u8 = 1;
/// The command line is wrong, as `clap` has it.
const USAGE: u8 = 2;
/// The input is wrong. Source: BSD `sysexits.h` `EX_DATAERR`, as `istioctl` uses it.
const BAD_INPUT: u8 = 65;
/// Something was found that should not be. Source: `istioctl analyze`.
const FOUND: u8 = 79;
/// No control plane. `EX_UNAVAILABLE`.
const UNREACHABLE: u8 = 69;

/// Configures and inspects the mesh.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, arg_required_else_help = true)]
struct Cli {
    /// Where the control plane's API listens.
    #[arg(long, global = true, env = "MESHCTL_SERVER", default_value = "127.0.0.1:15014", value_name = "HOST:PORT")]
    server: String,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Apply files, all or nothing.
    Apply(apply::Apply),
    /// Print objects.
    Get(get::Get),
    /// Delete objects.
    Delete(delete::Delete),
    /// Say whether files are what their kinds allow.
    Validate(validate::Validate),
    /// Look for what is wrong or seldom meant, in files and in what the control plane holds.
    Analyze(analyze::Analyze),
    /// Print what an apply would change.
    Diff(diff::Diff),
    /// Say where a request would go, and why.
    Explain(explain::Explain),
    /// Test a file of routes with the cases of another, as Envoy's router_check_tool does.
    CheckRoutes(check_routes::CheckRoutes),
    /// Say what became of every field of what a process was told.
    Fields(fields::Fields),
    /// Say how far each workload's configuration is.
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::ProxyStatus),
    /// Print what a workload has been told, or has in force.
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::ProxyConfig),
    /// Print who calls whom.
    Graph(graph::Graph),
    /// Open the console.
    Dashboard(dashboard::Dashboard),
    /// Issue, show and revoke certificates, and change the authority.
    Cert(cert::Cert),
    /// What a workload needs to join.
    Workload(workload::Workload),
    /// Run a control plane here, until interrupted.
    Dev(dev::Dev),
    /// Print the versions of this command and of the control plane.
    Version(version::Version),
}

/// How a verb ends when it does not end well.
#[derive(Debug)]
struct Failure {
    code: u8,
    message: String,
    diagnostics: Vec<Diagnostic>,
}

impl Failure {
    fn new(code: u8, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), diagnostics: Vec::new() }
    }

    /// Everything was said already.
    fn silent(code: u8) -> Self {
        Self::new(code, "")
    }
}

/// What `meshctl` does, from its arguments to its exit code.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FAILURE, format!("the runtime could not be started: {error}")))
        .and_then(|runtime| runtime.block_on(perform(cli)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::diagnostics(&failure.diagnostics);
            if !failure.message.is_empty() {
                output::note(&format!("error: {}", failure.message));
            }
            ExitCode::from(failure.code)
        }
    }
}

async fn perform(cli: Cli) -> Result<(), Failure> {
    let server = Server::new(&cli.server);
    match cli.verb {
        Verb::Apply(apply) => apply.run(&server).await,
        Verb::Get(get) => get.run(&server).await,
        Verb::Delete(delete) => delete.run(&server).await,
        Verb::Validate(validate) => validate.run(),
        Verb::Analyze(analyze) => analyze.run(&server).await,
        Verb::Diff(diff) => diff.run(&server).await,
        Verb::Explain(explain) => explain.run(&server).await,
        Verb::CheckRoutes(check) => check.run(),
        Verb::Fields(fields) => fields.run().await,
        Verb::ProxyStatus(status) => status.run(&server).await,
        Verb::ProxyConfig(config) => config.run(&server).await,
        Verb::Graph(graph) => graph.run(&server).await,
        Verb::Dashboard(dashboard) => dashboard.run(&server).await,
        Verb::Cert(cert) => cert.run(&server).await,
        Verb::Workload(workload) => workload.run(&server).await,
        Verb::Dev(dev) => dev.run().await,
        Verb::Version(version) => version.run(&server).await,
    }
}
