//! The server as a process, built once, told on its standard input and heard on its standard output.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::Value;

/// How long anything that is waited for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The program; `None` where there is no Go to build it with.
fn program() -> Option<PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM.get_or_init(find).clone()
}

fn find() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("MESH_CONTROL_PLANE").filter(|name| !name.is_empty()) {
        return Some(named.into());
    }
    if Command::new("go").arg("version").output().is_err() {
        crate::peers::missing("all of tests/control-plane: no Go to build it with");
        return None;
    }
    let program = std::env::current_exe().unwrap().with_file_name("control-plane");
    let built = Command::new("go")
        .args(["build", "-trimpath", "-buildvcs=false", "-tags", "disable_pgv", "-ldflags=-s -w", "-o"])
        .arg(&program)
        .arg(".")
        .env("CGO_ENABLED", "0")
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/control-plane"))
        .output()
        .unwrap();
    assert!(built.status.success(), "it does not build: {}", String::from_utf8_lossy(&built.stderr));
    Some(program)
}

/// What a client asked for, or said of a response.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Asked {
    pub(crate) delta: bool,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    /// The last version accepted.
    pub(crate) version: String,
    /// How many names it lists.
    pub(crate) names: usize,
    /// Of a refusal.
    pub(crate) error: String,
}

/// A running server; it ends with its standard input.
pub(crate) struct ControlPlane {
    process: Child,
    input: Option<ChildStdin>,
    lines: Mutex<Receiver<Value>>,
    /// Where it listens.
    pub(crate) address: String,
    /// What was asked so far.
    pub(crate) asked: Vec<Asked>,
}

impl ControlPlane {
    /// Starts one with these flags, at a port of its own.
    pub(crate) fn start(flags: &[&str]) -> Option<Self> {
        let mut process = Command::new(program()?)
            .args(flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the control plane starts");
        let (send, lines) = channel();
        let output = process.stdout.take().unwrap();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = send.send(serde_json::from_str(&line).expect("a line of JSON"));
            }
        });
        let input = process.stdin.take();
        let mut this = Self { process, input, lines: Mutex::new(lines), address: String::new(), asked: Vec::new() };
        let listening = this.hear(|line| line["listening"].as_str().map(str::to_owned));
        this.address = listening;
        Some(this)
    }

    /// Serves this snapshot from now on.
    pub(crate) fn serve(&mut self, snapshot: &Value) {
        let version = snapshot["version"].clone();
        writeln!(self.input.as_mut().unwrap(), "{snapshot}").unwrap();
        self.hear(|line| (line["serves"] == version).then_some(()));
    }

    /// Waits for a request like that.
    pub(crate) fn until_asked(&mut self, like: impl Fn(&Asked) -> bool) -> Asked {
        if let Some(found) = self.asked.iter().find(|asked| like(asked)) {
            return found.clone();
        }
        self.hear(|line| {
            let asked: Asked = serde_json::from_value(line.get("request")?.clone()).unwrap();
            like(&asked).then_some(asked)
        })
    }

    /// Waits until reports of load have told something.
    pub(crate) fn until_reported(&mut self, mut enough: impl FnMut(&Value) -> bool) {
        self.hear(|line| line.get("load").is_some_and(&mut enough).then_some(()));
    }

    /// Takes in what has been said meanwhile.
    pub(crate) fn catch_up(&mut self) {
        while let Ok(line) = self.lines.get_mut().unwrap().try_recv() {
            self.asked.extend(request(&line));
        }
    }

    fn hear<T>(&mut self, mut find: impl FnMut(&Value) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let line = self.lines.get_mut().unwrap().recv_timeout(left);
            let line = line.unwrap_or_else(|error| panic!("{error}; asked so far: {:#?}", self.asked));
            self.asked.extend(request(&line));
            if let Some(found) = find(&line) {
                return found;
            }
        }
    }
}

fn request(line: &Value) -> Option<Asked> {
    Some(serde_json::from_value(line.get("request")?.clone()).unwrap())
}

impl Drop for ControlPlane {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
