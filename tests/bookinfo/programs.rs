//! Programs as built beside this test, Istio's files, and what else is of this machine: processes and addresses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::hash::{BuildHasher, RandomState};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// What a command said and how it ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// A process that ends with the test.
pub(crate) struct Killed(pub(crate) Child);

impl Killed {
    /// Starts it, with nothing to read.
    pub(crate) fn start(mut command: Command) -> Self {
        Self(command.stdin(Stdio::null()).spawn().expect("it starts"))
    }
}

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs `meshctl` on the control plane at `server`.
pub(crate) fn meshctl(server: &str, arguments: &[&str], input: &str) -> Ran {
    let mut process = Command::new(program("meshctl"))
        .args(arguments)
        .env("MESHCTL_SERVER", server)
        .env("NO_COLOR", "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("meshctl starts");
    std::io::Write::write_all(&mut process.stdin.take().unwrap(), input.as_bytes()).unwrap();
    process.wait_with_output().unwrap().into()
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// A program as built beside this test.
pub(crate) fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let program = test.parent().and_then(Path::parent).unwrap().join(name);
    assert!(
        program.exists(),
        "{} is not built: run `cargo test --workspace`, or `cargo build --workspace --bins --examples` first",
        program.display()
    );
    program
}

/// Sends a signal to a process.
pub(crate) fn signal_process(id: u32, signal: Signal) {
    let id = Pid::from_raw(i32::try_from(id).unwrap()).unwrap();
    kill_process(id, signal).unwrap();
}

/// Whether a process is there.
pub(crate) fn is_running(id: u32) -> bool {
    // A zombie is not: it has ended, and only waits to be counted.
    std::fs::read_to_string(format!("/proc/{id}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Three numbers that begin loopback addresses nobody else here uses.
pub(crate) fn free_network() -> [u8; 3] {
    loop {
        let random = RandomState::new().hash_one(std::process::id()).to_le_bytes();
        let [a, b, c] = [127, 1 + random[0] % 250, random[1]];
        match TcpListener::bind((Ipv4Addr::new(a, b, c, 10), 9080)) {
            Ok(_) => return [a, b, c],
            Err(error) if error.kind() == ErrorKind::AddrNotAvailable => {
                panic!("these tests need loopback addresses beside 127.0.0.1, as Linux has them: {error}")
            }
            Err(_) => {}
        }
    }
}

/// Looks every few milliseconds whether it is `done`, for so long; the answer is whether it was.
pub(crate) fn wait_until(patience: Duration, mut done: impl FnMut() -> bool) -> bool {
    let until = Instant::now() + patience;
    while !done() {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}
