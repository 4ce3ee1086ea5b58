//! Rules for connections that are no HTTP: by the name asked for in the TLS handshake, or by port alone. They count at gateways.
//!
//! Source: Istio `TLSRoute`, `TCPRoute` of `VirtualService`.

use super::{Destination, action, mark};
use crate::kinds::{
    read::{Fields, Reader},
    yaml::{At, Node},
};

/// A rule of `tls` or `tcp`.
#[derive(Clone, Debug, PartialEq)]
pub struct ByteRoute {
    /// Where it is written.
    pub at: At<()>,
    /// Any of these; empty is every connection.
    pub matches: Vec<ByteMatch>,
    /// Where the bytes go, by weight.
    pub destinations: Vec<Destination>,
}

/// A condition of a rule.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ByteMatch {
    /// Names asked for in the handshake, in full or `*.suffix`; of `tcp` empty.
    pub sni_hosts: Vec<At<String>>,
    /// Only this port.
    pub port: Option<u16>,
    /// Only at these gateways; `None` is those of the object.
    pub gateways: Option<Vec<At<String>>>,
}

/// The rules of a field.
pub(super) fn read(field: &'static str, fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Vec<ByteRoute> {
    let Some((node, path)) = fields.take(field) else { return Vec::new() };
    let by_name = field == "tls";
    reader.list(node, &path).into_iter().filter_map(|(node, path)| rule(node, &path, by_name, reader)).collect()
}

fn rule(node: &Node, path: &str, by_name: bool, reader: &mut Reader<'_>) -> Option<ByteRoute> {
    let mut fields = reader.fields(node, path)?;
    let mut matches = Vec::new();
    let given = fields.take("match");
    if let Some((node, path)) = &given {
        for (node, path) in reader.list(node, path) {
            matches.extend(condition(node, &path, by_name, reader));
        }
    } else if by_name {
        reader.missing(&fields, "match");
    }
    let destinations = action::destinations(&mut fields, reader);
    fields.close(reader);
    Some(ByteRoute { at: mark(node.at), matches, destinations: destinations? })
}

fn condition(node: &Node, path: &str, by_name: bool, reader: &mut Reader<'_>) -> Option<ByteMatch> {
    let mut fields = reader.fields(node, path)?;
    let mut out = ByteMatch::default();
    if by_name {
        out.sni_hosts = fields.read("sniHosts", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
        if out.sni_hosts.is_empty() {
            reader.missing(&fields, "sniHosts");
        }
    }
    out.port = fields.read("port", |node, path| reader.port(node, path));
    out.gateways = fields.read("gateways", |node, path| Some(reader.texts(node, path)));
    fields.refused(
        reader,
        &["destinationSubnets", "sourceSubnet", "sourceLabels", "sourceNamespace"],
        "connections are told apart by the name in the handshake and by the gateway's port",
    );
    fields.close(reader);
    Some(out)
}
