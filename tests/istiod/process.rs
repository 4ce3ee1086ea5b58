//! istiod as a process: found, given a root, keys and a folder of configuration in place of Kubernetes, and ended with the test.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::ffi::OsString;
use std::fs::File;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair, KeyUsagePurpose};
use serde_json::json;
use tokio::net::TcpStream;

use crate::calls::{Answer, client, get};
use crate::peers::{self, istio};
use crate::programs::Killed;
use crate::steps::ALL;
use crate::tokens::{AUDIENCE, ISSUER, Tokens};

/// How long it may take to start on a busy machine.
const START: Duration = Duration::from_secs(90);

/// The name that istiod proves.
pub(crate) const SERVER_NAME: &str = "istiod.istio-system.svc";

/// The program, if there is one and Istio's files are there, too; otherwise says why the test is skipped.
pub(crate) fn program() -> Option<PathBuf> {
    if std::env::var_os("MESH_ISTIOD").is_some_and(|named| named == "none") {
        peers::skipped("all of tests/istiod: MESH_ISTIOD says that there is no istiod here");
        return None;
    }
    let program = peers::program("pilot-discovery", "MESH_ISTIOD", "istiod 1.29.6 as its makers ship it")?;
    istio(ALL).map(|_| program)
}

/// How it is to be started.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// After how long it closes each connection.
    pub(crate) connection_age: Option<Duration>,
}

/// A running istiod.
pub(crate) struct Istiod {
    process: Option<Killed>,
    program: PathBuf,
    options: Options,
    network: [u8; 3],
    dir: PathBuf,
    tokens: Tokens,
}

impl Istiod {
    /// Starts one in `dir`, at address 9 of `network`, with the objects that are, or will be, in `dir/config`.
    pub(crate) async fn start(program: PathBuf, dir: &Path, network: [u8; 3], options: Options) -> Self {
        write_authority(&dir.join("cacerts"));
        std::fs::write(dir.join("mesh.yaml"), MESH).unwrap();
        std::fs::create_dir_all(dir.join("config")).unwrap();
        let mut this = Self { process: None, program, options, network, dir: dir.to_owned(), tokens: Tokens::new() };
        this.run().await;
        this
    }

    /// Starts it again, if it is not running, and waits until it is ready.
    ///
    /// Objects are put in front of it only then: what is in the folder at its start may have been read before anybody in it
    /// listens, and is not told of again.
    pub(crate) async fn run(&mut self) {
        let (config, aside) = (self.dir.join("config"), self.dir.join("aside"));
        std::fs::rename(&config, &aside).unwrap();
        std::fs::create_dir(&config).unwrap();
        let rule = json!({
            "issuer": ISSUER, "audiences": [AUDIENCE], "jwksUri": format!("http://{}/keys", self.tokens.jwks),
        });
        let flag = |name: &str, value: &Path| {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(value);
            flag
        };
        let log = File::options().append(true).create(true).open(self.log()).unwrap();
        let mut command = Command::new(&self.program);
        command
            .args(["discovery", "--registries=", "--httpsAddr=", "--ctrlz_port=0", "--clusterID=Kubernetes"])
            .args(["--domain=cluster.local", "--namespace=istio-system"])
            .arg(flag("configDir", &self.dir.join("config")))
            .arg(flag("meshConfig", &self.dir.join("mesh.yaml")))
            .arg(format!("--grpcAddr={}", self.at(15010)))
            .arg(format!("--secureGRPCAddr={}", self.at(15012)))
            .arg(format!("--httpAddr={}", self.at(8080)))
            .arg(format!("--monitoringAddr={}", self.at(15014)))
            .env("ROOT_CA_DIR", self.dir.join("cacerts"))
            .env("JWT_RULE", rule.to_string())
            .env("PILOT_CERT_PROVIDER", "istiod")
            .env("PILOT_DEBOUNCE_AFTER", "20ms")
            .current_dir(&self.dir)
            .stdout(log.try_clone().unwrap())
            .stderr(Stdio::from(log));
        if let Some(age) = self.options.connection_age {
            command.arg(format!("--keepaliveMaxServerConnectionAge={}ms", age.as_millis()));
        }
        self.process = Some(Killed::start(command));
        let until = std::time::Instant::now() + START;
        // It says `ready` only where it injects sidecars, too.
        while TcpStream::connect(self.at(15012)).await.is_err() {
            assert!(std::time::Instant::now() < until, "istiod is not ready; it said:\n{}", self.said());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        for entry in std::fs::read_dir(&aside).unwrap() {
            let entry = entry.unwrap();
            std::fs::rename(entry.path(), config.join(entry.file_name())).unwrap();
        }
        std::fs::remove_dir(aside).unwrap();
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        self.process = None;
    }

    /// One of its ports.
    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        let [a, b, c] = self.network;
        SocketAddr::from(([a, b, c, 9], port))
    }

    /// One GET of its debug port.
    pub(crate) async fn get(&self, path: &str) -> Answer {
        get(&client(), &format!("http://{}{path}", self.at(8080)), &[]).await
    }

    /// The root that it signs by, and is known by.
    pub(crate) fn root(&self) -> PathBuf {
        self.dir.join("cacerts/root-cert.pem")
    }

    /// Writes a token of this service account into a file.
    pub(crate) fn write_token(&self, file: &Path, namespace: &str, account: &str) {
        std::fs::write(file, self.tokens.issue(namespace, account)).unwrap();
    }

    /// How many streams of this process it has logged, of a kind as it writes it.
    pub(crate) fn streams(&self, kind: &str, name: &str) -> usize {
        let said = std::fs::read_to_string(self.log()).unwrap_or_default();
        said.lines().filter(|line| line.contains(&format!("{kind} for node")) && line.contains(name)).count()
    }

    /// The last of what it has logged.
    pub(crate) fn said(&self) -> String {
        let said = std::fs::read_to_string(self.log()).unwrap_or_default();
        let lines: Vec<&str> = said.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    fn log(&self) -> PathBuf {
        self.dir.join("istiod.log")
    }
}

/// What Istio's own installation says, as far as it matters without Kubernetes.
const MESH: &str = "trustDomain: cluster.local
rootNamespace: istio-system
enableAutoMtls: true
outboundTrafficPolicy: {mode: ALLOW_ANY}
defaultProviders: {metrics: [prometheus]}
accessLogFile: /dev/stdout
";

/// A root and an authority under it, as `cacerts` holds them.
fn write_authority(dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::OrganizationName, "tests");
    params.distinguished_name.push(DnType::CommonName, "Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).unwrap().pem();
    for (file, text) in [
        ("ca-cert.pem", &root),
        ("ca-key.pem", &key.serialize_pem()),
        ("root-cert.pem", &root),
        ("cert-chain.pem", &root),
    ] {
        std::fs::write(dir.join(file), text).unwrap();
    }
}
