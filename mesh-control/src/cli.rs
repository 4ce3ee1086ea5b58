//! The command line: its grammar, and how every verb ends.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 done, 1 failed or not found, 2 wrong usage,
//! 65 bad input, 69 no control plane, 79 `analyze` found something, 124 too late, 130 interrupted. `diff` ends with 1 for
//! differences alone. Each verb has a file of its own, in the folder of its group of `--help`; what several share is
//! beside them.

use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use mesh_control::diagnostic::Diagnostic;

mod about;
mod client;
mod configure;
mod input;
mod inspect;
mod live;
mod observe;
mod output;
mod rules;
mod running;
mod secure;
mod spans;
mod steer;
mod values;
mod watching;

#[cfg(test)]
mod tests;

use self::{
    about::{completion, man, names, schema, version},
    client::Server,
    configure::{analyze, apply, check_routes, delete, describe, diff, edit, get, validate},
    inspect::{bug_report, check, explain, fields, proxy_config, proxy_status, status},
    observe::{edges, graph, load, routes, stat, tap, top, trace},
    running::{bootstrap, dashboard, dev, joining, place, run},
    secure::{authz, cert, workload},
    steer::{fault, retry, shift, timeout},
};

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

/// Past the time given. `timeout(1)`.
const TOO_LATE: u8 = 124;
/// Interrupted: 128 and the signal's number, as shells count.
const INTERRUPTED: u8 = 130;

/// Runs, configures, steers and watches the mesh.
///
/// Data goes to standard output and everything else to standard error. Exit codes: 0 done, 1 failed, not found or (diff) different,
/// 2 wrong usage, 65 bad input, 69 no control plane, 79 something found by analyze, 124 too late, 130 interrupted.
#[derive(Debug, Parser)]
#[command(name = "meshctl", version, arg_required_else_help = true)]
struct Cli {
    /// Where the control plane's API listens.
    #[arg(long, global = true, env = "MESHCTL_SERVER", hide_env_values = true, default_value = "127.0.0.1:15014")]
    #[arg(value_name = "HOST:PORT", help_heading = GLOBAL)]
    server: String,
    /// The namespace of what is named.
    #[arg(short, long, global = true, env = "MESHCTL_NAMESPACE", hide_env_values = true, default_value = "default")]
    #[arg(help_heading = GLOBAL)]
    namespace: String,
    /// When to colour; NO_COLOR and CLICOLOR_FORCE are respected.
    #[arg(long, global = true, value_enum, default_value_t = Colour::Auto, value_name = "WHEN", help_heading = GLOBAL)]
    color: Colour,
    /// Say only what was asked for, and errors.
    #[arg(short, long, global = true, help_heading = GLOBAL)]
    quiet: bool,
    #[command(subcommand)]
    verb: Verb,
}

const GLOBAL: &str = "Global options";

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Colour {
    /// On a terminal.
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run a control plane here, until interrupted.
    Dev(dev::Dev),
    /// Run a program as a member of the mesh.
    Run(run::Run),
    /// Print what a program needs to join the mesh.
    Bootstrap(bootstrap::Bootstrap),
    /// Ask for something steadily, and say how it went.
    Load(load::Load),
    /// Open the console.
    Dashboard(dashboard::Dashboard),
    /// Apply files, all or nothing.
    Apply(apply::Apply),
    /// Print objects.
    Get(get::Get),
    /// Print a service, a workload or an object with all that is about it.
    Describe(describe::Describe),
    /// Delete objects.
    Delete(delete::Delete),
    /// Change an object in an editor.
    Edit(edit::Edit),
    /// Print what an apply would change.
    Diff(diff::Diff),
    /// Say whether files are what their kinds allow.
    Validate(validate::Validate),
    /// Look for what is wrong or seldom meant, in files and in what the control plane holds.
    Analyze(analyze::Analyze),
    /// Test a file of routes with the cases of another, as Envoy's router_check_tool does.
    CheckRoutes(check_routes::CheckRoutes),
    /// Say whether the mesh is well.
    Check(check::Check),
    /// Print the mesh in a few lines.
    Status(status::Status),
    /// Say where a request would go, and why.
    Explain(explain::Explain),
    /// Say how far each workload's configuration is.
    #[command(visible_alias = "ps")]
    ProxyStatus(proxy_status::ProxyStatus),
    /// Print what a workload has been told, or has in force.
    #[command(visible_alias = "pc")]
    ProxyConfig(proxy_config::ProxyConfig),
    /// Say what became of every field of what a process was told.
    Fields(fields::Fields),
    /// Print what there is to name at a place of the command line: what shells complete with.
    #[command(hide = true)]
    Names(names::Names),
    /// Give each subset of a host its share of the requests, at once or step by step.
    Shift(shift::Shift),
    /// Delay or fail requests to a host.
    Fault(fault::Fault),
    /// Limit how long requests to a host may take.
    Timeout(timeout::Timeout),
    /// Say how often requests to a host are tried again.
    Retry(retry::Retry),
    /// Print success, rate and latency of workloads or services.
    Stat(stat::Stat),
    /// Print who calls whom, as whom, and how safely.
    Edges(edges::Edges),
    /// Print the routes of hosts beside the requests they got.
    Routes(routes::Routes),
    /// Print the requests of now by source, destination, method and path.
    Top(top::Top),
    /// Print requests as they end.
    Tap(tap::Tap),
    /// Print the last traces, or one of them.
    Trace(trace::Trace),
    /// Print who calls whom.
    Graph(graph::Graph),
    /// Say who may ask what of a workload.
    Authz(authz::Authz),
    /// Issue, show and revoke certificates, and change the authority.
    Cert(cert::Cert),
    /// Who runs where, and the token by which a workload joins.
    Workload(workload::Workload),
    /// Print the fields of the kinds that are taken.
    Schema(schema::Schema),
    /// Write what somebody who is to help needs to see.
    BugReport(bug_report::BugReport),
    /// Print a script that completes commands in a shell.
    Completion(completion::Completion),
    /// Print or write the pages of the manual.
    Man(man::Man),
    /// Print the versions of this command and of the control plane.
    Version(version::Version),
}

/// The verbs as `--help` groups them; a test holds that each is in one.
const GROUPS: [(&str, &[&str]); 7] = [
    ("Run", &["dev", "run", "bootstrap", "dashboard"]),
    ("Configure", &["apply", "get", "describe", "delete", "edit", "diff", "validate", "analyze", "check-routes"]),
    ("Inspect", &["check", "status", "bug-report", "explain", "proxy-status", "proxy-config", "fields"]),
    ("Steer", &["shift", "fault", "timeout", "retry"]),
    ("Observe", &["stat", "edges", "routes", "top", "tap", "trace", "graph", "load"]),
    ("Secure", &["authz", "cert", "workload"]),
    ("This command", &["schema", "completion", "man", "version", "help"]),
];

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

/// The grammar, with the verbs in groups.
fn command() -> clap::Command {
    let command = Cli::command();
    let width = command.get_subcommands().map(|verb| verb.get_name().len()).max().unwrap_or_default();
    let mut verbs = String::new();
    for (heading, names) in GROUPS {
        verbs += &format!("\n{heading}:\n");
        for name in names {
            let about = match command.find_subcommand(name).and_then(clap::Command::get_about) {
                Some(about) => about.to_string(),
                None => "Print this, or the help of a command".to_owned(),
            };
            verbs += &format!("  {name:<width$}  {about}\n");
        }
    }
    command
        .help_template(format!("{{about-with-newline}}\n{{usage-heading}} {{usage}}\n{verbs}\nOptions:\n{{options}}"))
}

/// What `meshctl` does, from its arguments to its exit code.
pub(crate) fn run() -> ExitCode {
    let cli = Cli::from_arg_matches(&command().get_matches()).unwrap_or_else(|error| error.exit());
    output::set_up(cli.color, cli.quiet);
    let done = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(FAILURE, format!("the runtime could not be started: {error}")))
        .and_then(|runtime| {
            let done = runtime.block_on(unless_interrupted(cli));
            // A read of standard input that nobody waits for any more must not hold the end up.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::diagnostics(&failure.diagnostics);
            if !failure.message.is_empty() {
                output::error(&failure.message);
            }
            ExitCode::from(failure.code)
        }
    }
}

/// Ctrl-C ends a verb, unless it has something to do then.
async fn unless_interrupted(cli: Cli) -> Result<(), Failure> {
    if cli.verb.ends_itself() {
        return perform(cli).await;
    }
    tokio::select! {
        done = perform(cli) => done,
        _ = tokio::signal::ctrl_c() => Err(Failure::silent(INTERRUPTED)),
    }
}

impl Verb {
    /// What to do when interrupted is its own affair.
    fn ends_itself(&self) -> bool {
        match self {
            Self::Dev(_) | Self::Run(_) | Self::Load(_) | Self::Dashboard(_) => true,
            Self::Shift(shift) => shift.ends_itself(),
            _ => false,
        }
    }
}

async fn perform(cli: Cli) -> Result<(), Failure> {
    let server = Server::new(&cli.server).in_namespace(&cli.namespace);
    match cli.verb {
        Verb::Apply(apply) => apply.run(&server).await,
        Verb::Get(get) => get.run(&server).await,
        Verb::Describe(describe) => describe.run(&server).await,
        Verb::Delete(delete) => delete.run(&server).await,
        Verb::Validate(validate) => validate.run(),
        Verb::Analyze(analyze) => analyze.run(&server).await,
        Verb::Edit(edit) => edit.run(&server).await,
        Verb::Diff(diff) => diff.run(&server).await,
        Verb::Check(check) => check.run(&server).await,
        Verb::Status(status) => status.run(&server).await,
        Verb::Explain(explain) => explain.run(&server).await,
        Verb::CheckRoutes(check) => check.run(),
        Verb::Fields(fields) => fields.run(&server).await,
        Verb::Names(names) => names.run(&server).await,
        Verb::ProxyStatus(status) => status.run(&server).await,
        Verb::ProxyConfig(config) => config.run(&server).await,
        Verb::Shift(shift) => shift.run(&server).await,
        Verb::Fault(fault) => fault.run(&server).await,
        Verb::Timeout(timeout) => timeout.run(&server).await,
        Verb::Retry(retry) => retry.run(&server).await,
        Verb::Stat(stat) => stat.run(&server).await,
        Verb::Edges(edges) => edges.run(&server).await,
        Verb::Routes(routes) => routes.run(&server).await,
        Verb::Top(top) => top.run(&server).await,
        Verb::Tap(tap) => tap.run(&server).await,
        Verb::Trace(trace) => trace.run(&server).await,
        Verb::Graph(graph) => graph.run(&server).await,
        Verb::Run(run) => run.run(&server).await,
        Verb::Bootstrap(bootstrap) => bootstrap.run(&server).await,
        Verb::Load(load) => load.run().await,
        Verb::Dashboard(dashboard) => dashboard.run(&server).await,
        Verb::Authz(authz) => authz.run(&server).await,
        Verb::Cert(cert) => cert.run(&server).await,
        Verb::Workload(workload) => workload.run(&server).await,
        Verb::Dev(dev) => dev.run().await,
        Verb::Schema(schema) => schema.run(),
        Verb::BugReport(bug_report) => bug_report.run(&server).await,
        Verb::Completion(completion) => completion.run(),
        Verb::Man(man) => man.run(),
        Verb::Version(version) => version.run(&server).await,
    }
}
