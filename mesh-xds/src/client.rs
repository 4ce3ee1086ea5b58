//! Driver: keeps an ADS stream to the control plane, feeds the client machine and the graph, publishes configuration.

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use mesh_core::config::Config;
use serde::Serialize;
use tokio::sync::watch;

use crate::{ads::TypeUrl, bootstrap::Bootstrap};

/// A conversation with the control plane that lasts as long as this value.
#[derive(Debug)]
pub struct Client {
    config: watch::Receiver<Option<Arc<Config>>>,
    status: watch::Receiver<Arc<Status>>,
}

impl Client {
    /// Starts connecting to the control plane of `bootstrap`. Must be called within a tokio runtime.
    pub fn start(_bootstrap: Arc<Bootstrap>) -> Self {
        let (_, config) = watch::channel(None);
        let (_, status) = watch::channel(Arc::default());
        Self { config, status }
    }

    /// The configuration in force; `None` until the first is complete. It stays when the control plane is lost (XD9).
    pub fn config(&self) -> watch::Receiver<Option<Arc<Config>>> {
        self.config.clone()
    }

    /// How the conversation stands.
    pub fn status(&self) -> Arc<Status> {
        self.status.borrow().clone()
    }
}

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
    pub ignored: BTreeMap<String, Vec<String>>,
}

/// A response that was refused in part or whole.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Nack {
    /// Its version.
    pub version: String,
    /// Every bad resource and why.
    pub message: String,
}
