//! Rules changed by verbs rather than files, objects changed in an editor, and both as files would have it.

use super::*;

const ROUTES: &str = "http://reviews:9080/reviews/0";

/// OP7: shift, fault, timeout and retry change the rule that is there as a user would its YAML, keep all else of it, and take
/// their change back to the letter.
#[tokio::test(flavor = "multi_thread")]
async fn rules_are_steered_and_put_back() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &file]);
    let before = mesh.ok(&["get", "vs", "reviews", "-o", "yaml"]);
    let same = |what: &str| assert_eq!(mesh.ok(&["get", "vs", "reviews", "-o", "yaml"]), before, "after {what}");

    let shown = mesh.ok(&["shift", "reviews", "v1=90", "v2=10", "--dry-run"]);
    assert!(shown.contains("weight: 90") && shown.contains("subset: v2"), "{shown}");
    same("a dry run");
    let line = "virtualservice.networking.istio.io/reviews configured\n";
    assert_eq!(mesh.ok(&["shift", "reviews", "v1=90", "v2=10"]), line);
    let one: Value = serde_json::from_str(&mesh.ok(&["get", "vs", "reviews", "-o", "json"])).unwrap();
    let weights: Vec<_> = one["spec"]["http"][1]["route"].as_array().unwrap().iter().map(|to| &to["weight"]).collect();
    assert_eq!(weights, [90, 10]);
    assert!(mesh.ok(&["explain", "GET", ROUTES, "-H", "end-user:jason"]).contains("|v2|"), "jason's route stays");
    assert_eq!(mesh.ok(&["shift", "vs/reviews", "--undo"]), line);
    same("a shift");

    mesh.ok(&["shift", "reviews", "v2"]);
    assert!(mesh.ok(&["explain", "GET", ROUTES]).contains("outbound|9080|v2|"));
    mesh.ok(&["shift", "reviews.default.svc.cluster.local", "--undo"]);
    same("all to one");

    mesh.ok(&["fault", "reviews", "--delay", "7s", "--abort", "500", "--percent", "50", "--user", "martha"]);
    let faulty = mesh.ok(&["get", "vs", "reviews", "-o", "yaml"]);
    for part in ["fixedDelay: 7s", "httpStatus: 500", "exact: martha", "value: 50"] {
        assert!(faulty.contains(part), "{part} in {faulty}");
    }
    mesh.ok(&["fault", "reviews", "--undo"]);
    same("a fault");
    mesh.ok(&["timeout", "reviews", "1500ms"]);
    mesh.ok(&["retry", "reviews", "--attempts", "3", "--per-try-timeout", "400ms", "--on", "5xx"]);
    let both = mesh.ok(&["get", "vs", "reviews", "-o", "yaml"]);
    for part in ["timeout: 1500ms", "attempts: 3", "perTryTimeout: 400ms", "retryOn: 5xx"] {
        assert!(both.contains(part), "{part} in {both}");
    }
    mesh.ok(&["timeout", "reviews", "--undo"]);
    mesh.ok(&["retry", "reviews", "--undo"]);
    same("a timeout and retries");
}

/// OP7: where there is no rule one is made, and gone when nothing of it is left.
#[tokio::test(flavor = "multi_thread")]
async fn rules_are_made_and_go() {
    let mesh = Mesh::start().await;
    let file = mesh.write("services.yaml", SERVICES);
    mesh.ok(&["apply", "-f", &file]);
    assert_eq!(
        mesh.ok(&["fault", "reviews", "--abort", "503"]),
        "virtualservice.networking.istio.io/reviews created\n"
    );
    assert!(mesh.ok(&["explain", "GET", ROUTES]).contains("503"));
    assert_eq!(mesh.ok(&["fault", "reviews", "--undo"]), "virtualservice.networking.istio.io/reviews deleted\n");
    let nothing = mesh.run(&["fault", "reviews", "--undo"]);
    assert_eq!((nothing.status.code(), stderr(&nothing)), (Some(0), "There is nothing to take back.\n"));
    // What the server would not take from a file it does not take from here either.
    let unknown = mesh.run(&["shift", "reviews", "v9"]);
    assert_eq!(unknown.status.code(), Some(65), "{unknown:?}");
    assert!(
        stderr(&unknown).contains("IST0101") && stderr(&unknown).contains("virtualservice/reviews:"),
        "{unknown:?}"
    );
    assert_eq!(mesh.run(&["get", "vs", "reviews"]).status.code(), Some(1));
    let wrong: [(&[&str], i32, &str); 6] = [
        (&["shift", "reviews", "v1=50"], 2, "the shares add up to 50, not to 100"),
        (&["shift", "reviews"], 2, "give subsets with shares"),
        (&["fault", "reviews"], 2, "what is to go wrong?"),
        (&["timeout", "reviews"], 2, "how long may requests take?"),
        (&["shift", "vs/nobody", "v1"], 1, "\"nobody\" not found in namespace default"),
        (&["fault", "dr/reviews", "--abort", "500"], 2, "only a VirtualService can be steered"),
    ];
    for (arguments, code, message) in wrong {
        let output = mesh.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
        assert!(stderr(&output).contains(message), "{arguments:?}: {output:?}");
    }
}

/// OP7: what is edited is applied, opened again with what is wrong, and kept when it stays wrong.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_edited() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &file]);
    let edit = |script: &str| {
        let editor = mesh.write("editor.sh", script);
        let server = mesh.plane.api_address().to_string();
        meshctl(&server).args(["edit", "vs/reviews"]).env("MESHCTL_EDITOR", format!("sh {editor}")).output().unwrap()
    };
    let none = edit("exit 0");
    assert_eq!((none.status.code(), stdout(&none), stderr(&none)), (Some(0), "", "Nothing was changed.\n"));
    let good = edit("sed -i s/jason/martha/ \"$1\"");
    assert_eq!(stdout(&good), "virtualservice.networking.istio.io/reviews configured\n", "{good:?}");
    assert!(mesh.ok(&["get", "vs", "reviews", "-o", "yaml"]).contains("exact: martha"));
    // Wrong at first; what is wrong stands in the file then, and is mended.
    let mended =
        edit("if grep -q '# .*is not defined' \"$1\"; then sed -i s/v33/v2/ \"$1\"; else sed -i s/v2/v33/ \"$1\"; fi");
    assert_eq!(mended.status.code(), Some(0), "{mended:?}");
    let wrong = edit("sed -i 's/subset: .*/subset: v44/' \"$1\"");
    assert_eq!(wrong.status.code(), Some(65), "{wrong:?}");
    let kept = stderr(&wrong).split("what you wrote is in ").nth(1).unwrap().trim();
    assert!(std::fs::read_to_string(kept).unwrap().contains("v44"));
    std::fs::remove_dir_all(std::path::Path::new(kept).parent().unwrap()).unwrap();
    assert_eq!(edit("exit 3").status.code(), Some(1));
    assert_eq!(mesh.run(&["edit", "vs/nobody"]).status.code(), Some(1));
}

/// OP4: what is told of a service, a rule and a policy that nobody runs yet.
#[tokio::test(flavor = "multi_thread")]
async fn objects_are_described() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &file]);
    let service = mesh.ok(&["describe", "service", "reviews"]);
    for line in [
        "Host:              reviews.default.svc.cluster.local",
        "Ports:             http 9080 -> 9080",
        "Destination rule:  DestinationRule default/reviews",
        "  Subsets:         v1  version=v1  0 endpoints",
        "Virtual service:   VirtualService default/reviews",
        "  Routes:          headers end-user=jason -> reviews v2",
        "                   any -> reviews v1",
    ] {
        assert!(service.lines().any(|it| it == line), "{line:?} in\n{service}");
    }
    let rule: Value = serde_json::from_str(&mesh.ok(&["describe", "vs/reviews", "-o", "json"])).unwrap();
    assert_eq!(rule["routes"], serde_json::json!(["headers end-user=jason -> reviews v2", "any -> reviews v1"]));
    let missing = mesh.run(&["describe", "service", "nobody"]);
    assert_eq!(missing.status.code(), Some(1));
    assert_eq!(mesh.run(&["describe", "workload", "nobody"]).status.code(), Some(1));
    assert_eq!(mesh.run(&["describe", "service"]).status.code(), Some(2));
    let status = mesh.ok(&["status"]);
    assert!(status.contains("Workloads:      0 connected") && status.contains("1 virtualservices"), "{status}");
    let well = mesh.ok(&["check"]);
    assert!(well.contains("√ it answers") && well.ends_with("Status check results are √\n"), "{well}");
    let late = mesh.run(&["check", "--wait", "--workloads", "1", "--timeout", "1s"]);
    assert_eq!(late.status.code(), Some(124), "{late:?}");
}

const SECRET: &str = "apiVersion: v1
kind: Secret
metadata: {name: shop-cert}
type: kubernetes.io/tls
stringData: {tls.crt: CERTIFICATE, tls.key: KEY}
";

/// OP9: what somebody who is to help needs to see is in one directory, with no key in it.
#[tokio::test(flavor = "multi_thread")]
async fn a_bug_report_has_all_but_keys() {
    let mesh = Mesh::start().await;
    let key = rcgen::generate_simple_self_signed(["shop.example".to_owned()]).unwrap();
    let indented = |pem: &str| format!("|\n    {}", pem.trim_end().replace('\n', "\n    "));
    let pem = key.signing_key.serialize_pem();
    let secret = SECRET
        .replace("{tls.crt: CERTIFICATE, tls.key: KEY}", "\n  tls.crt: CERTIFICATE\n  tls.key: KEY")
        .replace("CERTIFICATE", &indented(&key.cert.pem()))
        .replace("KEY", &indented(&pem));
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}---\n{secret}"));
    mesh.ok(&["apply", "-f", &file]);
    let dir = mesh.path("report");
    mesh.ok(&["bug-report", "--dir", dir.to_str().unwrap()]);
    for file in [
        "meshctl.txt",
        "objects.yaml",
        "findings.txt",
        "version.json",
        "authority.json",
        "graph.json",
        "chart.json",
        "traces.json",
        "workloads.json",
        "proxies.json",
    ] {
        let text = std::fs::read_to_string(dir.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
        assert!(!text.contains("PRIVATE KEY") && !text.contains(pem.lines().nth(1).unwrap()), "{file}: {text}");
    }
    let objects = std::fs::read_to_string(dir.join("objects.yaml")).unwrap();
    assert!(objects.contains("kind: VirtualService") && objects.contains("name: shop-cert"), "{objects}");
    assert_eq!(mesh.run(&["bug-report", "--dir", dir.to_str().unwrap()]).status.code(), Some(1), "it is there already");
}

/// OP7: bash completes kinds, and names of what there is, as the control plane knows them.
#[cfg(unix)]
#[tokio::test(flavor = "multi_thread")]
async fn names_are_completed() {
    let mesh = Mesh::start().await;
    let file = mesh.write("all.yaml", &format!("{SERVICES}---\n{RULES}"));
    mesh.ok(&["apply", "-f", &file]);
    let dir = PathBuf::from(env!("CARGO_BIN_EXE_meshctl")).parent().unwrap().to_owned();
    let path = format!("{}:{}", dir.display(), std::env::var("PATH").unwrap());
    for (words, expected) in [
        (&["get", "virtuals"][..], "virtualservice"),
        (&["get", "vs", "re"], "reviews"),
        (&["-n", "default", "describe", "dr", ""], "reviews"),
        (&["shift", "r"], "reviews"),
        (&["get", "vs", "nobody"], ""),
        (&["get", "vs", "-n", "elsewhere", "re"], ""),
        (&["proxy-c"], "proxy-config"),
    ] {
        let script = format!(
            "source <(meshctl completion bash); COMP_WORDS=(meshctl {}); COMP_CWORD={}; \
             _meshctl_and_names meshctl \"${{COMP_WORDS[COMP_CWORD]}}\"; echo \"${{COMPREPLY[*]}}\"",
            words.iter().map(|word| format!("'{word}'")).collect::<Vec<_>>().join(" "),
            words.len()
        );
        let output = Command::new("bash")
            .args(["-c", &script])
            .env("PATH", &path)
            .env("MESHCTL_SERVER", mesh.plane.api_address().to_string())
            .output()
            .unwrap();
        assert_eq!(stdout(&output).trim(), expected, "{words:?}: {output:?}");
    }
}
