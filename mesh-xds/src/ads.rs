//! The words both ends of an ADS conversation share: resource types, requests, responses, and a set of resources.
//!
//! The machines in `ads/` speak these plain types, so that a conversation can be written down as text and a stream of
//! either protocol variant can carry it; only the drivers turn them into protobuf messages.

use std::{collections::BTreeMap, fmt};

use bytes::Bytes;
use mesh_core::config::Name;
use xxhash_rust::xxh64::{Xxh64, xxh64};

/// A resource type this crate speaks, in the order in which a server sends them (XD12: make before break).
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum TypeUrl {
    /// `envoy.config.cluster.v3.Cluster` (CDS).
    Cluster,
    /// `envoy.config.endpoint.v3.ClusterLoadAssignment` (EDS).
    Endpoint,
    /// `envoy.config.listener.v3.Listener` (LDS).
    Listener,
    /// `envoy.config.route.v3.RouteConfiguration` (RDS).
    Route,
    /// `envoy.extensions.transport_sockets.tls.v3.Secret` (SDS).
    Secret,
}

impl TypeUrl {
    /// All of them, in sending order.
    pub const ALL: [Self; 5] = [Self::Cluster, Self::Endpoint, Self::Listener, Self::Route, Self::Secret];

    /// The type URL on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cluster => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
            Self::Endpoint => "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
            Self::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
            Self::Route => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
            Self::Secret => "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        }
    }

    /// The abbreviation people use: `CDS`, `EDS`, `LDS`, `RDS`, `SDS`.
    pub const fn short(self) -> &'static str {
        match self {
            Self::Cluster => "CDS",
            Self::Endpoint => "EDS",
            Self::Listener => "LDS",
            Self::Route => "RDS",
            Self::Secret => "SDS",
        }
    }

    /// Reads a type URL of the wire; v2 URLs and types this crate does not speak are `None` (XD17).
    pub fn parse(url: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == url)
    }

    /// A response of the state-of-the-world protocol lists every resource of the type, so that absence deletes (XD5).
    pub const fn is_full_state(self) -> bool {
        matches!(self, Self::Cluster | Self::Listener)
    }
}

impl fmt::Display for TypeUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

impl serde::Serialize for TypeUrl {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.short())
    }
}

/// One resource as it travels: the message inside its `Any`, and a version that changes when it does.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// A hash of the body.
    pub version: Name,
    /// The encoded message.
    pub body: Bytes,
}

/// Everything a server has for one client, by type and name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    types: BTreeMap<TypeUrl, BTreeMap<Name, Resource>>,
}

impl ResourceSet {
    /// Adds a resource, or replaces the one of that name. Its version follows from its bytes, so that two runs of a
    /// control plane that say the same give the same versions.
    pub fn insert(&mut self, kind: TypeUrl, name: impl Into<Name>, body: impl Into<Bytes>) {
        let body = body.into();
        let version = format!("{:016x}", xxh64(&body, 0)).into();
        self.types.entry(kind).or_default().insert(name.into(), Resource { version, body });
    }

    /// The resource of that name.
    pub fn get(&self, kind: TypeUrl, name: &str) -> Option<&Resource> {
        self.types.get(&kind)?.get(name)
    }

    /// All resources of a type, by name.
    pub fn iter(&self, kind: TypeUrl) -> impl Iterator<Item = (&Name, &Resource)> {
        self.types.get(&kind).into_iter().flatten()
    }

    /// The version of all resources of a type together: what `version_info` carries.
    pub fn version(&self, kind: TypeUrl) -> String {
        let mut hash = Xxh64::new(0);
        for (name, resource) in self.iter(kind) {
            hash.update(name.as_bytes());
            hash.update(&[0]);
            hash.update(resource.version.as_bytes());
        }
        format!("{:016x}", hash.digest())
    }
}
