//! Where a control plane of this user keeps its state: how `run` and `bootstrap` find the keys of the one that `dev` runs, without being
//! told.
//!
//! A file beside the user's other run-time files, named after the API's address, holds the directory. It is a pointer only: the keys
//! stay where they are, and who may read them is decided there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The pointer of a control plane that runs; gone with it.
#[derive(Debug)]
pub(in crate::cli) struct Pointer {
    path: PathBuf,
}

impl Pointer {
    /// Says that the control plane at `api` keeps its state in `dir`. Without a place for such files nothing is said.
    pub(in crate::cli) fn write(api: &str, dir: &Path) -> io::Result<Option<Self>> {
        let Some(path) = path(api) else { return Ok(None) };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::write(&path, dir.canonicalize()?.to_string_lossy().as_bytes())?;
        Ok(Some(Self { path }))
    }
}

impl Drop for Pointer {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// The state directory of the control plane at `api`, if it is known and still there.
pub(in crate::cli) fn find(api: &str) -> Option<PathBuf> {
    let dir = PathBuf::from(fs::read_to_string(path(api)?).ok()?);
    has_keys(&dir).then_some(dir)
}

/// Whether a control plane keeps its state there.
pub(in crate::cli) fn has_keys(dir: &Path) -> bool {
    dir.join("token-key.pem").exists()
}

/// In the user's own directory for what runs, or for state. Source: XDG Base Directory Specification.
fn path(api: &str) -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = variable("XDG_RUNTIME_DIR")
        .or_else(|| variable("XDG_STATE_HOME"))
        .or_else(|| variable("HOME").map(|home| home.join(".local/state")))?;
    let name: String = api.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    Some(base.join("meshctl").join(format!("{}.state", name.replace("localhost", "127.0.0.1"))))
}
