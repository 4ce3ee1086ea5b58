//! `meshctl cert`: what it prints of the authority, what it changes, and how it refuses.

use super::*;

/// CT5, CT8, CT10: revoking is shown, told to members, refused for what is nothing, and undone.
#[tokio::test(flavor = "multi_thread")]
async fn revocations_are_made_shown_and_undone() {
    let mesh = Mesh::start().await;
    let id = "spiffe://cluster.local/ns/default/sa/reviews";
    let table = mesh.ok(&["cert", "inspect"]);
    assert!(table.starts_with("AUTHORITY") && table.contains("active") && !table.contains("REVOKED"), "{table}");
    let table = mesh.ok(&["cert", "revoke", id, "0A:1B"]);
    assert!(table.contains(id) && table.contains("0a1b") && table.contains("serial"), "{table}");
    let told = mesh.plane.ca().told();
    assert!(
        told.borrow().trust.denied_ids.contains(id)
            && told.borrow().trust.denied_serials.contains([0x0a, 0x1b].as_slice())
    );
    let status: Value = serde_json::from_str(&mesh.ok(&["cert", "inspect", "-o", "json"])).unwrap();
    assert!(
        status["crl"].as_str().unwrap().contains("BEGIN X509 CRL") && status["denied_ids"][id].is_u64(),
        "{status}"
    );
    assert!(!mesh.ok(&["cert", "revoke", "--undo", id, "a1b"]).contains("REVOKED"));

    for bad in ["https://example.com", "not-hex", "spiffe://A"] {
        let output = mesh.run(&["cert", "revoke", bad]);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(stderr(&output).contains("cannot be revoked") && stderr(&output).contains(bad), "{output:?}");
    }
}

/// CT5: the authority is changed step by step or in one go; a step that is not the next is refused.
#[tokio::test(flavor = "multi_thread")]
async fn an_authority_is_changed_by_command() {
    let mesh = Mesh::start().await;
    let before = mesh.plane.root_certificate();
    let output = mesh.run(&["cert", "rotate", "remove"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("the next is `add`"), "{output:?}");
    let table = mesh.ok(&["cert", "rotate"]);
    assert!(table.contains("coming") && table.contains("next step is `activate`"), "{table}");
    assert!(mesh.ok(&["cert", "rotate", "activate"]).contains("leaving"));
    assert!(!mesh.ok(&["cert", "rotate", "-o", "yaml"]).contains("leaving"));
    let after = mesh.plane.root_certificate();
    assert_ne!(after, before);
    let output = mesh.run(&["cert", "rotate", "--all"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(stderr(&output).contains("remove: done") && mesh.plane.root_certificate() != after, "{output:?}");
    let output = mesh.run(&["cert", "rotate", "add", "--from", "/nowhere"]);
    assert!(output.status.code() != Some(0) && stderr(&output).contains("/nowhere"), "{output:?}");
}

/// CT5, CT6: a certificate is issued with the keys of the state directory alone, its key readable by its owner alone, and shown.
#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_issued_and_shown() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
    let plane = ControlPlane::builder().xds_addr(any).api_addr(any).state_dir(at("state")).start().await.unwrap();
    let run = |arguments: &[&str]| meshctl(&plane.api_address().to_string()).args(arguments).output().unwrap();
    let (state, out) = (at("state"), at("out"));
    let output = run(&["cert", "issue", "reviews", "--state-dir", &state, "-o", &out, "--ttl", "600"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = run(&["cert", "inspect", &(out.clone() + "/cert-chain.pem")]);
    let table = stdout(&output);
    assert!(table.contains("spiffe://cluster.local/ns/default/sa/reviews") && table.contains("true"), "{output:?}");
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(out.clone() + "/key.pem").unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    for (arguments, why) in [
        (vec!["cert", "issue", "reviews", "--state-dir", &out, "-o", &out], "not the state directory"),
        (vec!["cert", "issue", "Reviews", "--state-dir", &state, "-o", &out], "service account"),
        (vec!["cert", "issue", "r", "--ttl", "99999999", "--state-dir", &state, "-o", &out], "longest allowed"),
        (vec!["cert", "inspect", &(out.clone() + "/key.pem")], "holds no certificate"),
    ] {
        let output = run(&arguments);
        assert_ne!(output.status.code(), Some(0), "{output:?}");
        assert!(stderr(&output).contains(why), "{output:?} should say {why}");
    }
}
