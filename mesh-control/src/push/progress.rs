//! What became of what was sent, one type of one stream: how far the client has come, and what it refused.

use std::sync::Arc;

use mesh_xds::ads::{ResourceSet, TypeUrl};

use crate::api::{SyncState, TypeStatus};

/// Longer messages of a client are cut: they are kept for as long as it is connected.
pub(super) const MAX_MESSAGE: usize = 4096;

/// So many names of resources are added to a refusal that names none.
const MOST_NAMED: usize = 5;

/// How far a type has come on one stream.
#[derive(Clone, Debug, Default)]
pub(super) struct Progress {
    sent: Option<String>,
    acked: Option<String>,
    refused: Option<(String, String)>,
    refusals: u64,
    /// What the client uses of this type, as far as it is known.
    used: Arc<ResourceSet>,
}

impl Progress {
    /// A version was sent.
    pub(super) fn send(&mut self, version: &str) {
        self.sent = Some(version.to_owned());
    }

    /// The client uses a version; `view` is what it is shown at the moment.
    pub(super) fn accept(&mut self, kind: TypeUrl, version: &str, view: &Arc<ResourceSet>) {
        self.acked = Some(version.to_owned());
        self.refused = None;
        if view.version(kind) == version {
            self.used = view.clone();
        }
    }

    /// The client uses this version.
    pub(super) fn uses(&self, version: &str) -> bool {
        self.acked.as_deref() == Some(version)
    }

    /// The client refuses a version or parts of it.
    pub(super) fn refuse(&mut self, kind: TypeUrl, version: &str, message: &str, view: &ResourceSet) {
        let mut message: String = message.chars().take(MAX_MESSAGE).collect();
        // Not everybody says which; one that was new is.
        let new = if view.version(kind) == version { view.news(kind, &self.used) } else { Vec::new() };
        if !new.is_empty() && !new.iter().any(|name| message.contains(&**name)) {
            let named: Vec<&str> = new.iter().take(MOST_NAMED).map(|name| &**name).collect();
            message = format!("{} (new in this push: {})", message.trim_end(), named.join(", "));
        }
        tracing::warn!(%kind, version, message, "a workload refused a push");
        self.refused = Some((version.to_owned(), message));
        self.refusals += 1;
    }

    /// The same for those who ask.
    pub(super) fn status(&self) -> TypeStatus {
        let state = match (&self.sent, &self.acked, &self.refused) {
            (None, ..) => SyncState::NotSent,
            (Some(sent), _, Some((refused, _))) if sent == refused => SyncState::Error,
            (Some(sent), Some(acked), _) if sent == acked => SyncState::Synced,
            _ => SyncState::Stale,
        };
        TypeStatus {
            state,
            sent: self.sent.clone(),
            acked: self.acked.clone(),
            error: self.refused.as_ref().map(|(_, message)| message.clone()),
            refusals: self.refusals,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// OP1: a refusal that names no resource is told with what was new, until a better version is taken.
    #[test]
    fn a_refusal_says_what_was_new() {
        let route = |set: &mut ResourceSet, name: &str, body: &'static str| set.insert(TypeUrl::Route, name, body);
        let mut view = ResourceSet::default();
        route(&mut view, "80", "good");
        route(&mut view, "9080", "good");
        let good = Arc::new(view.clone());
        let mut progress = Progress::default();
        let version = |view: &ResourceSet| view.version(TypeUrl::Route);
        assert_eq!(progress.status().state, SyncState::NotSent);
        progress.send(&version(&good));
        assert_eq!(progress.status().state, SyncState::Stale);
        progress.accept(TypeUrl::Route, &version(&good), &good);
        assert_eq!(progress.status().state, SyncState::Synced);
        route(&mut view, "9080", "bad");
        progress.send(&version(&view));
        progress.refuse(TypeUrl::Route, &version(&view), "no such operator", &view);
        let status = progress.status();
        assert_eq!((status.state, status.refusals), (SyncState::Error, 1));
        assert_eq!(status.error.as_deref(), Some("no such operator (new in this push: 9080)"));
        progress.refuse(TypeUrl::Route, &version(&view), "9080: no such operator", &view);
        assert_eq!(progress.status().error.as_deref(), Some("9080: no such operator"));
        progress.send(&version(&good));
        progress.accept(TypeUrl::Route, &version(&good), &good);
        assert_eq!((progress.status().state, progress.status().error), (SyncState::Synced, None));
    }
}
