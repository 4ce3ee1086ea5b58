//! A watched folder: what its files say is what the control plane holds.
//!
//! The folder is looked at four times a second, by the names, sizes and times of its files; that works over every file system and
//! needs nothing of the operating system. A change waits until the folder has been quiet for a moment, so that a file half written
//! or a checkout half done is not taken; one that never rests is taken all the same after ten seconds. Then all files are applied
//! as one, and objects that came from the folder and are no longer in it are deleted with them. A fault in any file changes
//! nothing: it is told, and what held before stays. Objects that were applied by other means are left alone.
//!
//! Source: istiod's `--configDir`, Istio's debounce (`PILOT_DEBOUNCE_AFTER`, `PILOT_DEBOUNCE_MAX`).

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::time::{self, Instant};

use crate::{
    diagnostic::Diagnostic,
    state::State,
    store::{Action, SourceFile, StoreError},
};

/// Between two looks.
const INTERVAL: Duration = Duration::from_millis(250);

/// How long a folder must have been as it is.
const QUIET: Duration = Duration::from_millis(100);

/// After this long a folder that never rests is taken as it is.
const LONGEST: Duration = Duration::from_secs(10);

/// Folders of more files, or files of more bytes together, are refused.
const MAX_FILES: usize = 10_000;
const MAX_BYTES: u64 = 64 << 20;

/// How deep folders may lie within each other.
const MAX_DEPTH: usize = 16;

/// What a folder looked like.
pub(crate) type Look = BTreeMap<PathBuf, (Option<SystemTime>, u64)>;

/// When a changed folder is to be read. Pure: time is an argument.
#[derive(Debug, Default)]
struct Debounce {
    /// When the first and the last change was seen that has not been taken yet.
    since: Option<(Instant, Instant)>,
}

impl Debounce {
    /// A look at `now` differed from the one before it, or not. True when the folder is to be read.
    fn look(&mut self, changed: bool, now: Instant) -> bool {
        if changed {
            let first = self.since.map_or(now, |(first, _)| first);
            self.since = Some((first, now));
        }
        let due = self
            .since
            .is_some_and(|(first, last)| now.duration_since(last) >= QUIET || now.duration_since(first) >= LONGEST);
        if due {
            self.since = None;
        }
        due
    }
}

/// The files of a folder and of those in it: YAML and JSON, none that is hidden.
fn look(dir: &Path) -> io::Result<Look> {
    let mut out = Look::new();
    walk(dir, 0, &mut out)?;
    let bytes: u64 = out.values().map(|(_, size)| size).sum();
    if bytes > MAX_BYTES {
        return Err(io::Error::other(format!("its files hold {bytes} bytes, and {MAX_BYTES} are the most")));
    }
    Ok(out)
}

fn walk(dir: &Path, depth: usize, out: &mut Look) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other(format!("{} lies too deep", dir.display())));
    }
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let hidden = path.file_name().and_then(|name| name.to_str()).is_none_or(|name| name.starts_with('.'));
        if hidden {
            continue;
        }
        // Links are followed, as a cluster's volumes are made of them. What vanishes meanwhile is not there.
        let Ok(meta) = fs::metadata(&path) else { continue };
        if meta.is_dir() {
            walk(&path, depth + 1, out)?;
        } else if path.extension().is_some_and(|ext| ["yaml", "yml", "json"].iter().any(|known| ext == *known)) {
            out.insert(path, (meta.modified().ok(), meta.len()));
        }
        if out.len() > MAX_FILES {
            return Err(io::Error::other(format!("it holds more than {MAX_FILES} files")));
        }
    }
    Ok(())
}

/// Everything in a folder, by path, and what the folder looked like before it was read.
pub(crate) fn read(dir: &Path) -> io::Result<(Look, Vec<SourceFile>)> {
    let look = look(dir)?;
    let file = |path: &PathBuf| {
        let text = fs::read_to_string(path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(SourceFile { name: path.display().to_string(), text })
    };
    let files = look.keys().map(file).collect::<io::Result<Vec<_>>>()?;
    Ok((look, files))
}

/// Keeps the state as the folder is, until dropped. What it looked like when it was read last is `seen`.
pub(crate) async fn run(dir: PathBuf, seen: Look, state: Arc<State>) {
    let mut debounce = Debounce::default();
    let mut seen: Result<Look, String> = Ok(seen);
    let mut ticks = time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let folder = dir.clone();
        let Ok(now_seen) = tokio::task::spawn_blocking(move || look(&folder).map_err(|error| error.to_string())).await
        else {
            return;
        };
        let changed = seen != now_seen;
        if changed && let Err(error) = &now_seen {
            tracing::error!(folder = %dir.display(), error, "the watched folder cannot be read; what it said before holds");
        }
        let readable = now_seen.is_ok();
        seen = now_seen;
        if debounce.look(changed, Instant::now()) && readable {
            let (folder, state) = (dir.clone(), state.clone());
            let _ = tokio::task::spawn_blocking(move || take(&folder, &state)).await;
        }
    }
}

/// Applies a folder and says what came of it.
fn take(dir: &Path, state: &State) {
    let taken = read(dir).map_err(|error| error.to_string()).map(|(_, files)| state.sync(dir, &files));
    match taken {
        Ok(Ok(applied)) => {
            let changed = applied.changes.iter().filter(|change| change.action != Action::Unchanged).count();
            tracing::info!(folder = %dir.display(), changed, version = applied.version, "the watched folder was applied");
            applied.diagnostics.iter().for_each(tell);
        }
        Ok(Err(StoreError::Invalid(found))) => {
            let errors = found.iter().filter(|it| it.is_error()).count();
            found.iter().for_each(tell);
            tracing::error!(folder = %dir.display(), errors, "the watched folder is wrong; what it said before holds");
        }
        Ok(Err(error)) => tracing::error!(folder = %dir.display(), %error, "the watched folder was not applied"),
        Err(error) => tracing::error!(folder = %dir.display(), error, "the watched folder cannot be read"),
    }
}

/// One line, `file:line:column` first.
fn tell(it: &Diagnostic) {
    let line = format!("{}:{}:{}: [{}] {}", it.file, it.line, it.column, it.code, it.message);
    if it.is_error() {
        tracing::error!("{line}");
    } else {
        tracing::warn!("{line}");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// A folder is read once it is quiet, and after a while in any case.
    #[test]
    fn a_change_waits_for_quiet_and_not_forever() {
        let start = Instant::now();
        let at = |millis: u64| start + Duration::from_millis(millis);
        let mut debounce = Debounce::default();
        assert!(!debounce.look(false, at(0)));
        assert!(!debounce.look(true, at(250)));
        assert!(!debounce.look(true, at(300)), "it is still being written");
        assert!(debounce.look(false, at(400)));
        assert!(!debounce.look(false, at(650)), "once");
        for millis in (1_000..10_900).step_by(50) {
            assert!(!debounce.look(true, at(millis)), "{millis}");
        }
        assert!(debounce.look(true, at(11_000)));
    }

    /// Only YAML and JSON counts, in folders of folders too; what is hidden does not.
    #[test]
    fn a_folder_is_its_yaml() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["b.yaml", "a.yml", "deep/er/c.json", ".hidden.yaml", "..data/d.yaml", "notes.txt"] {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let (_, files) = read(dir.path()).unwrap();
        let names: Vec<&str> =
            files.iter().map(|file| file.name.strip_prefix(&*dir.path().to_string_lossy()).unwrap()).collect();
        assert_eq!(names, ["/a.yml", "/b.yaml", "/deep/er/c.json"]);
        assert!(look(&dir.path().join("absent")).is_err());
    }
}
