//! Istio `PeerAuthentication`: whether callers must show a certificate.
//!
//! Source: `istio.security.v1beta1.PeerAuthentication`. `UNSET` inherits from the next wider level.

use std::collections::BTreeMap;

use mesh_core::config::{Labels, MtlsMode};

use super::{
    read::{Fields, Reader},
    yaml::Node,
};
use crate::diagnostic::{Level, codes};

/// A `PeerAuthentication`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PeerAuthentication {
    /// Labels of the workloads meant; empty is the whole namespace, in the root namespace the whole mesh.
    pub selector: Labels,
    /// `None` inherits.
    pub mode: Option<MtlsMode>,
    /// By port of the workload, not of the service; `None` inherits.
    pub ports: BTreeMap<u16, Option<MtlsMode>>,
}

impl PeerAuthentication {
    pub(crate) fn read(fields: &mut Fields<'_>, root: bool, reader: &mut Reader<'_>) -> Self {
        let mut out = Self::default();
        if let Some((node, path)) = fields.take("selector") {
            if let Some(mut selector) = reader.fields(node, &path) {
                out.selector =
                    selector.read("matchLabels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
                selector.close(reader);
            }
            if root && !out.selector.is_empty() {
                reader.report(
                    codes::INVALID_WARNING,
                    Level::Warning,
                    node.at,
                    format!("{path} in the root namespace selects workloads of that namespace only"),
                );
            }
        }
        out.mode = fields.read("mtls", |node, path| mode(node, path, reader)).flatten();
        if let Some((node, path)) = fields.take("portLevelMtls") {
            if out.selector.is_empty() {
                reader.invalid(node.at, format!("{path} needs a selector")).help =
                    Some("ports are those of workloads: say which with spec.selector.matchLabels".to_owned());
            }
            for (key, value) in reader.map(node, &path) {
                match key.parse::<u16>() {
                    Ok(port) if port > 0 => {
                        let mode = mode(value, &format!("{path}.{}", key.value), reader);
                        out.ports.insert(port, mode.flatten());
                    }
                    _ => {
                        reader.invalid(key.at, format!("{path}: {:?} is no port number", key.value));
                    }
                }
            }
        }
        out
    }
}

fn mode(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<Option<MtlsMode>> {
    let mut fields = reader.fields(node, path)?;
    let mode = fields.read("mode", |node, path| {
        let words = [
            ("UNSET", None),
            ("DISABLE", Some(MtlsMode::Disable)),
            ("PERMISSIVE", Some(MtlsMode::Permissive)),
            ("STRICT", Some(MtlsMode::Strict)),
        ];
        reader.word(node, path, &words)
    });
    fields.close(reader);
    Some(mode.flatten())
}
