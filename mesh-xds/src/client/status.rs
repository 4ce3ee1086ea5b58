//! How the conversations with control planes stand, for people and their tools.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use serde::Serialize;

use super::stream::State;
use crate::ads::TypeUrl;

/// How the conversation with the control plane stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Status {
    /// `host:port` of the control plane.
    pub server: String,
    /// The node id it knows us by.
    pub node: String,
    /// Since when the stream is up; `None` when it is not.
    pub connected_since: Option<SystemTime>,
    /// Why the last stream or connection attempt ended, as text only (XD11); `None` while connected.
    pub error: Option<String>,
    /// By resource type, those asked for.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
    /// The streams to servers of authorities of their own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<StreamStatus>,
}

/// How a further stream stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct StreamStatus {
    /// `host:port` of the server.
    pub server: String,
    /// Since when the stream is up; `None` when it is not.
    pub connected_since: Option<SystemTime>,
    /// Why the last stream or connection attempt ended; `None` while connected.
    pub error: Option<String>,
    /// By resource type, those asked for.
    pub types: BTreeMap<TypeUrl, TypeStatus>,
}

/// How one resource type stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct TypeStatus {
    /// The last version accepted.
    pub version: String,
    /// Resources in force.
    pub resources: usize,
    /// The last refusal since the version in force, if any.
    pub nack: Option<Nack>,
    /// By resource name, the fields in it that have no effect here.
    pub ignored: Arc<BTreeMap<String, Vec<String>>>,
}

/// A response that was refused in part or whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Nack {
    /// Its version.
    pub version: String,
    /// Every bad resource and why.
    pub message: String,
}

impl State {
    pub(super) fn status(&self) -> StreamStatus {
        let types = self.types.iter().map(|(kind, report)| {
            let refusal = report.refusal.clone();
            let status = TypeStatus {
                version: report.version.clone(),
                resources: report.resources,
                nack: refusal.map(|(version, message)| Nack { version, message }),
                ignored: self.ignored.get(kind).cloned().unwrap_or_default(),
            };
            (*kind, status)
        });
        StreamStatus {
            server: self.server.clone(),
            connected_since: self.connected_since,
            error: self.error.clone(),
            types: types.collect(),
        }
    }
}
