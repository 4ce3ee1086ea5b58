//! What a test does without the program or the files of somebody else that it needs: it says so, where a test runner does not keep it to
//! itself, and passes; where `MESH_REQUIRE_PEERS` is set to anything, as in the continuous integration, it fails. Included by whoever
//! needs a peer, in whatever crate; how a peer is started stands with its tests.

#![allow(dead_code, reason = "each test needs another part of it")]
#![allow(clippy::panic)]

use std::{
    collections::BTreeSet,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

/// Whether a missing peer is a failure.
fn are_required() -> bool {
    std::env::var_os("MESH_REQUIRE_PEERS").is_some_and(|value| !value.is_empty())
}

/// Says, once, what is missing, or fails.
pub(crate) fn missing(why: &str) {
    assert!(!are_required(), "{why}");
    skipped(why);
}

/// Says, once, why something is not tested, whatever is required: somebody has said that it is not to be had.
pub(crate) fn skipped(why: &str) {
    static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    if SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(why.to_owned()) {
        // Past the test runner, which keeps to itself what a test prints that passes.
        drop(writeln!(std::io::stderr(), "SKIPPED: {why}"));
    }
}

/// A program that `variable` names, or that is on the path; `None` after saying that it is missing, and how it is had.
pub(crate) fn program(name: &str, variable: &str, how: &str) -> Option<PathBuf> {
    let named = std::env::var_os(variable).filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = named.or_else(|| on_path(name));
    if found.is_none() {
        missing(&format!("no `{name}` on the path, and {variable} names none ({how})"));
    }
    found
}

/// A program on the path.
pub(crate) fn on_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// A file or folder of Istio's: below what `MESH_ISTIO_DATA` names, else below `target/istio` of this workspace. `none` says that there is
/// nothing to be had.
pub(crate) fn istio_file(file: &str) -> Option<PathBuf> {
    let named = std::env::var_os("MESH_ISTIO_DATA").filter(|path| !path.is_empty());
    if named.as_deref() == Some("none".as_ref()) {
        skipped("what needs Istio's own files, since MESH_ISTIO_DATA says that there are none");
        return None;
    }
    let roots = match named {
        Some(named) => vec![PathBuf::from(named)],
        // A crate of the workspace, or its root.
        None => Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().take(2).map(|it| it.join("target/istio")).collect(),
    };
    let found = roots.iter().map(|root| root.join(file)).find(|path| path.exists());
    if found.is_none() {
        missing(
            "what needs Istio's own files, since there are none (`just istio` fetches them; MESH_ISTIO_DATA names another place)",
        );
    }
    found
}

/// A file or folder of Istio's sample Bookinfo.
pub(crate) fn istio(file: &str) -> Option<PathBuf> {
    istio_file(&format!("samples/bookinfo/{file}"))
}
