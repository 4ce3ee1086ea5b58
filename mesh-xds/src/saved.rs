//! The last good configuration on disk, to start from when no control plane answers (C8). Opt-in.
//!
//! One file: a line of JSON that says what follows (format, who wrote it, for which node, when, how long, its hash), then the
//! configuration as JSON. It is written beside and renamed, readable by its owner alone, and holds what routes, clusters and
//! endpoints say: certificates, keys and tokens are no part of a configuration. A file that is damaged, too old, of another
//! node or of another version of this crate is refused with one line and changes nothing.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::config::Config;
use serde::{Deserialize, Serialize};
use tokio::{sync::watch, time::Instant};
use xxhash_rust::xxh64::xxh64;

use crate::{bootstrap::Bootstrap, task::Task};

/// Names the file; unset is no file.
pub const FILE_VARIABLE: &str = "MESH_SAVED_CONFIG";
/// How old the file may be, in seconds; [`Saved::MAX_AGE`] unless set.
pub const AGE_VARIABLE: &str = "MESH_SAVED_CONFIG_MAX_AGE";

/// Of this layout; the configuration itself is bound to the crate's version.
const FORMAT: u32 = 1;
/// No configuration is larger; a file that is, is not ours.
const LARGEST: u64 = 1 << 30;
/// The header line is never longer.
const LONGEST_HEADER: usize = 4096;
/// Changes are written together: a mesh in motion costs one file in this time.
const PAUSE: Duration = Duration::from_secs(1);
/// A file in force all along is written anew so often within the age it may have.
const RENEWALS: u32 = 8;
/// For this long after the start a control plane is waited for, before what was saved is put in force in its place.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where the last good configuration is kept.
#[derive(Clone, Debug, PartialEq)]
pub struct Saved {
    path: PathBuf,
    max_age: Duration,
    node: String,
    server: String,
}

/// A configuration of before.
#[derive(Clone, Debug, PartialEq)]
pub struct Loaded {
    /// It.
    pub config: Arc<Config>,
    /// When it was written.
    pub written: SystemTime,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Header {
    mesh_saved_config: u32,
    version: String,
    node: String,
    server: String,
    /// Seconds since 1970.
    written: u64,
    length: u64,
    xxh64: String,
}

impl Saved {
    /// How old a configuration may be to be started from, unless told otherwise: a day.
    pub const MAX_AGE: Duration = Duration::from_secs(24 * 60 * 60);

    /// In this file, for who the bootstrap says we are.
    pub fn new(path: impl Into<PathBuf>, max_age: Duration, bootstrap: &Bootstrap) -> Self {
        Self { path: path.into(), max_age, node: bootstrap.node.id.clone(), server: bootstrap.server.address.clone() }
    }

    /// What is in the file; `None` if there is none.
    ///
    /// # Errors
    /// One line that names the file and why it is not used.
    pub fn load(&self, now: SystemTime) -> Result<Option<Loaded>, String> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.refuse(&format!("cannot be read: {error}"))),
        };
        let mut bytes = Vec::new();
        match file.take(LARGEST + 1).read_to_end(&mut bytes) {
            Ok(length) if length as u64 > LARGEST => return Err(self.refuse("is larger than any configuration")),
            Ok(_) => {}
            Err(error) => return Err(self.refuse(&format!("cannot be read: {error}"))),
        }
        self.read(&bytes, now).map(Some).map_err(|why| self.refuse(&why))
    }

    fn refuse(&self, why: &str) -> String {
        format!("the saved configuration {} is not used: it {why}", self.path.display())
    }

    fn read(&self, bytes: &[u8], now: SystemTime) -> Result<Loaded, String> {
        let end = bytes.iter().take(LONGEST_HEADER).position(|byte| *byte == b'\n');
        let (header, body) = end.and_then(|end| bytes.split_at_checked(end)).ok_or("has no header")?;
        let body = body.get(1..).unwrap_or_default();
        let header: Header =
            serde_json::from_slice(header).map_err(|_| "has a header that cannot be read".to_owned())?;
        let version = env!("CARGO_PKG_VERSION");
        if (header.mesh_saved_config, header.version.as_str()) != (FORMAT, version) {
            return Err(format!(
                "was written by version {} in format {}, this is version {version} with format {FORMAT}",
                header.version, header.mesh_saved_config
            ));
        }
        if header.node != self.node {
            return Err(format!("is that of node {:?}, this is node {:?}", header.node, self.node));
        }
        if header.length != body.len() as u64 || header.xxh64 != hash(body) {
            return Err("is damaged: its length or hash is another than its header says".to_owned());
        }
        let written = UNIX_EPOCH.checked_add(Duration::from_secs(header.written)).ok_or("is of no time")?;
        // A clock that was set back makes no file young: what claims to come from the future is not trusted.
        let age =
            now.duration_since(written).map_err(|_| "comes from the future: the clock may be wrong".to_owned())?;
        if age > self.max_age {
            return Err(format!("is {} s old, more than the {} s allowed", age.as_secs(), self.max_age.as_secs()));
        }
        let config = serde_json::from_slice(body).map_err(|error| format!("cannot be read: {error}"))?;
        Ok(Loaded { config: Arc::new(config), written })
    }

    /// Writes a configuration: beside the file, then in its place, so that a reader finds the one or the other, whole.
    ///
    /// # Errors
    /// One line that names the file and why it was not written; the file of before stays.
    pub fn store(&self, config: &Config, now: SystemTime) -> Result<(), String> {
        let failed = |why: &dyn std::fmt::Display| {
            format!("the configuration could not be saved to {}: {why}", self.path.display())
        };
        let body = serde_json::to_vec(config).map_err(|error| failed(&error))?;
        let header = Header {
            mesh_saved_config: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node.clone(),
            server: self.server.clone(),
            written: now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs(),
            length: body.len() as u64,
            xxh64: hash(&body),
        };
        let header = serde_json::to_vec(&header).map_err(|error| failed(&error))?;
        let beside = self.beside();
        let written = write_private(&beside, &[&header, b"\n", &body]).and_then(|()| fs::rename(&beside, &self.path));
        written.map_err(|error| {
            // Nothing is left of a write that failed; if that fails too, the next write begins by removing it.
            let _ = fs::remove_file(&beside);
            failed(&error)
        })
    }

    /// Another file in the same directory, of this process alone.
    fn beside(&self) -> PathBuf {
        let mut name = self.path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{}.new", std::process::id()));
        self.path.with_file_name(name)
    }
}

/// A new file that nobody else may read, on the disk before this returns.
fn write_private(path: &Path, parts: &[&[u8]]) -> std::io::Result<()> {
    // One left by a process of before may have other permissions.
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()
}

fn hash(body: &[u8]) -> String {
    format!("{:016x}", xxh64(body, 0))
}

/// Whether what is in force is of before.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Standing {
    /// What is in force was loaded from disk, and no control plane has answered since the start.
    pub stale: bool,
    /// When it was written; `None` unless stale.
    pub written: Option<SystemTime>,
    /// Why the file could not be used or written last.
    pub error: Option<String>,
}

/// Keeps the file: loads it when the control plane does not answer, writes what the control plane says. Ends with this value.
#[derive(Debug)]
pub struct Keeper {
    config: watch::Receiver<Option<Arc<Config>>>,
    standing: watch::Receiver<Standing>,
    _task: Task,
}

impl Keeper {
    /// Over the configurations of a control plane; `answers` says whether it can be reached at the moment: as long as it
    /// can, what it said last is as good as new, however long ago it said so. Must be called within a tokio runtime.
    pub fn start(
        saved: Saved,
        live: watch::Receiver<Option<Arc<Config>>>,
        answers: impl Fn() -> bool + Send + 'static,
    ) -> Self {
        Self::with_clock(saved, live, answers, SystemTime::now)
    }

    fn with_clock(
        saved: Saved,
        live: watch::Receiver<Option<Arc<Config>>>,
        answers: impl Fn() -> bool + Send + 'static,
        clock: impl Fn() -> SystemTime + Send + 'static,
    ) -> Self {
        let (publish, config) = watch::channel(None);
        let (tell, standing) = watch::channel(Standing::default());
        Self { config, standing, _task: Task::spawn(keep(saved, live, publish, tell, answers, clock)) }
    }

    /// What should be in force: of the control plane, else what was saved.
    pub fn config(&self) -> watch::Receiver<Option<Arc<Config>>> {
        self.config.clone()
    }

    /// Whether that is of before.
    pub fn standing(&self) -> Standing {
        self.standing.borrow().clone()
    }
}

async fn keep(
    saved: Saved,
    mut live: watch::Receiver<Option<Arc<Config>>>,
    publish: watch::Sender<Option<Arc<Config>>>,
    tell: watch::Sender<Standing>,
    answers: impl Fn() -> bool + Send,
    clock: impl Fn() -> SystemTime + Send,
) {
    // So often that the file is never much older than the control plane's last word.
    let renewal = (saved.max_age / RENEWALS).max(PAUSE);
    let saved = Arc::new(saved);
    let first = tokio::time::timeout(PATIENCE, live.wait_for(Option::is_some)).await.map(|found| found.is_ok());
    match first {
        Ok(true) => {}
        Ok(false) => return,
        Err(_) => start_from(&saved, &publish, &tell, clock()).await,
    }
    let mut failing = false;
    loop {
        let Ok(config) = live.wait_for(Option::is_some).await.map(|config| config.clone()) else { return };
        live.mark_unchanged();
        let error = tell.borrow().error.clone();
        if tell.send_replace(Standing { error, ..Standing::default() }).stale {
            tracing::info!(target: "mesh", "the control plane has answered; the saved configuration is no longer used");
        }
        publish.send_replace(config.clone());
        let pause = Instant::now() + PAUSE;
        if let Some(config) = config {
            let now = clock();
            let error = off_thread(&saved, move |saved| saved.store(&config, now)).await.err();
            match &error {
                Some(why) if !failing => tracing::warn!(target: "mesh", "{why}"),
                _ => {}
            }
            failing = error.is_some();
            tell.send_modify(|standing| standing.error = error);
        }
        // What comes meanwhile is put in force at once, and written together afterwards.
        let mut changed = false;
        while Instant::now() < pause {
            match tokio::time::timeout_at(pause, live.changed()).await {
                Ok(Ok(())) => {
                    changed = true;
                    let config = live.borrow_and_update().clone();
                    publish.send_replace(config);
                }
                Ok(Err(_)) => return,
                Err(_) => {}
            }
        }
        while !changed {
            match tokio::time::timeout(renewal, live.changed()).await {
                Ok(Ok(())) => changed = true,
                Ok(Err(_)) => return,
                // The same again, as of now.
                Err(_) => changed = answers(),
            }
        }
    }
}

async fn start_from(
    saved: &Arc<Saved>,
    publish: &watch::Sender<Option<Arc<Config>>>,
    tell: &watch::Sender<Standing>,
    now: SystemTime,
) {
    match off_thread(saved, move |saved| saved.load(now)).await {
        Ok(None) => {}
        Ok(Some(Loaded { config, written })) => {
            let age = now.duration_since(written).unwrap_or_default().as_secs();
            tracing::warn!(
                target: "mesh",
                age_seconds = age,
                "no control plane answers: the saved configuration is in force until one does"
            );
            tell.send_replace(Standing { stale: true, written: Some(written), error: None });
            publish.send_replace(Some(config));
        }
        Err(why) => {
            tracing::warn!(target: "mesh", "{why}");
            tell.send_modify(|standing| standing.error = Some(why));
        }
    }
}

/// Reading and writing files waits for disks.
async fn off_thread<T: Send + 'static>(
    saved: &Arc<Saved>,
    work: impl FnOnce(&Saved) -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    let saved = Arc::clone(saved);
    match tokio::task::spawn_blocking(move || work(&saved)).await {
        Ok(done) => done,
        Err(_) => Err("the saved configuration could not be worked on: the runtime is closing down".to_owned()),
    }
}

#[cfg(test)]
mod tests;
