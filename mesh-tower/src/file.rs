//! A configuration in a file of this machine, in the place of a control plane (XD38): read when the process starts, and again
//! whenever it changes.
//!
//! It is the JSON of [`Config`], such as `serde_json::to_string` writes it. The first must be good; after that a file that
//! cannot be read or used changes nothing, and the admin port says why. Whoever writes it had better write another beside it
//! and rename that: of a file half written is only said that it is wrong, until it is whole.

use std::{
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use mesh_core::config::Config;
use serde_json::{Value, json};

use crate::live::Live;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// No configuration is larger; a file that is, is another's.
const LARGEST: u64 = 1 << 30;

/// How it stands with the file.
#[derive(Debug, Default)]
struct Standing {
    /// When what is in force was written.
    written: Option<SystemTime>,
    /// Why what the file says now is not in force.
    error: Option<String>,
}

/// A file that is followed.
#[derive(Debug)]
pub(crate) struct ConfigFile {
    path: PathBuf,
    /// What was last looked at: when it was written, and how long it is.
    seen: Option<(SystemTime, u64)>,
    standing: Arc<Mutex<Standing>>,
}

impl ConfigFile {
    /// Puts in force what the file says.
    ///
    /// # Errors
    /// One line that names the file and what is wrong with it.
    pub(crate) async fn open(path: &Path, live: &Live) -> Result<Self, String> {
        let mut this = Self { path: path.to_owned(), seen: None, standing: Arc::default() };
        this.look(live).await?;
        Ok(this)
    }

    /// How it stands, for whoever looks: the file, the seconds since 1970 when what is in force was written, and the error if the file
    /// says something else by now.
    pub(crate) fn standing(&self) -> impl Fn() -> Value + Send + Sync + 'static {
        let (path, standing) = (self.path.clone(), Arc::clone(&self.standing));
        move || {
            let standing = standing.lock().unwrap_or_else(PoisonError::into_inner);
            let written = standing.written.and_then(|written| written.duration_since(UNIX_EPOCH).ok());
            json!({ "file": path.display().to_string(), "written": written.map(|it| it.as_secs()), "error": standing.error })
        }
    }

    /// Puts each change in force, for as long as it runs.
    pub(crate) async fn follow(mut self, live: Arc<Live>) {
        loop {
            tokio::time::sleep(LOOK).await;
            match self.look(&live).await {
                Ok(false) => {}
                Ok(true) => {
                    tracing::info!(target: "mesh", file = %self.path.display(), "the configuration was read again")
                }
                Err(why) => tracing::warn!(target: "mesh", why, "the configuration stays as it is"),
            }
        }
    }

    /// Reads the file if it has changed; whether it had, and its configuration is in force.
    async fn look(&mut self, live: &Live) -> Result<bool, String> {
        let read = self.read(live).await;
        let wrong = |why: String| format!("the configuration file {} is not used: {why}", self.path.display());
        let mut standing = self.standing.lock().unwrap_or_else(PoisonError::into_inner);
        match read {
            Ok(None) => Ok(false),
            Ok(Some(written)) => {
                (standing.written, standing.error) = (Some(written), None);
                Ok(true)
            }
            Err(why) => {
                let why = wrong(why);
                let known = standing.error.replace(why.clone()).is_some_and(|known| known == why);
                // Said once.
                if known { Ok(false) } else { Err(why) }
            }
        }
    }

    async fn read(&mut self, live: &Live) -> Result<Option<SystemTime>, String> {
        let unread = |error: std::io::Error| format!("it cannot be read: {error}");
        let metadata = tokio::fs::metadata(&self.path).await.map_err(unread)?;
        let written = metadata.modified().map_err(unread)?;
        if self.seen == Some((written, metadata.len())) {
            return Ok(None);
        }
        if metadata.len() > LARGEST {
            return Err("it is larger than any configuration".to_owned());
        }
        let bytes = tokio::fs::read(&self.path).await.map_err(unread)?;
        self.seen = Some((written, metadata.len()));
        let config: Config = serde_json::from_slice(&bytes).map_err(|error| error.to_string())?;
        live.update(&config).map_err(|error| error.to_string())?;
        Ok(Some(written))
    }
}
