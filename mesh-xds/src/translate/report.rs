//! What becomes of each field that is set in a resource: applied, ignored or refused (C20).
//!
//! Worked out from the bytes: what is present, less what the decoder says it ignores, is what it applies. Paths are without
//! indices, so a path that is applied in one element of a list and ignored in another is named in both lists.

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::Serialize;

use super::{Listener, ResourceError};
use crate::{ads::TypeUrl, proto::fields};

/// What becomes of the fields of one resource.
#[derive(Clone, Debug, Default, Eq, Hash, PartialEq, Serialize)]
pub struct FieldReport {
    /// Paths of the fields that have effect.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub applied: Vec<String>,
    /// Paths of the fields that have none; extensions of unknown types as `path (type)`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<String>,
    /// Fields that the resource, or a port it describes, is refused for: `path: why`. Of a refused resource nothing is
    /// applied.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

impl FieldReport {
    /// That of a resource that was read, with what its decoder says it ignores.
    pub(super) fn read(kind: TypeUrl, body: &Bytes, ignored: &[String]) -> Self {
        let present = fields::present(kind.message_name(), body);
        let covered: Vec<String> = ignored.iter().filter_map(|entry| covers(entry)).collect();
        let is_covered = |path: &str| {
            let path = path.replace("default_filter_chain", "filter_chains");
            let mut rests = covered.iter().filter_map(|entry| path.strip_prefix(entry.as_str()));
            rests.any(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let applied = present.known.into_iter().filter(|path| !is_covered(path)).collect();
        let strange = present.extensions.into_iter();
        let strange = strange.filter(|entry| !is_covered(entry.split(" (").next().unwrap_or_default()));
        let ignored: BTreeSet<String> = ignored.iter().cloned().chain(strange).collect();
        Self { applied, ignored: ignored.into_iter().collect(), refused: Vec::new() }
    }

    /// That of a listener, which may have no effect as a whole, or refuse everything on a port.
    pub(super) fn listener(body: &Bytes, listener: &Listener, ignored: &[String]) -> Self {
        let mut report = Self::read(TypeUrl::Listener, body, ignored);
        match listener {
            Listener::Ignored(why) => {
                let applied = std::mem::take(&mut report.applied);
                report.ignored.extend(applied.iter().map(|path| format!("{path} ({why})")));
            }
            Listener::Inbound(ports) => {
                let why = ports.iter().filter_map(|(port, inbound)| Some((port, inbound.refused.as_ref()?)));
                report.refused.extend(why.map(|(port, why)| format!("filter_chains of port {port}: {why}")));
            }
            _ => {}
        }
        report
    }
}

impl From<&ResourceError> for FieldReport {
    /// That of a resource that was refused.
    fn from(ResourceError { field, message, .. }: &ResourceError) -> Self {
        let why = if field.is_empty() { message.clone() } else { format!("{field}: {message}") };
        Self { refused: vec![why], ..Self::default() }
    }
}

/// The path all of which an entry of the decoder's report tells as ignored; `None` when it tells of one value of it only.
fn covers(entry: &str) -> Option<String> {
    let path = match entry.split_once(' ') {
        None => entry,
        Some((path, rest)) if rest.starts_with('(') && !rest.starts_with("(is ") => path,
        Some(_) => return None,
    };
    Some(path.replace(".typed_extension_config", "").replace(".typed_config", ""))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use prost::Message;

    use super::*;
    use crate::proto::envoy::config::{
        cluster::v3::Cluster,
        listener::v3::Listener as ListenerMessage,
        route::v3::{RouteConfiguration, VirtualHost},
    };
    use crate::translate::fields;

    fn append(message: &impl Message, bytes: &[u8]) -> Bytes {
        [&message.encode_to_vec()[..], bytes].concat().into()
    }

    /// C20: fields are applied, ignored by name or number, or refuse the resource; nothing that is set goes unmentioned.
    #[test]
    fn every_field_is_accounted_for() {
        let cluster = Cluster { name: "a".to_owned(), lb_policy: 3, ..Cluster::default() };
        // alt_stat_name, and a field nobody has heard of.
        let report = fields(TypeUrl::Cluster, &append(&cluster, &[0xe2, 0x01, 0x01, b'x', 0xb8, 0x3e, 0x01]));
        assert_eq!(report.applied, ["lb_policy", "name"]);
        assert_eq!(report.ignored, ["#999", "alt_stat_name"]);
        assert!(report.refused.is_empty());

        // lb_policy of no known number.
        let report = fields(TypeUrl::Cluster, &append(&cluster, &[0x30, 0x63]));
        assert!(report.applied.is_empty() && report.refused[0].starts_with("lb_policy: 99"), "{report:?}");

        let listener = ListenerMessage { name: "x".to_owned(), traffic_direction: 1, ..ListenerMessage::default() };
        let report = fields(TypeUrl::Listener, &append(&listener, &[]));
        assert!(report.applied.is_empty(), "{report:?}");
        assert!(report.ignored.iter().any(|entry| entry.starts_with("name (an inbound listener")), "{report:?}");
    }

    /// C20: an extension that is passed over is named by its key and type.
    #[test]
    fn unknown_extensions_are_named() {
        let any = crate::proto::Any { type_url: "type.googleapis.com/a.b.Cors".to_owned(), value: Bytes::new() };
        let host = VirtualHost {
            name: "h".to_owned(),
            domains: vec!["*".to_owned()],
            typed_per_filter_config: [("cors".to_owned(), any)].into(),
            ..VirtualHost::default()
        };
        let table = RouteConfiguration { name: "r".to_owned(), virtual_hosts: vec![host], ..Default::default() };
        let report = fields(TypeUrl::Route, &append(&table, &[]));
        assert_eq!(report.applied, ["name", "virtual_hosts.domains", "virtual_hosts.name"]);
        assert_eq!(report.ignored.len(), 1, "{report:?}");
        assert!(report.ignored[0].contains("typed_per_filter_config.cors"), "{report:?}");
    }
}
