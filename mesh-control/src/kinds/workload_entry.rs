//! Istio `WorkloadEntry`: an endpoint that is written down; also the form of a `ServiceEntry`'s own endpoints.
//!
//! Source: `istio.networking.v1.WorkloadEntry`.

use std::collections::BTreeMap;

use mesh_core::config::{Labels, Locality};

use super::{
    read::{Fields, Reader},
    yaml::At,
};

/// A `WorkloadEntry`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WorkloadEntry {
    /// An IP address, `unix://` and a path, or a host name (with DNS resolution only).
    pub address: At<String>,
    /// Its number for a service's port name.
    pub ports: BTreeMap<String, u16>,
    /// `app`, `version`, ...
    pub labels: Labels,
    /// `region/zone/subzone`.
    pub locality: Locality,
    /// Its share, default 1.
    pub weight: u32,
    /// Whose certificate it shows; empty is none.
    pub service_account: String,
}

impl WorkloadEntry {
    /// Does it take Istio's mutual TLS? Says its label `security.istio.io/tlsMode`, else whether it has an account.
    pub fn takes_mtls(&self) -> bool {
        match self.labels.get("security.istio.io/tlsMode") {
            Some(mode) => mode == "istio",
            None => !self.service_account.is_empty(),
        }
    }

    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let address = fields.read("address", |node, path| reader.text(node, path));
        if address.is_none() && !fields.seen("address") {
            reader.missing(fields, "address");
        }
        Self { address: address.unwrap_or_default(), ..Self::read_without_address(fields, reader) }
    }

    /// Everything but the address, as a `WorkloadGroup` has it for many.
    pub(crate) fn read_without_address(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut ports = BTreeMap::new();
        if let Some((node, path)) = fields.take("ports") {
            for (name, node) in reader.map(node, &path) {
                if let Some(port) = reader.port(node, &format!("{path}.{}", name.value)) {
                    ports.insert(name.value.clone(), port);
                }
            }
        }
        let out = Self {
            address: At::default(),
            ports,
            labels: fields.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default(),
            locality: fields
                .read("locality", |node, path| reader.text(node, path))
                .map(|text| locality(&text))
                .unwrap_or_default(),
            weight: fields.read("weight", |node, path| reader.u32(node, path)).unwrap_or(1).max(1),
            service_account: fields
                .read("serviceAccount", |node, path| reader.text(node, path))
                .map(|at| at.value)
                .unwrap_or_default(),
        };
        fields.ignored(reader, &["network"], "every endpoint is reached directly; there is one network");
        out
    }
}

/// `region/zone/subzone`.
fn locality(text: &str) -> Locality {
    let mut parts = text.split('/');
    let mut part = || parts.next().unwrap_or_default().into();
    Locality { region: part(), zone: part(), sub_zone: part() }
}
