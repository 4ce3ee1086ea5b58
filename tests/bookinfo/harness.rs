//! Starts the example as its own process, runs `meshctl` on it, and reads its pages. Ends it however the test ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::io::{BufRead, BufReader, Read};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{self, Arc, OnceLock};
use std::time::{Duration, Instant};

use axum::body::Body;
use futures_util::{StreamExt, stream};
use http::header::{COOKIE, LOCATION, SET_COOKIE};
use http::{Request, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

/// How long anything that is waited for may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

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

/// One answer, read to its end.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or(Value::Null)
    }
}

/// What a command said and how it ended.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
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
        while !this.wait_for("").contains("of this run:") {}
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

    /// All that it has said.
    pub(crate) fn said(&self) -> String {
        self.said.lock().unwrap().clone()
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

    /// Applies one of Istio's own files, which must succeed.
    pub(crate) fn apply_istio(&self, file: &str) {
        let path = istio(file).expect("checked by the test");
        let ran = self.meshctl(&["apply", "-f", path.to_str().unwrap()]);
        assert_eq!(ran.code, 0, "apply {file}: {}{}", ran.out, ran.err);
    }

    /// Applies YAML, which must succeed.
    pub(crate) fn apply(&self, yaml: &str) {
        let ran = meshctl(&self.server(), &["apply", "-f", "-"], yaml);
        assert_eq!(ran.code, 0, "apply: {}{}\n{yaml}", ran.out, ran.err);
    }

    /// Puts the configuration back to that of the start, and waits until the gateway lets in what it lists.
    pub(crate) async fn reset(&self) {
        for kind in ["virtualservice", "destinationrule", "gateway", "serviceentry"] {
            let ran = self.meshctl(&["get", kind, "-o", "name"]);
            assert_eq!(ran.code, 0, "get {kind}: {}{}", ran.out, ran.err);
            for name in
                ran.out.lines().map(|line| line.rsplit('/').next().unwrap_or(line)).filter(|name| !name.is_empty())
            {
                let ran = self.meshctl(&["delete", kind, name]);
                assert_eq!(ran.code, 0, "delete {kind} {name}: {}{}", ran.out, ran.err);
            }
        }
        self.apply(include_str!("../../examples/bookinfo/mesh/bookinfo.yaml"));
        self.until_status("/productpage", 200).await;
    }

    /// Waits until the gateway answers with this status.
    pub(crate) async fn until_status(&self, path: &str, status: u16) {
        let until = Instant::now() + PATIENCE;
        while self.get(path, "").await.status != status {
            assert!(Instant::now() < until, "{path} is not answered with {status}; Bookinfo said:\n{}", self.said());
        }
    }

    /// One GET through the gateway, with the cookie of a session if there is one.
    pub(crate) async fn get(&self, path: &str, cookie: &str) -> Answer {
        get(&client(), &format!("http://{}{path}", self.at(10, 9080)), &[(COOKIE.as_str(), cookie)]).await
    }

    /// The page, for somebody with this session.
    pub(crate) async fn page(&self, cookie: &str) -> Answer {
        self.get("/productpage", cookie).await
    }

    /// Signs in as `user` through the gateway; the answer is the cookie.
    pub(crate) async fn sign_in(&self, user: &str) -> String {
        let request = Request::post(format!("http://{}/login", self.at(10, 9080)))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("username={user}&passwd=any")))
            .unwrap();
        let answer = client().request(request).await.expect("the gateway answers");
        assert_eq!(
            (answer.status(), &answer.headers()[LOCATION]),
            (StatusCode::FOUND, &"/productpage".parse().unwrap())
        );
        answer.headers()[SET_COOKIE].to_str().unwrap().split(';').next().unwrap().to_owned()
    }

    /// Asks for the reviews of the book `times` times, 16 at a time: how often each workload answered, with failures by status.
    pub(crate) async fn reviews(&self, times: usize, cookie: &str) -> BTreeMap<String, usize> {
        let client = client();
        let uri = format!("http://{}/api/v1/products/0/reviews", self.at(10, 9080));
        let headers = [(COOKIE.as_str(), cookie)];
        let answers = stream::iter(0..times).map(|_| get(&client, &uri, &headers));
        let mut count = BTreeMap::new();
        for answer in answers.buffer_unordered(16).collect::<Vec<_>>().await {
            let by = match answer.json()["podname"].as_str() {
                Some(pod) if answer.status == StatusCode::OK => pod.to_owned(),
                _ => answer.status.to_string(),
            };
            *count.entry(by).or_default() += 1;
        }
        count
    }

    /// Waits until 30 requests in a row are answered by nobody but these workloads, and by each of them.
    pub(crate) async fn until_reviews_by(&self, names: &[&str], cookie: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let count = self.reviews(30, cookie).await;
            if count.keys().eq(names.iter()) {
                return;
            }
            assert!(
                Instant::now() < until,
                "reviews come from {count:?}, not {names:?}; Bookinfo said:\n{}",
                self.said()
            );
        }
    }

    /// Sends a signal to one of its processes.
    pub(crate) fn signal(&self, name: &str, signal: Signal) {
        signal_process(self.pid(name), signal);
    }

    /// Sends a signal to the process that was started, and waits for it to end.
    pub(crate) fn end(&mut self, signal: Signal) -> i32 {
        signal_process(self.process.id(), signal);
        let until = Instant::now() + PATIENCE;
        loop {
            match self.process.try_wait().unwrap() {
                Some(status) => return status.code().unwrap_or(-1),
                None if Instant::now() < until => std::thread::sleep(Duration::from_millis(10)),
                None => panic!("Bookinfo does not end; it said:\n{}", self.said()),
            }
        }
    }
}

impl Drop for Bookinfo {
    fn drop(&mut self) {
        // Closing its standard input ends it; killing is for a supervisor that does not notice.
        drop(self.process.stdin.take());
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if self.process.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
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

/// A file of Istio's Bookinfo sample; without the data, says so on standard error, or fails if `MESH_REQUIRE_PEERS=1`.
pub(crate) fn istio(file: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MESH_ISTIO_DATA")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data/istio"), PathBuf::from);
    let path = root.join("samples/bookinfo").join(file);
    if path.exists() {
        return Some(path);
    }
    let missing = format!("{} is not there (set MESH_ISTIO_DATA)", path.display());
    assert!(std::env::var("MESH_REQUIRE_PEERS").as_deref() != Ok("1"), "{missing}");
    eprintln!("SKIPPED: {missing}");
    None
}

/// A client with connections of its own.
pub(crate) fn client() -> Client<HttpConnector, Body> {
    Client::builder(TokioExecutor::new()).build_http()
}

/// One GET, with an answer that says if it failed: status 599, the reason as body.
pub(crate) async fn get(client: &Client<HttpConnector, Body>, uri: &str, headers: &[(&str, &str)]) -> Answer {
    let start = Instant::now();
    let mut request = Request::get(uri);
    for (name, value) in headers.iter().filter(|(_, value)| !value.is_empty()) {
        request = request.header(*name, *value);
    }
    let failed =
        |error: String| Answer { status: StatusCode::from_u16(599).unwrap(), body: error, took: start.elapsed() };
    match client.request(request.body(Body::empty()).unwrap()).await {
        Ok(answer) => {
            let status = answer.status();
            match axum::body::to_bytes(Body::new(answer.into_body()), usize::MAX).await {
                Ok(body) => Answer { status, body: String::from_utf8_lossy(&body).into_owned(), took: start.elapsed() },
                Err(error) => failed(error.to_string()),
            }
        }
        Err(error) => failed(format!("{error:?}")),
    }
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
        if std::net::TcpListener::bind((Ipv4Addr::new(a, b, c, 10), 9080)).is_ok() {
            return [a, b, c];
        }
    }
}
