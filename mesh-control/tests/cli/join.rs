//! Programs that join by `run` and `bootstrap`, and what `dev` leaves for them to be found.

use super::*;

/// A control plane by `meshctl dev`, with a directory of the user's own for what runs.
struct Dev {
    child: std::process::Child,
    api: String,
    home: TempDir,
}

impl Dev {
    fn start(more: &[&str]) -> Self {
        let home = tempfile::tempdir().unwrap();
        let any = "127.0.0.1:0";
        let mut command = meshctl(any);
        command.env("XDG_RUNTIME_DIR", home.path()).args(["dev", "--xds-addr", any, "--api-addr", any]).args(more);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
        let api = lines.find_map(|line| Some(line.split_once("meshctl connects to")?.1.trim().to_owned())).unwrap();
        lines.find(|line| line.contains("Press Ctrl-C")).unwrap();
        Self { child, api, home }
    }

    fn meshctl(&self) -> Command {
        let mut command = meshctl(&self.api);
        command.env("XDG_RUNTIME_DIR", self.home.path());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.meshctl().args(arguments).output().unwrap()
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// XD20: a program gets a bootstrap with its identity, its Deployment's account, labels and ports among it, and its end is the
/// command's end.
#[cfg(unix)]
#[test]
fn a_program_runs_as_a_member() {
    let dev = Dev::start(&[]);
    let deployment = DEPLOYMENT.replace(
        "serviceAccountName: bookinfo-productpage",
        "serviceAccountName: bookinfo-productpage\n      containers: [{name: page, ports: [{containerPort: 9080}]}]",
    );
    let file = dev.home.path().join("deployment.yaml");
    std::fs::write(&file, deployment).unwrap();
    assert_eq!(dev.run(&["apply", "-f", file.to_str().unwrap()]).status.code(), Some(0));
    let show = "cat \"$GRPC_XDS_BOOTSTRAP\"; echo; echo \"$OTEL_EXPORTER_OTLP_ENDPOINT\"; echo \"$0\"; exit 7";
    let ran = dev.run(&["run", "productpage", "--version", "v1", "--", "sh", "-c", show, "zero"]);
    assert_eq!(ran.status.code(), Some(7), "{ran:?}");
    let (bootstrap, rest) = stdout(&ran).rsplit_once("}\n").unwrap();
    assert_eq!(rest.trim(), format!("http://{}\nzero", dev.api));
    let bootstrap: Value = serde_json::from_str(&format!("{bootstrap}}}")).unwrap();
    let metadata = &bootstrap["node"]["metadata"];
    assert_eq!(metadata["SERVICE_ACCOUNT"], "bookinfo-productpage");
    assert_eq!(metadata["LABELS"], serde_json::json!({"app": "productpage", "version": "v1"}));
    assert!(metadata["POD_PORTS"].as_str().unwrap().contains("9080"), "{metadata}");
    let token = bootstrap["xds_servers"][0]["call_creds"][0]["config"]["jwt_token_file"].as_str().unwrap();
    assert!(!std::path::Path::new(token).exists(), "the token is gone with the program");

    let absent = dev.run(&["run", "a", "--", "/nowhere/at/all"]);
    assert_eq!(absent.status.code(), Some(127), "{absent:?}");
    assert_eq!(dev.run(&["run", "a", "--", dev.home.path().to_str().unwrap()]).status.code(), Some(126));
    assert_eq!(dev.run(&["run", "a"]).status.code(), Some(2));
    // Signals are passed on, and the program's end by one is told as shells do.
    let mut child = dev.meshctl();
    child.args(["run", "a", "--", "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"]);
    let mut child = child.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert!(Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(9));
    let killed = dev.run(&["run", "a", "--", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(killed.status.code(), Some(137), "{killed:?}");
}

/// XD20: what `run` gives a program is printed for programs that others start; without keys there is none.
#[test]
fn a_bootstrap_is_printed() {
    let dev = Dev::start(&[]);
    let dir = dev.home.path().join("files");
    let arguments = ["bootstrap", "reviews", "--version", "v2", "--port", "9080", "--dir", dir.to_str().unwrap()];
    let ran = dev.run(&arguments);
    assert_eq!(ran.status.code(), Some(0), "{ran:?}");
    let bootstrap: Value = serde_json::from_str(stdout(&ran)).unwrap();
    assert_eq!(bootstrap["node"]["cluster"], "reviews.default");
    let ran = dev.run(&[&arguments[..], &["-o", "env"]].concat());
    let file = stdout(&ran).lines().find_map(|line| line.strip_prefix("GRPC_XDS_BOOTSTRAP=")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&std::fs::read_to_string(file).unwrap()).unwrap(), bootstrap);
    // Somebody else's control plane.
    let other = meshctl(&dev.api).args(arguments).env("XDG_RUNTIME_DIR", dir.join("empty")).output().unwrap();
    assert_eq!(other.status.code(), Some(1), "{other:?}");
    assert!(stderr(&other).contains("--state-dir DIR or MESHCTL_STATE_DIR"), "{other:?}");
    let wrong = dev.run(&[&arguments[..], &["--state-dir", "/"]].concat());
    assert!(stderr(&wrong).contains("/ is not the state directory of a control plane"), "{wrong:?}");
}

/// OP7: completions and manual pages are made of the grammar; the version is told to programs too.
#[tokio::test(flavor = "multi_thread")]
async fn what_the_command_says_of_itself() {
    let mesh = Mesh::start().await;
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let script = mesh.ok(&["completion", shell]);
        assert!(script.contains("proxy-status") && script.contains("undo"), "{shell}");
    }
    assert!(mesh.ok(&["man", "proxy-config", "cluster"]).contains(".TH"));
    assert_eq!(mesh.run(&["man", "frobnicate"]).status.code(), Some(2));
    let dir = mesh.path("man");
    mesh.ok(&["man", "--output-dir", dir.to_str().unwrap()]);
    for page in ["meshctl.1", "meshctl-get.1", "meshctl-proxy-config-cluster.1"] {
        assert!(dir.join(page).exists(), "{page}");
    }
    let version: Value = serde_json::from_str(&mesh.ok(&["version", "-o", "json"])).unwrap();
    assert_eq!(version["client"]["version"], version["control_plane"]["version"]);
    assert_eq!(version["control_plane"]["xds"], mesh.plane.xds_address().to_string());
    // Colours are for terminals, or for who asks; quiet says what was asked for alone.
    let server = mesh.plane.api_address().to_string();
    let coloured = meshctl(&server).args(["--color", "always", "check"]).output().unwrap();
    assert!(stdout(&coloured).contains('\u{1b}'));
    assert!(!mesh.ok(&["check"]).contains('\u{1b}'));
    assert_eq!(stderr(&mesh.run(&["-q", "get", "vs"])), "");
    assert_eq!(mesh.run(&["get", "vs", "-n", "nowhere"]).status.code(), Some(0));
}
