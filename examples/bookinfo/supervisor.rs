//! Starts every part of Bookinfo as its own process, tells where they are, watches over them, and ends them.

mod child;

use std::io::{ErrorKind, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::Duration;

use axum::BoxError;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use clap::Args;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until, timeout};

use self::child::{Child, Ended};
use crate::layout::{GATEWAY_PORT, Layout, Member, Place};

pub(crate) use self::child::end_with_the_supervisor;

/// How long everything may take to be ready.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Where spans go. Source: OpenTelemetry.
const SPANS: [&str; 2] = ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"];
/// How often readiness is looked at.
const POLL: Duration = Duration::from_millis(20);
/// A control plane that ran for less is taken to fail at its start, and waited for longer each time.
const SOUND: Duration = Duration::from_secs(10);
/// The longest wait before the control plane is started again.
const LONGEST_WAIT: Duration = Duration::from_secs(30);

/// Where everything listens.
#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Where the ingress gateway listens: the page's address
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9080")]
    gateway_addr: SocketAddr,
    /// Where the control plane listens for meshctl
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15014")]
    api_addr: SocketAddr,
    /// Where the control plane listens for workloads (xDS and certificates)
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15012")]
    xds_addr: SocketAddr,
    /// The loopback network whose addresses 11 to 16 the six workloads take, each at port 9080
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.0")]
    address_base: Ipv4Addr,
    /// How many seconds to wait before a control plane that died is started again
    #[arg(long, value_name = "SECONDS", default_value_t = 1, hide = true)]
    restart_after: u64,
}

/// Runs until Ctrl-C, SIGTERM, or the end of its terminal.
pub(crate) async fn run(options: Options) -> Result<(), BoxError> {
    let place = place(options.address_base);
    let layout = Layout::new(options.gateway_addr, options.xds_addr, options.api_addr, place);
    check_ports(&layout, place)?;
    let dir = tempfile::Builder::new().prefix("bookinfo-").tempdir()?;
    layout.write(dir.path())?;

    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut parts = Parts { dir: dir.path(), layout: &layout, children: Vec::new() };
    let outcome = tokio::select! {
        outcome = parts.run(Duration::from_secs(options.restart_after)) => outcome,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
        _ = hangup.recv() => Ok(()),
        () = child::left_alone() => Ok(()),
    };
    say("\nEnding ...");
    parts.end().await;
    outcome
}

/// Separate addresses where this machine has them for the asking (Linux), separate ports elsewhere.
fn place(base: Ipv4Addr) -> Place {
    let [a, b, c, _] = base.octets();
    match TcpListener::bind((Ipv4Addr::new(a, b, c, 11), 0)) {
        Err(error) if error.kind() == ErrorKind::AddrNotAvailable => Place::Ports,
        _ => Place::Addresses(base),
    }
}

/// Tries every address before anything is started, to say in one sentence which is taken and what to do.
fn check_ports(layout: &Layout, place: Place) -> Result<(), BoxError> {
    let taken = |what: &str, addr: SocketAddr, advice: &str| -> Result<(), BoxError> {
        match TcpListener::bind(addr) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == ErrorKind::AddrInUse => {
                Err(format!("port {} of {}, for {what}, is taken by another program; {advice}", addr.port(), addr.ip())
                    .into())
            }
            Err(error) => Err(format!("{addr}, for {what}, cannot be listened on ({error}); {advice}").into()),
        }
    };
    taken("the control plane's API", layout.api, "choose another address with --api-addr")?;
    taken("the control plane's xDS", layout.xds, "choose another address with --xds-addr")?;
    for member in &layout.members {
        let advice = match place {
            Place::Addresses(_) => "choose another loopback network with --address-base, such as 127.0.1.0",
            Place::Ports => "end that program first",
        };
        if member.is_gateway() {
            taken("the ingress gateway", member.listen, "choose another address with --gateway-addr")?;
        } else {
            taken(&member.name, member.listen, advice)?;
        }
        taken(&format!("the metrics of {}", member.name), member.admin, advice)?;
    }
    Ok(())
}

/// The processes of one run, the control plane first.
struct Parts<'a> {
    dir: &'a Path,
    layout: &'a Layout,
    children: Vec<Child>,
}

impl Parts<'_> {
    /// Starts everything in order, then watches. Returns only if something is wrong.
    async fn run(&mut self, restart_after: Duration) -> Result<(), BoxError> {
        self.start_control_plane()?;
        match timeout(START_TIMEOUT, self.start_members()).await {
            Ok(started) => started?,
            Err(_) => return Err(format!("Bookinfo was not ready within {} seconds", START_TIMEOUT.as_secs()).into()),
        }
        self.tell();
        let (mut wait, mut restart_at) = (Duration::ZERO, None::<Instant>);
        loop {
            let (index, ended) = tokio::select! {
                ended = self.next_end() => ended,
                () = until(restart_at) => {
                    restart_at = None;
                    self.start_control_plane()?;
                    say(&format!("{CONTROL_PLANE} runs again, as process {}.", self.children[0].id()));
                    continue;
                }
            };
            let child = self.children.remove(index);
            let how = describe(ended);
            if child.name() != CONTROL_PLANE {
                say(&format!("{} ended ({how}); the others go on without it.", child.name()));
                continue;
            }
            wait = if child.age() < SOUND { (wait * 2).min(LONGEST_WAIT).max(restart_after) } else { restart_after };
            restart_at = Some(Instant::now() + wait);
            let seconds = wait.as_secs();
            say(&format!(
                "{CONTROL_PLANE} ended ({how}); starting it again in {seconds} s. Requests go on as they are."
            ));
        }
    }

    fn start_control_plane(&mut self) -> Result<(), BoxError> {
        let dir = self.dir.as_os_str().to_owned();
        self.children.insert(0, Child::start(CONTROL_PLANE, ["control-plane".into(), dir], [])?);
        Ok(())
    }

    async fn start_members(&mut self) -> Result<(), BoxError> {
        let layout = self.layout;
        for member in &layout.members {
            self.unless_one_ends(written(&member.bootstrap(self.dir))).await?;
        }
        for member in &layout.members {
            self.children.push(start(member, self.dir, layout.api)?);
        }
        self.unless_one_ends(ready(layout)).await
    }

    /// Waits for `done`, and fails as soon as a process ends instead.
    async fn unless_one_ends(&mut self, done: impl Future<Output = ()>) -> Result<(), BoxError> {
        let ended = tokio::select! {
            () = done => return Ok(()),
            ended = self.next_end() => ended,
        };
        let (index, how) = (ended.0, describe(ended.1));
        Err(format!("{} ended before all was ready ({how})", self.children.remove(index).name()).into())
    }

    /// The next process that ends by itself; none ends if there is none.
    async fn next_end(&mut self) -> (usize, Ended) {
        if self.children.is_empty() {
            return std::future::pending().await;
        }
        let ends = self.children.iter_mut().map(|child| Box::pin(child.ended()));
        let (how, index, _) = futures_util::future::select_all(ends).await;
        (index, how)
    }

    /// Ends the members, then the control plane, each by SIGTERM first.
    async fn end(self) {
        let mut children = self.children;
        let members =
            children.split_off(usize::from(children.first().is_some_and(|child| child.name() == CONTROL_PLANE)));
        for group in [members, children] {
            futures_util::future::join_all(group.into_iter().map(Child::end)).await;
        }
    }

    /// Where everything is, and what to try.
    fn tell(&self) {
        let Layout { xds, api, members } = self.layout;
        let gateway = self.layout.gateway();
        let mut text = format!("Bookinfo is ready: http://{gateway}/productpage\n");
        text += &format!("The console:       http://{api}/console/\n\n");
        text += &format!("{:<16}{:<28} {:<42} {}\n", "PROCESS", "LISTENS ON", "METRICS", "PID");
        let mut line = |name: &str, listen: String, admin: String| {
            let id = self.children.iter().find(|child| child.name() == name).map_or(0, Child::id);
            text += &format!("{name:<16}{listen:<28} {admin:<42} {id}\n");
        };
        line(CONTROL_PLANE, format!("{xds} (xDS)"), format!("http://{api} (API)"));
        for member in members {
            line(&member.name, member.listen.to_string(), format!("http://{}/metrics", member.admin));
        }
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        let server = if api.to_string() == "127.0.0.1:15014" { String::new() } else { format!(" --server {api}") };
        let meshctl = format!("cargo run{release} --bin meshctl --{server}");
        text += &format!(
            "\nBootstraps, tokens and state of this run: {}\n\nTry next, in another terminal:\n  \
             {meshctl} apply -f examples/bookinfo/mesh/reviews-jason-v2.yaml\n  \
             {meshctl} explain GET http://reviews:9080/reviews/0 -H end-user:jason --from productpage\n  \
             {meshctl} get virtualservices -o yaml\n\nCtrl-C ends all of them.",
            self.dir.display()
        );
        say(&text);
    }
}

const CONTROL_PLANE: &str = "control-plane";

/// Starts a member. Its spans go to the console, unless the environment says where else.
fn start(member: &Member, dir: &Path, console: SocketAddr) -> Result<Child, BoxError> {
    let listen = member.listen.to_string().into();
    let arguments = match member.is_gateway() {
        true => vec![member.app.clone().into(), listen, GATEWAY_PORT.to_string().into()],
        false => vec![member.app.clone().into(), listen],
    };
    let mut environment = vec![
        ("GRPC_XDS_BOOTSTRAP".to_owned(), member.bootstrap(dir).into_os_string()),
        ("MESH_ADMIN_ADDR".to_owned(), member.admin.to_string().into()),
        ("HOSTNAME".to_owned(), member.name.clone().into()),
        ("MESH_PROPAGATE_HEADERS".to_owned(), member.propagated().into()),
    ];
    if SPANS.iter().all(|name| std::env::var_os(name).is_none()) {
        environment.push((SPANS[0].to_owned(), format!("http://{console}").into()));
    }
    environment.extend(member.environment.iter().map(|(name, value)| (name.clone(), value.into())));
    Child::start(&member.name, arguments, environment)
}

/// Returns at that time, if there is one.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// Returns once the file is there.
async fn written(path: &Path) {
    while !path.exists() {
        sleep(POLL).await;
    }
}

/// Returns once every member says that it is ready, and the page comes through the gateway with all its parts.
async fn ready(layout: &Layout) {
    let client = Client::builder(TokioExecutor::new()).build_http();
    for member in &layout.members {
        while text(&client, &format!("http://{}/ready", member.admin)).await.is_none() {
            sleep(POLL).await;
        }
    }
    let page = format!("http://{}/productpage", layout.gateway());
    while text(&client, &page).await.is_none_or(|page| page.contains("Error fetching")) {
        sleep(POLL).await;
    }
}

/// The body of a 200 answer to a GET, if there is one.
async fn text(client: &Client<HttpConnector, Body>, uri: &str) -> Option<String> {
    let request = Request::get(uri).body(Body::empty()).ok()?;
    let answer = client.request(request).await.ok().filter(|answer| answer.status() == StatusCode::OK)?;
    let body = axum::body::to_bytes(Body::new(answer.into_body()), 1 << 20).await.ok()?;
    String::from_utf8(body.to_vec()).ok()
}

fn describe(ended: Ended) -> String {
    match ended {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// Writes to standard output; whoever closed it does not want to know.
fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
    let _ = out.flush();
}
