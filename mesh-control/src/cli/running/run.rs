//! `meshctl run`: any program as a member of the mesh, with a bootstrap, an identity and a place to send its spans to.
//!
//! It ends when the program ends and as the program ended; signals are passed on.

#[cfg(unix)]
use std::io::IsTerminal as _;
use std::{
    ffi::OsString,
    io::{self, ErrorKind},
    process::{ExitStatus, Stdio},
};

#[cfg(unix)]
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
#[cfg(unix)]
use tokio::signal::unix::{self, SignalKind};

use crate::cli::{FAILURE, Failure, client::Server, joining::Member, output};

/// There is no such program. Source: POSIX shells.
const NOT_FOUND: u8 = 127;
/// There is, and it cannot be run.
const NOT_A_PROGRAM: u8 = 126;

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The program finds in its environment:
  GRPC_XDS_BOOTSTRAP            the control plane, its root and a token for the service account
  OTEL_EXPORTER_OTLP_ENDPOINT   the console, unless it is set already

Examples:
  meshctl run reviews --version v2 -- ./reviews
  meshctl run ratings --version v1 --service-account bookinfo-ratings --port 9080 -- cargo run")]
pub(in crate::cli) struct Run {
    #[command(flatten)]
    member: Member,
    /// The program and its arguments.
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    program: Vec<OsString>,
}

impl Run {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let [program, arguments @ ..] = self.program.as_slice() else {
            return Err(Failure::new(crate::cli::USAGE, "which program?"));
        };
        let dir = tempfile::Builder::new().prefix("meshctl-").tempdir();
        let dir = dir.map_err(|error| Failure::new(FAILURE, format!("no directory for the bootstrap: {error}")))?;
        let joined = self.member.join(server, dir.path()).await?;
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::inherit()).kill_on_drop(true);
        let has_own = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"]
            .iter()
            .any(|name| std::env::var_os(name).is_some());
        let environment = joined.environment.iter().filter(|(name, _)| !(has_own && name.starts_with("OTEL")));
        command.envs(environment.map(|(name, value)| (name, value)));
        // Before there is anybody to pass them on to: none is to find this process without ears.
        let signals = Signals::listen().map_err(|error| Failure::new(FAILURE, error.to_string()))?;
        let mut child = command.spawn().map_err(|error| {
            let code = match error.kind() {
                ErrorKind::NotFound => NOT_FOUND,
                ErrorKind::PermissionDenied => NOT_A_PROGRAM,
                _ => FAILURE,
            };
            Failure::new(code, format!("{} cannot be started: {error}", program.to_string_lossy()))
        })?;
        output::note(&format!("{} runs as process {}.", joined.name, child.id().unwrap_or_default()));
        let status = tokio::select! {
            status = signals.pass_on(&mut child) => status,
            () = joined.keep_fresh() => return Ok(()),
        };
        let status = status.map_err(|error| Failure::new(FAILURE, error.to_string()))?;
        match code(status) {
            0 => Ok(()),
            code => Err(Failure::silent(code)),
        }
    }
}

/// What this process is told while the program runs.
#[cfg(unix)]
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    first: unix::Signal,
    second: unix::Signal,
}

#[cfg(unix)]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: unix::signal(SignalKind::interrupt())?,
            terminate: unix::signal(SignalKind::terminate())?,
            hangup: unix::signal(SignalKind::hangup())?,
            first: unix::signal(SignalKind::user_defined1())?,
            second: unix::signal(SignalKind::user_defined2())?,
        })
    }

    /// Waits for the end of the program, and passes on what is told meanwhile.
    async fn pass_on(mut self, child: &mut Child) -> io::Result<ExitStatus> {
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        // A terminal tells the whole group, the program too.
        let by_terminal = io::stdin().is_terminal();
        loop {
            let told = tokio::select! {
                status = child.wait() => return status,
                _ = self.interrupt.recv() => if by_terminal { continue } else { Signal::INT },
                _ = self.terminate.recv() => Signal::TERM,
                _ = self.hangup.recv() => Signal::HUP,
                _ = self.first.recv() => Signal::USR1,
                _ = self.second.recv() => Signal::USR2,
            };
            if let Some(id) = id {
                // It may have ended this very moment; then there is nobody to tell.
                let _ = kill_process(id, told);
            }
        }
    }
}

#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self)
    }

    async fn pass_on(self, child: &mut Child) -> io::Result<ExitStatus> {
        child.wait().await
    }
}

/// As a shell tells it: the program's own code, or 128 and the signal that ended it.
fn code(status: ExitStatus) -> u8 {
    #[cfg(unix)]
    let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
    #[cfg(not(unix))]
    let by_signal: Option<i32> = None;
    let code = status.code().or_else(|| by_signal.map(|signal| 128 + signal)).unwrap_or(1);
    u8::try_from(code).unwrap_or(FAILURE)
}
