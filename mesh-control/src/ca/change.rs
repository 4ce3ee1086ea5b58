//! Changing the authority in three steps, each of which can be taken while the mesh is working: its root is added to what everybody
//! trusts, then it signs, then the old one is trusted no more. Between any two steps every certificate in use is believed by
//! everybody. Source: Istio's "plug in CA certificates", rotation with overlapping roots.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use super::{
    CaError,
    authority::{Authority, Parts},
    files,
};

/// The authorities there are: one, or two while one takes the other's place.
#[derive(Debug)]
pub(super) struct Authorities {
    pub(super) active: Arc<Authority>,
    /// The one that comes, or the one that goes.
    pub(super) other: Option<(Role, Arc<Authority>)>,
    dir: Option<PathBuf>,
}

/// What an authority is at the moment.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// It signs.
    Active,
    /// It is trusted, and signs from the next step on.
    Coming,
    /// It is still trusted, and does not sign any more.
    Leaving,
}

/// A step of a change.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Step {
    /// A new root is trusted beside the old.
    Add,
    /// The new one signs.
    Activate,
    /// The old one is trusted no more.
    Remove,
    /// Back to before the step taken last.
    Abort,
}

/// What is asked for.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RotateRequest {
    /// Which step; without it the next.
    #[serde(default)]
    pub step: Option<Step>,
    /// Where the new authority's files are (Istio's names); without it one is made. Only of [`Step::Add`].
    #[serde(default)]
    pub from: Option<PathBuf>,
    /// Removes the old one although there are workloads that have nothing of the new one yet.
    #[serde(default)]
    pub force: bool,
}

/// The file that says which authorities there are. Without it, the one in the directory itself is the only one.
#[derive(Deserialize, Serialize)]
struct Saved {
    active: Place,
    other: Option<(Role, Place)>,
}

#[derive(Deserialize, Serialize)]
struct Place {
    dir: PathBuf,
    made: bool,
}

impl Authorities {
    pub(super) fn alone(active: Arc<Authority>) -> Self {
        Self { active, other: None, dir: None }
    }

    /// What `dir` says; the first one is made there, or is that of `given`.
    pub(super) fn open(dir: &Path, given: Option<&Path>, trust_domain: &str, now: SystemTime) -> Result<Self, CaError> {
        files::make_directory(dir)?;
        let read = |Place { dir: place, made }: Place| {
            let place = dir.join(place);
            let missing = || CaError::Root(format!("{} has no ca-cert.pem", place.display()));
            let parts = Parts::read(&place)?.ok_or_else(missing)?;
            Authority::new(parts, Some(place), made, trust_domain, now)
        };
        if let Some(text) = files::read(&dir.join("authorities.json"))? {
            let saved: Saved = serde_json::from_str(&text)
                .map_err(|error| CaError::Root(format!("authorities.json is not of this control plane: {error}")))?;
            let other = saved.other.map(|(role, place)| Ok::<_, CaError>((role, read(place)?))).transpose()?;
            return Ok(Self { active: read(saved.active)?, other, dir: Some(dir.to_owned()) });
        }
        let active = match (given, Parts::read(dir)?) {
            (Some(given), _) => read(Place { dir: given.to_owned(), made: false })?,
            (None, Some(parts)) => {
                // Files with the root's key, or from before there were intermediates, are of our making.
                let made = parts.root_key.is_some() || parts.roots == parts.certificate;
                Authority::new(parts, Some(dir.to_owned()), made, trust_domain, now)?
            }
            (None, None) => {
                let parts = Parts::make(trust_domain, now)?;
                parts.write(dir)?;
                Authority::new(parts, Some(dir.to_owned()), true, trust_domain, now)?
            }
        };
        let authorities = Self { active, other: None, dir: Some(dir.to_owned()) };
        authorities.save()?;
        Ok(authorities)
    }

    /// All that are trusted, the one that signs first.
    pub(super) fn all(&self) -> impl Iterator<Item = (Role, &Arc<Authority>)> {
        let other = self.other.as_ref().map(|(role, authority)| (*role, authority));
        std::iter::once((Role::Active, &self.active)).chain(other)
    }

    /// The step that comes next.
    pub(super) fn next(&self) -> Step {
        match &self.other {
            None => Step::Add,
            Some((Role::Leaving, _)) => Step::Remove,
            Some(_) => Step::Activate,
        }
    }

    /// Takes a step, if it is the next, or goes back one.
    pub(super) fn take(
        &mut self,
        step: Step,
        from: Option<&Path>,
        trust_domain: &str,
        now: SystemTime,
    ) -> Result<(), CaError> {
        let next = self.next();
        if from.is_some() && step != Step::Add {
            return Err(CaError::Step("files are only taken by the step `add`".to_owned()));
        }
        let gone = match (step, self.other.take()) {
            (Step::Add, None) => {
                self.other = Some((Role::Coming, self.make(from, trust_domain, now)?));
                None
            }
            (Step::Activate, Some((Role::Coming, coming))) => {
                self.other = Some((Role::Leaving, std::mem::replace(&mut self.active, coming)));
                None
            }
            (Step::Remove, Some((Role::Leaving, leaving))) => Some(leaving),
            (Step::Abort, Some((Role::Coming, coming))) => Some(coming),
            (Step::Abort, Some((_, leaving))) => {
                self.other = Some((Role::Coming, std::mem::replace(&mut self.active, leaving)));
                None
            }
            (step, other) => {
                self.other = other;
                let asked = format!("{step:?}").to_lowercase();
                let next = format!("{next:?}").to_lowercase();
                return Err(CaError::Step(format!("the step `{asked}` cannot be taken now; the next is `{next}`")));
            }
        };
        self.save()?;
        if let Some(gone) = gone.filter(|gone| gone.made)
            && let Some(place) = &gone.place
        {
            for name in ["ca-key.pem", "root-key.pem", "ca-cert.pem", "cert-chain.pem", "root-cert.pem"] {
                let _ = fs::remove_file(place.join(name));
            }
            let _ = fs::remove_dir(place);
        }
        Ok(())
    }

    fn make(&self, from: Option<&Path>, trust_domain: &str, now: SystemTime) -> Result<Arc<Authority>, CaError> {
        let authority = if let Some(from) = from {
            let missing = || CaError::Root(format!("{} has no ca-cert.pem", from.display()));
            let place = from.canonicalize().map_err(|source| CaError::Io { path: from.to_owned(), source })?;
            let parts = Parts::read(&place)?.ok_or_else(missing)?;
            Authority::new(parts, Some(place), false, trust_domain, now)?
        } else {
            let parts = Parts::make(trust_domain, now)?;
            let word = super::authority::hex(super::serial_number()?.as_ref().get(..8).unwrap_or_default());
            let place = self.dir.as_ref().map(|dir| dir.join(format!("authority-{word}")));
            if let Some(place) = &place {
                parts.write(place)?;
            }
            Authority::new(parts, place, true, trust_domain, now)?
        };
        if authority.key_id() == self.active.key_id() {
            return Err(CaError::Step("that is the authority that signs already".to_owned()));
        }
        Ok(authority)
    }

    fn save(&self) -> Result<(), CaError> {
        let Some(dir) = &self.dir else { return Ok(()) };
        // Within the directory they are named from there, so that it may be moved.
        let place = |authority: &Authority| {
            let at = authority.place.as_deref().unwrap_or(dir);
            Place { dir: at.strip_prefix(dir).unwrap_or(at).to_owned(), made: authority.made }
        };
        let saved = Saved {
            active: place(&self.active),
            other: self.other.as_ref().map(|(role, authority)| (*role, place(authority))),
        };
        let text = serde_json::to_string_pretty(&saved).map_err(|error| CaError::Step(error.to_string()))?;
        files::write_public(&dir.join("authorities.json"), &text)
    }
}
