//! The store: every object applied, with its creation time, kept over restarts.
//!
//! A put is all or nothing. Objects keep their creation time when applied again, because of several virtual services for one
//! host the oldest counts (Istio's rule), and re-applying a file must not change which one that is. On disk it is one JSON
//! file, replaced by an atomic rename.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{
    analyze::{analyze, broken_by, whole},
    diagnostic::Diagnostic,
    kinds::{Key, Kind, Object, Source, parse, parse_source},
    registry::Registered,
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

/// A successful apply or delete.
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

/// The state file.
#[derive(Deserialize, Serialize)]
struct Saved {
    version: u64,
    objects: Vec<SavedObject>,
}

/// An object is kept as it was written, so that it is read again with its positions.
#[derive(Deserialize, Serialize)]
struct SavedObject {
    created: u64,
    key: Key,
    source: Source,
}

impl Store {
    /// Opens the store in a directory (created if missing), or in memory only.
    ///
    /// # Errors
    ///
    /// When the directory or the file in it cannot be read.
    pub fn open(dir: Option<PathBuf>) -> Result<Self, StoreError> {
        let Some(dir) = dir else { return Ok(Self::default()) };
        let path = dir.join("objects.json");
        let mut store = Self { path: Some(path.clone()), ..Self::default() };
        let Some(saved) = read_json::<Saved>(&path)? else { return Ok(store) };
        store.version = saved.version;
        for SavedObject { created, key, source } in saved.objects {
            let corrupt = |reason: String| StoreError::Corrupt { path: path.clone(), reason };
            let parsed = parse_source(&source).map_err(|found| {
                let first = found.iter().find(|it| it.is_error()).map(|it| it.message.clone());
                corrupt(format!("{key} cannot be read any more: {}", first.unwrap_or_default()))
            })?;
            // A `List` is one document with several objects.
            let found = parsed.objects.into_iter().find(|object| object.key == key);
            let mut object = found.ok_or_else(|| corrupt(format!("{key} is not where it was")))?;
            object.created = created;
            store.objects.insert(key, Arc::new(object));
        }
        Ok(store)
    }

    /// Parses, analyses and puts files: what `meshctl apply` does. `now` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When a file has an error, or the state cannot be written; nothing is applied then.
    pub fn apply(&mut self, files: &[SourceFile], now: u64) -> Result<Applied, StoreError> {
        let (objects, diagnostics) = self.check(files)?;
        let changes = self.put(objects, now)?;
        Ok(Applied { changes, diagnostics, version: self.version })
    }

    /// What [`Store::apply`] would do, without doing it.
    ///
    /// # Errors
    ///
    /// When a file has an error.
    pub fn dry_run(&self, files: &[SourceFile]) -> Result<Applied, StoreError> {
        let (objects, diagnostics) = self.check(files)?;
        let (_, changes) = self.with(objects, 0);
        Ok(Applied { changes, diagnostics, version: self.version })
    }

    /// Makes the objects that came from a folder what its files say now: all of them are put, and those that came from there before
    /// and are no longer in it are deleted, as one change. `now` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When a file has an error, or the state cannot be written; nothing changes then.
    pub fn sync(&mut self, folder: &Path, files: &[SourceFile], now: u64) -> Result<Applied, StoreError> {
        let (objects, mut diagnostics) = self.check(files)?;
        let (mut next, mut changes) = self.with(objects, now);
        let gone: Vec<Key> = next
            .values()
            .filter(|object| Path::new(&*object.source.file).starts_with(folder))
            .filter(|object| !changes.iter().any(|change| change.key == object.key))
            .map(|object| object.key.clone())
            .collect();
        for key in gone {
            next.remove(&key);
            changes.push(Change { key, action: Action::Deleted });
        }
        let before = self.objects();
        self.commit(next, changes.iter().any(|change| change.action != Action::Unchanged))?;
        if changes.iter().any(|change| change.action == Action::Deleted) {
            for it in broken_by(&before, &self.objects()) {
                if !diagnostics.contains(&it) {
                    diagnostics.push(it);
                }
            }
        }
        Ok(Applied { changes, diagnostics, version: self.version })
    }

    /// Everything `meshctl analyze` finds when these files join what is there.
    pub fn analyze(&self, files: &[SourceFile], running: &[Arc<Registered>]) -> Vec<Diagnostic> {
        let mut objects = Vec::new();
        let mut found = Vec::new();
        for file in files {
            match parse(&file.name, &file.text) {
                Ok(parsed) => {
                    objects.extend(parsed.objects);
                    found.extend(parsed.diagnostics);
                }
                Err(diagnostics) => found.extend(diagnostics),
            }
        }
        let applied: Vec<Arc<Object>> = objects.iter().cloned().map(Arc::new).collect();
        let (all, _) = self.with(objects, u64::MAX);
        let all: Vec<Arc<Object>> = all.into_values().collect();
        // Without files everything that is there is looked at.
        found.extend(whole(if files.is_empty() { &all } else { &applied }, &all, running));
        found
    }

    /// Puts objects that are known to be right. `now` is in Unix milliseconds.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; nothing is put then.
    pub fn put(&mut self, objects: Vec<Object>, now: u64) -> Result<Vec<Change>, StoreError> {
        let (next, changes) = self.with(objects, now);
        // An unchanged object may have moved to another file, which is worth keeping but is no new version.
        let changed = changes.iter().any(|change| change.action != Action::Unchanged);
        self.commit(next, changed)?;
        Ok(changes)
    }

    /// Deletes objects; those that do not exist are left out of the answer. Its diagnostics are what the rest misses now.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; nothing is deleted then.
    pub fn delete(&mut self, keys: &[Key]) -> Result<Applied, StoreError> {
        let mut next = self.objects.clone();
        let changes: Vec<Change> = keys
            .iter()
            .filter(|key| next.remove(key).is_some())
            .map(|key| Change { key: key.clone(), action: Action::Deleted })
            .collect();
        let before = self.objects();
        self.commit(next, !changes.is_empty())?;
        let diagnostics = if changes.is_empty() { Vec::new() } else { broken_by(&before, &self.objects()) };
        Ok(Applied { changes, diagnostics, version: self.version })
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

    /// Files as objects, in the order written; of an object given twice the last stays.
    fn check(&self, files: &[SourceFile]) -> Result<(Vec<Object>, Vec<Diagnostic>), StoreError> {
        let mut objects = Vec::new();
        let mut found = Vec::new();
        for file in files {
            match parse(&file.name, &file.text) {
                Ok(mut parsed) => {
                    objects.append(&mut parsed.objects);
                    found.append(&mut parsed.diagnostics);
                }
                Err(mut diagnostics) => found.append(&mut diagnostics),
            }
        }
        // What depends on other objects is told also when a file is broken, as far as it could be read.
        let applied: Vec<Arc<Object>> = objects.iter().cloned().map(Arc::new).collect();
        let (all, _) = self.with(objects.clone(), u64::MAX);
        let all: Vec<Arc<Object>> = all.into_values().collect();
        if !found.iter().any(Diagnostic::is_error) {
            found.extend(analyze(&applied, &all));
        }
        if found.iter().any(Diagnostic::is_error) { Err(StoreError::Invalid(found)) } else { Ok((objects, found)) }
    }

    /// The objects after a put, and what it does to each.
    fn with(&self, objects: Vec<Object>, now: u64) -> (BTreeMap<Key, Arc<Object>>, Vec<Change>) {
        let mut next = self.objects.clone();
        let mut changes: Vec<Change> = Vec::new();
        for mut object in objects {
            let before = self.objects.get(&object.key);
            object.created = before.map_or(now, |before| before.created);
            let action = match before {
                None => Action::Created,
                Some(before) if **before == object => Action::Unchanged,
                Some(_) => Action::Configured,
            };
            let change = Change { key: object.key.clone(), action };
            match changes.iter_mut().find(|other| other.key == change.key) {
                Some(other) => *other = change,
                None => changes.push(change),
            }
            next.insert(object.key.clone(), Arc::new(object));
        }
        (next, changes)
    }

    /// Writes first: what cannot be kept is not in force either.
    fn commit(&mut self, next: BTreeMap<Key, Arc<Object>>, changed: bool) -> Result<(), StoreError> {
        let version = self.version + u64::from(changed);
        if let Some(path) = &self.path {
            let objects = next.values().map(|object| SavedObject {
                created: object.created,
                key: object.key.clone(),
                source: object.source.clone(),
            });
            write_json(path, &Saved { version, objects: objects.collect() })?;
        }
        self.objects = next;
        self.version = version;
        Ok(())
    }
}

/// A state file, if it is there.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, StoreError> {
    match fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| StoreError::Corrupt { path: path.to_owned(), reason: error.to_string() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(StoreError::Io { path: path.to_owned(), source }),
    }
}

/// Replaces a state file whole: a crash leaves the old one or the new one.
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), StoreError> {
    let failed = |source: io::Error| StoreError::Io { path: path.to_owned(), source };
    let dir = path.parent().unwrap_or_else(|| Path::new("."));
    fs::create_dir_all(dir).map_err(failed)?;
    let mut file = tempfile::NamedTempFile::new_in(dir).map_err(failed)?;
    serde_json::to_writer(&mut file, value).map_err(|error| failed(error.into()))?;
    file.as_file().sync_all().map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    const RULE: &str = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: reviews}\nspec:\n  host: reviews\n  subsets:\n  - {name: v1, labels: {version: v1}}\n";

    fn file(text: &str) -> [SourceFile; 1] {
        [SourceFile { name: "f.yaml".into(), text: text.into() }]
    }

    fn actions(applied: &Applied) -> Vec<Action> {
        applied.changes.iter().map(|change| change.action).collect()
    }

    #[test]
    fn creation_times_stay_and_only_differences_count() {
        let mut store = Store::open(None).unwrap();
        assert_eq!(actions(&store.apply(&file(RULE), 5).unwrap()), [Action::Created]);
        let moved = format!("# moved down\n\n{RULE}");
        assert_eq!(actions(&store.apply(&file(&moved), 6).unwrap()), [Action::Unchanged]);
        assert_eq!(store.version(), 1);
        let changed = RULE.replace("version: v1", "version: v2");
        let would = store.dry_run(&file(&changed)).unwrap();
        assert_eq!((actions(&would), store.version()), (vec![Action::Configured], 1));
        assert_eq!(actions(&store.apply(&file(&changed), 7).unwrap()), [Action::Configured]);
        let key = Key::new(Kind::DestinationRule, "default", "reviews");
        assert_eq!((store.get(&key).unwrap().created, store.version()), (5, 2));
        assert_eq!(store.delete(&[key.clone(), key.clone()]).unwrap().changes.len(), 1);
        assert!(store.get(&key).is_none());
        assert_eq!(store.version(), 3);
    }

    #[test]
    fn one_error_keeps_everything_out() {
        let mut store = Store::open(None).unwrap();
        let text = format!("{RULE}---\napiVersion: v1\nkind: Banana\nmetadata: {{name: x}}\n");
        let StoreError::Invalid(found) = store.apply(&file(&text), 1).unwrap_err() else { panic!() };
        assert_eq!(found.iter().filter(|it| it.is_error()).count(), 1);
        assert_eq!((store.objects().len(), store.version()), (0, 0));
    }

    #[test]
    fn it_survives_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Store::open(Some(dir.path().join("state"))).unwrap();
        open().apply(&file(&format!("# first\n---\n{RULE}")), 5).unwrap();
        let mut store = open();
        let object = store.objects().remove(0);
        assert_eq!((object.created, object.source.first_line, store.version()), (5, 2, 1));
        assert_eq!(actions(&store.apply(&file(RULE), 9).unwrap()), [Action::Unchanged]);
        fs::write(dir.path().join("state/objects.json"), "nonsense").unwrap();
        assert!(matches!(Store::open(Some(dir.path().join("state"))), Err(StoreError::Corrupt { .. })));
    }
}
