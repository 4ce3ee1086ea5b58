//! One process that the supervisor started: its own program once more, with a subcommand.
//!
//! A child holds the reading end of a pipe as its standard input. The other end is the supervisor's and closes with it, however it
//! ends: that is how a child learns that it is alone ([`end_with_the_supervisor`]).

use std::ffi::OsString;
use std::io::{self, Write};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use axum::BoxError;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{self, ChildStdin, Command};
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

/// How long a child may take to end by itself once asked: the mesh drains for 5 seconds.
const PATIENCE: Duration = Duration::from_secs(8);
/// Set for children: their standard input is the supervisor's pipe, and not a terminal.
const SUPERVISED: &str = "BOOKINFO_SUPERVISED";

/// How a process ended.
pub(super) type Ended = io::Result<ExitStatus>;

/// A running process. Dropped, it is killed.
pub(super) struct Child {
    name: String,
    id: u32,
    started: Instant,
    process: process::Child,
    /// Kept open for as long as the child is to live.
    _pipe: Option<ChildStdin>,
}

impl Child {
    /// Starts this program again as `name`.
    pub(super) fn start(
        name: &str,
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl IntoIterator<Item = (String, OsString)>,
    ) -> Result<Self, BoxError> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(arguments)
            .envs(environment)
            .env(SUPERVISED, "1")
            .stdin(Stdio::piped())
            // Ctrl-C is for the supervisor, which then ends its children in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("{name} cannot be started: {error}"))?;
        let (id, pipe) = (process.id().unwrap_or_default(), process.stdin.take());
        Ok(Self { name: name.to_owned(), id, started: Instant::now(), process, _pipe: pipe })
    }

    /// What it was started as.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// The number the system knows it by.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// How long ago it was started.
    pub(super) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns when the process has ended. May be dropped and called again.
    pub(super) async fn ended(&mut self) -> Ended {
        self.process.wait().await
    }

    /// Asks it to end, waits, and kills it if it does not.
    pub(super) async fn end(mut self) {
        // A process that has been waited for has no number any more, and its old number may be somebody else's.
        let number = self.process.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let Some(number) = number else { return };
        let _ = kill_process(number, Signal::TERM);
        if timeout(PATIENCE, self.process.wait()).await.is_err() {
            // The terminal may be gone.
            let _ = writeln!(io::stderr(), "{} does not end; killing it", self.name);
            let _ = self.process.kill().await;
        }
    }
}

/// Ends this process when the supervisor that started it is gone.
pub(crate) fn end_with_the_supervisor() {
    tokio::spawn(async {
        left_alone().await;
        std::process::exit(0);
    });
}

/// Returns when whoever started this process, and said so, is gone.
pub(super) async fn left_alone() {
    if std::env::var_os(SUPERVISED).is_none() {
        return std::future::pending().await;
    }
    // A thread of its own: reading standard input cannot be cancelled, and would hold up the end of the runtime.
    let (gone, left) = oneshot::channel();
    std::thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        let _ = gone.send(());
    });
    let _ = left.await;
}
