//! What `meshctl` says to input that is wrong, and how it ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use crate::harness::shared;
use crate::programs::{free_network, meshctl};
use crate::steps::Configured;

/// OP3: each mistake is shown with file, line and column, an excerpt and what to do; exit code 65, and nothing takes effect.
#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_pointed_at_and_nothing_takes_effect() {
    let bookinfo = shared().await;
    bookinfo.reset().await;
    let good =
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: good}\nspec:\n  host: ratings\n";
    let head = "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata:\n  name: bad\nspec:\n";
    let rules =
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: bad}\nspec:\n  host: reviews\n";
    // (what is wrong, the document, line and column of the mistake, what must be said)
    let cases = [
        ("no YAML", "kind: [\n".to_owned(), None, ""),
        (
            "unknown kind",
            "apiVersion: networking.istio.io/v1\nkind: VirtualServise\nmetadata: {name: bad}\n".to_owned(),
            Some((2, 7)),
            "VirtualService",
        ),
        ("unknown field", format!("{head}  hosts: [reviews]\n  htpp: []\n"), Some((7, 3)), "http"),
        ("wrong type", format!("{head}  hosts: reviews\n"), Some((6, 10)), "hosts"),
        (
            "weight of -1",
            format!(
                "{head}  hosts: [reviews]\n  http:\n  - route:\n    - destination: {{host: reviews}}\n      weight: -1\n"
            ),
            Some((10, 15)),
            "weight",
        ),
        (
            "no such subset",
            format!(
                "{rules}  subsets: [{{name: v1, labels: {{version: v1}}}}]\n---\n{head}  hosts: [reviews]\n  http:\n  - route:\n    - destination: {{host: reviews, subset: v11}}\n"
            ),
            None,
            "v1",
        ),
    ];
    let dir = tempfile::tempdir().unwrap();
    for (number, (what, document, place, said)) in cases.into_iter().enumerate() {
        let file = dir.path().join(format!("case-{number}.yaml"));
        std::fs::write(dir.path().join("a-good.yaml"), good).unwrap();
        std::fs::write(&file, document).unwrap();
        let folder = dir.path().to_str().unwrap();
        let ran = bookinfo.meshctl(&["apply", "-f", folder]);
        assert_eq!(ran.code, 65, "{what}: {}{}", ran.out, ran.err);
        let at = match place {
            Some((line, column)) => format!("case-{number}.yaml:{line}:{column}"),
            None => format!("case-{number}.yaml:"),
        };
        assert!(ran.err.contains(&at), "{what}: no `{at}` in:\n{}", ran.err);
        assert!(
            ran.err.contains(said) && ran.err.contains('|'),
            "{what}: no `{said}`, or no excerpt, in:\n{}",
            ran.err
        );
        std::fs::remove_file(file).unwrap();
        for (kind, name) in [("destinationrule", "good"), ("virtualservice", "bad")] {
            assert_ne!(bookinfo.meshctl(&["get", kind, name]).code, 0, "{what}: {kind} {name} is there");
        }
    }
}

/// OP7: without a control plane, exit code 69 and the address that was tried.
#[test]
fn an_unreachable_control_plane_is_named() {
    let [a, b, c] = free_network();
    let server = format!("{a}.{b}.{c}.9:15014");
    for arguments in [&["get", "virtualservices"][..], &["apply", "-f", "-"]] {
        let ran = meshctl(&server, arguments, "");
        assert_eq!(ran.code, 69, "{arguments:?}: {}{}", ran.out, ran.err);
        assert!(ran.err.contains(&format!("{a}.{b}.{c}.9:15014")), "{}", ran.err);
    }
}
