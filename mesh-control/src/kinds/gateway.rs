//! Istio `Gateway`: what an ingress listens for. TLS at the gateway is refused by name, redirecting to it is not.
//!
//! Source: `istio.networking.v1.Gateway`.

use mesh_core::config::Labels;

use super::{
    read::{Fields, Reader},
    service::PortProtocol,
    service_entry::protocol,
    yaml::{At, Node},
};

/// A `Gateway`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gateway {
    /// Labels of the gateway workloads meant; empty is every one.
    pub selector: Labels,
    /// What they listen for.
    pub servers: Vec<Server>,
    /// Only workloads of the object's namespace are meant, as the Gateway API has it.
    pub own_namespace: bool,
}

/// One port of a gateway and the hosts served there.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// Bound as written; a gateway may map it to another.
    pub port: u16,
    /// `host`, `namespace/host`, `./host`, `*`.
    pub hosts: Vec<At<String>>,
    /// Every request is sent to `https`. `tls.httpsRedirect`.
    pub https_redirect: bool,
}

impl Gateway {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let selector = fields.read("selector", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
        let mut servers = Vec::new();
        match fields.take("servers") {
            Some((node, path)) => {
                let mut names: Vec<String> = Vec::new();
                for (node, path) in reader.list(node, &path) {
                    servers.extend(server(node, &path, &mut names, reader));
                }
            }
            None => reader.missing(fields, "servers"),
        }
        Self { selector, servers, own_namespace: false }
    }
}

fn server(node: &Node, path: &str, names: &mut Vec<String>, reader: &mut Reader<'_>) -> Option<Server> {
    let mut fields = reader.fields(node, path)?;
    let port = match fields.take("port") {
        Some((node, path)) => port(node, &path, names, reader),
        None => {
            reader.missing(&fields, "port");
            None
        }
    };
    let hosts = fields.read("hosts", |node, path| Some(reader.texts(node, path)));
    if hosts.is_none() {
        reader.missing(&fields, "hosts");
    }
    for host in hosts.iter().flatten() {
        if host.split('/').count() > 2 || host.ends_with('/') {
            reader.invalid(host.at, format!("{path}.hosts: {:?} is neither host nor namespace/host", host.value));
        }
    }
    let mut https_redirect = false;
    if let Some((node, path)) = fields.take("tls") {
        https_redirect = tls(node, &path, reader);
    }
    fields.ignored(reader, &["bind"], "the gateway says itself which address it listens on");
    fields.ignored(reader, &["name", "defaultEndpoint"], "it changes nothing of how requests are routed");
    fields.close(reader);
    let (number, protocol) = port?;
    if !protocol.is_http() {
        reader.unsupported(node.at, path, "only servers of protocol HTTP, HTTP2 and GRPC are taken, without TLS");
    }
    Some(Server { port: number, hosts: hosts.unwrap_or_default(), https_redirect })
}

fn port(node: &Node, path: &str, names: &mut Vec<String>, reader: &mut Reader<'_>) -> Option<(u16, PortProtocol)> {
    let mut fields = reader.fields(node, path)?;
    let number = fields.read("number", |node, path| reader.port(node, path));
    if number.is_none() && !fields.seen("number") {
        reader.missing(&fields, "number");
    }
    match fields.read("name", |node, path| reader.text(node, path)) {
        Some(name) if names.contains(&name.value) => {
            reader.invalid(name.at, format!("{path}.name {:?} is used by another server", name.value));
        }
        Some(name) => names.push(name.value),
        None if !fields.seen("name") => reader.missing(&fields, "name"),
        None => {}
    }
    let protocol = fields.read("protocol", |node, path| protocol(node, path, reader));
    if protocol.is_none() && !fields.seen("protocol") {
        reader.missing(&fields, "protocol");
    }
    fields.ignored(reader, &["targetPort"], "it is deprecated and has no effect in Istio either");
    fields.close(reader);
    Some((number?, protocol?))
}

fn tls(node: &Node, path: &str, reader: &mut Reader<'_>) -> bool {
    let Some(mut fields) = reader.fields(node, path) else { return false };
    let redirect = fields.read("httpsRedirect", |node, path| reader.boolean(node, path)).unwrap_or(false);
    fields.refused(
        reader,
        &[
            "mode",
            "serverCertificate",
            "privateKey",
            "caCertificates",
            "caCrl",
            "caCertCredentialName",
            "credentialName",
            "credentialNames",
            "tlsCertificates",
            "subjectAltNames",
            "verifyCertificateSpki",
            "verifyCertificateHash",
            "minProtocolVersion",
            "maxProtocolVersion",
            "cipherSuites",
        ],
        "TLS at the gateway is not supported yet; let something in front of it terminate TLS",
    );
    fields.close(reader);
    redirect
}
