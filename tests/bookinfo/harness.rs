//! Starts the example as its own process, runs `meshctl` on it, and reads its pages. Ends it however the test ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{self, Arc, OnceLock};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tokio::sync::{Mutex, MutexGuard};

use crate::front::{Front, PATIENCE};
use crate::peers::istio;
use crate::programs::{Ran, free_network, meshctl, program, signal_process, wait_until};
use crate::steps::Configured;

/// A running Bookinfo at loopback addresses of its own.
pub(crate) struct Bookinfo {
    process: Child,
    network: [u8; 3],
    lines: sync::Mutex<Receiver<String>>,
    /// What it has said so far, on both streams.
    said: Arc<sync::Mutex<String>>,
    /// Its parts and their process numbers, from the table it prints.
    table: BTreeMap<String, u32>,
    dir: PathBuf,
}

/// One test at a time: they count and measure, and one test's load would be another's delay.
pub(crate) async fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::const_new(());
    TURN.lock().await
}

/// A turn at the Bookinfo that is shared by the tests that change nothing but configuration. Each begins by putting it back.
pub(crate) struct Shared {
    bookinfo: &'static Bookinfo,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Shared {
    type Target = Bookinfo;

    fn deref(&self) -> &Bookinfo {
        self.bookinfo
    }
}

/// Waits for a turn.
pub(crate) async fn shared() -> Shared {
    static SHARED: OnceLock<Bookinfo> = OnceLock::new();
    let turn = turn().await;
    Shared { bookinfo: SHARED.get_or_init(|| Bookinfo::start(&[], &[])), _turn: turn }
}

impl Bookinfo {
    /// Starts one with more flags and variables, and waits until it says that it is ready.
    pub(crate) fn start(flags: &[&str], environment: &[(&str, &str)]) -> Self {
        let network = free_network();
        let [a, b, c] = network;
        let at = |last: u8, port: u16| format!("{a}.{b}.{c}.{last}:{port}");
        let mut process = Command::new(program("examples/bookinfo"))
            .args(["--gateway-addr", &at(10, 9080), "--api-addr", &at(9, 15014), "--xds-addr", &at(9, 15012)])
            .args(["--address-base", &format!("{a}.{b}.{c}.0")])
            .args(flags)
            .envs(environment.iter().copied())
            // With this it ends when the pipe of its standard input closes, that is with this process.
            .env("BOOKINFO_SUPERVISED", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the example starts");
        let said = Arc::new(sync::Mutex::new(String::new()));
        let (send, lines) = channel();
        for stream in [
            Box::new(process.stdout.take().expect("piped")) as Box<dyn Read + Send>,
            Box::new(process.stderr.take().expect("piped")),
        ] {
            let (send, said) = (send.clone(), said.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(stream).lines().map_while(Result::ok) {
                    said.lock().unwrap().push_str(&format!("{line}\n"));
                    let _ = send.send(line);
                }
            });
        }
        let lines = sync::Mutex::new(lines);
        let mut this = Self { process, network, lines, said, table: BTreeMap::new(), dir: PathBuf::new() };
        this.wait_for("Bookinfo is ready");
        this.wait_for("Ctrl-C ends all of them");
        let said = this.said();
        for line in said.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words.as_slice() {
                [name, .., pid] if pid.parse::<u32>().is_ok() => {
                    this.table.insert((*name).to_owned(), pid.parse().unwrap());
                }
                [.., "run:", dir] => this.dir = PathBuf::from(dir),
                _ => {}
            }
        }
        assert_eq!(this.table.len(), 8, "a table of eight processes in:\n{said}");
        this
    }

    /// Waits for a line that contains `text`, and fails with all that was said if it does not come.
    pub(crate) fn wait_for(&mut self, text: &str) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.get_mut().unwrap().recv_timeout(left);
            match line {
                Ok(line) if line.contains(text) => return line,
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout) => panic!("Bookinfo did not say `{text}` but:\n{}", self.said()),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("Bookinfo ended before it said `{text}`:\n{}", self.said())
                }
            }
        }
    }

    /// The directory of bootstraps, tokens and state.
    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The number of one of its processes, as first started.
    pub(crate) fn pid(&self, name: &str) -> u32 {
        self.table[name]
    }

    /// The numbers of all its processes, as first started.
    pub(crate) fn pids(&self) -> Vec<u32> {
        self.table.values().copied().collect()
    }

    /// An address in its network.
    pub(crate) fn at(&self, last: u8, port: u16) -> SocketAddr {
        let [a, b, c] = self.network;
        SocketAddr::from(([a, b, c, last], port))
    }

    /// Where a workload listens; with [`admin`](Self::admin), where it serves its metrics.
    pub(crate) fn workload(&self, name: &str) -> SocketAddr {
        let names = ["gateway", "productpage-v1", "details-v1", "ratings-v1", "reviews-v1", "reviews-v2", "reviews-v3"];
        let number = names.iter().position(|one| *one == name).expect("a workload");
        self.at(10 + u8::try_from(number).unwrap(), 9080)
    }

    /// Where a workload or the `gateway` serves its metrics.
    pub(crate) fn admin(&self, name: &str) -> SocketAddr {
        SocketAddr::new(self.workload(name).ip(), 15000)
    }

    /// The address that `meshctl` is given.
    pub(crate) fn server(&self) -> String {
        self.at(9, 15014).to_string()
    }

    /// Runs `meshctl`.
    pub(crate) fn meshctl(&self, arguments: &[&str]) -> Ran {
        meshctl(&self.server(), arguments, "")
    }

    /// Applies YAML, which must succeed.
    pub(crate) fn apply(&self, yaml: &str) {
        let ran = meshctl(&self.server(), &["apply", "-f", "-"], yaml);
        assert_eq!(ran.code, 0, "apply: {}{}\n{yaml}", ran.out, ran.err);
    }

    /// Sends a signal to one of its processes.
    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        signal_process(self.pid(name), signal);
    }

    /// Sends a signal to the process that was started, and waits for it to end.
    pub(crate) fn end(&mut self, signal: Signal) -> i32 {
        signal_process(self.process.id(), signal);
        let ended = wait_until(PATIENCE, || self.process.try_wait().unwrap().is_some());
        assert!(ended, "Bookinfo does not end; it said:\n{}", self.said());
        self.process.wait().unwrap().code().unwrap_or(-1)
    }
}

impl Front for Bookinfo {
    fn gateway(&self) -> SocketAddr {
        self.at(10, 9080)
    }

    fn said(&self) -> String {
        self.said.lock().unwrap().clone()
    }
}

impl Configured for Bookinfo {
    async fn reset(&self) {
        for kind in [
            "virtualservice",
            "destinationrule",
            "gateway",
            "serviceentry",
            "authorizationpolicy",
            "requestauthentication",
            "peerauthentication",
            "envoyfilter",
        ] {
            let ran = self.meshctl(&["get", kind, "-o", "name"]);
            assert_eq!(ran.code, 0, "get {kind}: {}{}", ran.out, ran.err);
            for name in
                ran.out.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).filter(|name| !name.is_empty())
            {
                self.delete(kind, name);
            }
        }
        self.apply(include_str!("../../examples/bookinfo/mesh/bookinfo.yaml"));
        self.until_status("/productpage", 200).await;
    }

    fn apply_istio(&self, file: &str) {
        let path = istio(file).expect("checked by the test");
        let ran = self.meshctl(&["apply", "-f", path.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "apply {file}: {}{}", ran.out, ran.err);
    }

    fn delete(&self, kind: &str, name: &str) {
        let ran = self.meshctl(&["delete", kind, name]);
        assert_eq!(ran.code, 0, "delete {kind} {name}: {}{}", ran.out, ran.err);
    }
}

impl Drop for Bookinfo {
    fn drop(&mut self) {
        // Closing its standard input ends it; killing is for a supervisor that does not notice.
        drop(self.process.stdin.take());
        if wait_until(Duration::from_secs(20), || self.process.try_wait().is_ok_and(|status| status.is_some())) {
            return;
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
