//! The words both ends of an ADS conversation share: resource types, requests, responses, and a set of resources.
//!
//! The machines in `ads/` speak these plain types, so that a conversation can be written down as text and a stream of
//! either protocol variant can carry it; only the drivers turn them into protobuf messages.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
    fmt,
    time::Duration,
};

use bytes::Bytes;
use mesh_core::config::Name;

pub use self::set::ResourceSet;
use crate::{proto::Any, xdstp};

pub mod back_off;
pub mod client;
mod complaint;
pub mod delta;
mod held;
pub(crate) mod link;
#[cfg(test)]
mod pair;
mod pieces;
#[cfg(test)]
mod script;
pub mod server;
mod set;
pub mod sotw;

pub use self::{
    held::{DOES_NOT_ANSWER, DOES_NOT_EXIST, DataErrors},
    link::{FLOOR, QUICK},
};

/// Responses with more resources are refused before any of them is looked at: no process needs as many, and a control plane
/// that has gone wrong must not take the memory of those it controls (OP15).
pub const MOST_RESOURCES: usize = 200_000;

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

    /// The full name of the message.
    pub fn message_name(self) -> &'static str {
        self.as_str().rsplit('/').next().unwrap_or_default()
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

    /// Is a client worse off without what it asks for of this type? Secrets are asked of control planes that may not have any.
    pub const fn is_needed(self) -> bool {
        !matches!(self, Self::Secret)
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

/// Which resources of a type a client wants.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Subscription {
    /// Whatever the server has for it.
    All,
    /// These.
    Names(BTreeSet<Name>),
}

impl Subscription {
    /// Is this resource wanted?
    pub fn wants(&self, name: &str) -> bool {
        match self {
            Self::All => true,
            Self::Names(names) => names.contains(name),
        }
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Self::Names(names) if names.is_empty())
    }
}

/// What a client sends. Source: Envoy `DiscoveryRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// It is the first on its stream and carries the node (XD1).
    pub first: bool,
    /// The type.
    pub kind: TypeUrl,
    /// The last version accepted, empty before the first.
    pub version: String,
    /// Of the response answered, empty when none of this stream is.
    pub nonce: String,
    /// Every name wanted; empty or `*` for all.
    pub names: Vec<Name>,
    /// The response is refused, and why.
    pub error: Option<String>,
}

/// What a server sends. Source: Envoy `DiscoveryResponse`.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// The type.
    pub kind: TypeUrl,
    /// Of all resources together.
    pub version: String,
    /// Names this response on its stream.
    pub nonce: String,
    /// The resources.
    pub resources: Vec<Item>,
    /// What it cannot give (gRFC A88).
    pub problems: Vec<Problem>,
}

/// What a client of the incremental variant sends. Source: Envoy `DeltaDiscoveryRequest`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaRequest {
    /// It is the first on its stream and carries the node.
    pub first: bool,
    /// The type.
    pub kind: TypeUrl,
    /// Names wanted from now on; `*` for all, as is an empty list in a type's first request on a stream.
    pub subscribe: Vec<Name>,
    /// Names not wanted any more.
    pub unsubscribe: Vec<Name>,
    /// What the client has already, in a type's first request on a stream: version by name.
    pub initial: BTreeMap<Name, Name>,
    /// Of the response answered, empty when none is.
    pub nonce: String,
    /// The response is refused, and why.
    pub error: Option<String>,
}

/// What a server of the incremental variant sends. Source: Envoy `DeltaDiscoveryResponse`.
#[derive(Clone, Debug, PartialEq)]
pub struct DeltaResponse {
    /// The type.
    pub kind: TypeUrl,
    /// The server's own word for the state it is in; for people.
    pub version: String,
    /// Names this response on its stream.
    pub nonce: String,
    /// What has changed, and what was asked for anew.
    pub resources: Vec<Item>,
    /// What is not there, or not any more.
    pub removed: Vec<Name>,
    /// What it cannot give (gRFC A88).
    pub problems: Vec<Problem>,
}

/// One resource of a response. Source: Envoy `Resource`, or an `Any` alone.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// What the wrapper calls it; `None` when it has none (state of the world).
    pub name: Option<Name>,
    /// The wrapper's version of it; may be empty.
    pub version: Name,
    /// The message; `None` is a heartbeat, which renews the time to live and nothing else.
    pub body: Option<Any>,
    /// How long it holds unless renewed; `None` for ever.
    pub ttl: Option<Duration>,
}

/// The type in place of a resource that is one of several variants of it.
pub(crate) const VARIANT: &str = "type.googleapis.com/envoy.service.discovery.v3.DynamicParameterConstraints";

impl From<Any> for Item {
    fn from(body: Any) -> Self {
        Self { name: None, version: Name::default(), body: Some(body), ttl: None }
    }
}

impl Item {
    /// The name, as the wrapper or the message says it, or why there is none.
    fn readable_name(&self, kind: TypeUrl) -> Result<Cow<'_, str>, String> {
        if self.body.as_ref().is_some_and(|body| body.type_url == VARIANT) {
            let name = self.name.as_deref().unwrap_or_default();
            return Err(format!("{name:?} is for clients of certain dynamic parameters, which are not supported"));
        }
        if let Some(body) = self.body.as_ref().filter(|body| body.type_url != kind.as_str()) {
            return Err(format!("is of type {:?} in a response of another type", body.type_url));
        }
        match &self.name {
            Some(name) if !name.is_empty() => Some(&**name),
            _ => self.body.as_ref().and_then(|body| name_of(&body.value)),
        }
        .map(xdstp::canonical)
        .ok_or_else(|| "is not a message with a name".to_owned())
    }
}

/// Why a server cannot give a resource. Source: Envoy `ResourceError`, gRFC A88.
#[derive(Clone, Debug, PartialEq)]
pub struct Problem {
    /// Which.
    pub name: Name,
    /// It does not exist, as the server says with `NOT_FOUND`.
    pub missing: bool,
    /// The server's words.
    pub message: String,
}

/// What became of the resources.
#[derive(Clone, Debug, PartialEq)]
pub enum Event<T> {
    /// New, or other than before.
    Changed(TypeUrl, Name, T),
    /// Came, but cannot be used; one that is in force stays in force.
    Refused(TypeUrl, Name, String),
    /// Cannot be used, and none is in force any more.
    Failed(TypeUrl, Name, String),
    /// Something is wrong with it at the server; it stays in force.
    Ambient(TypeUrl, Name, String),
    /// Does not exist: deleted, or asked for in vain.
    Gone(TypeUrl, Name),
    /// A response of this type has been taken in.
    Synced(TypeUrl),
}

impl<T> Event<T> {
    /// Of which type.
    pub const fn kind(&self) -> TypeUrl {
        match self {
            Self::Changed(kind, ..)
            | Self::Refused(kind, ..)
            | Self::Failed(kind, ..)
            | Self::Ambient(kind, ..)
            | Self::Gone(kind, _)
            | Self::Synced(kind) => *kind,
        }
    }
}

/// How a type stands, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TypeReport {
    /// The last version accepted.
    pub version: String,
    /// Resources in force.
    pub resources: usize,
    /// Version and message of the refusal since, if any.
    pub refusal: Option<(String, String)>,
}

/// The name of an encoded resource, without decoding it: field 1 of every type spoken here, the last if repeated.
///
/// It lets a resource that cannot be decoded be named all the same, and one that has not changed be skipped.
pub fn name_of(mut body: &[u8]) -> Option<&str> {
    let mut name = None;
    while !body.is_empty() {
        let key = varint(&mut body)?;
        let length = match key & 7 {
            0 => {
                varint(&mut body)?;
                continue;
            }
            1 => 8,
            2 => usize::try_from(varint(&mut body)?).ok()?,
            5 => 4,
            _ => return None,
        };
        let (field, rest) = body.split_at_checked(length)?;
        if key == 0b1_010 {
            name = Some(std::str::from_utf8(field).ok()?);
        }
        body = rest;
    }
    name.filter(|name| !name.is_empty())
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn name_is_read_without_decoding() {
        let cases: [(&[u8], Option<&str>); 8] = [
            (b"\x0a\x01a", Some("a")),
            (b"\x12\x02xy\x0a\x01a\x18\x96\x01", Some("a")),
            (b"\x0a\x01a\x0a\x01b", Some("b")),
            (b"\x15abcd\x11abcdefgh\x0a\x01a", Some("a")),
            (b"\x0a\x00", None),
            (b"", None),
            (b"\x0a\x05a", None),
            (b"\x0a\x01\xff", None),
        ];
        for (body, name) in cases {
            assert_eq!(name_of(body), name, "{body:?}");
        }
        assert_eq!(name_of(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]), None);
    }

    /// XD17: v2 type URLs are not known.
    #[test]
    fn only_v3_types_are_known() {
        for kind in TypeUrl::ALL {
            assert_eq!(TypeUrl::parse(kind.as_str()), Some(kind));
        }
        assert_eq!(TypeUrl::parse("type.googleapis.com/envoy.api.v2.Cluster"), None);
    }

    #[test]
    fn version_follows_from_content() {
        let mut set = ResourceSet::default();
        let empty = set.version(TypeUrl::Cluster);
        set.insert(TypeUrl::Cluster, "a", "1");
        let one = set.version(TypeUrl::Cluster);
        set.insert(TypeUrl::Cluster, "a", "2");
        assert_ne!(set.version(TypeUrl::Cluster), one);
        set.insert(TypeUrl::Cluster, "a", "1");
        assert_eq!(set.version(TypeUrl::Cluster), one);
        assert_eq!(set.version(TypeUrl::Listener), empty);
    }
}
