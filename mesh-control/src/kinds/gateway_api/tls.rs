//! How a listener treats TLS. Source: Gateway API `ListenerTLSConfig`.

use crate::kinds::{
    ServerTls, TlsServer,
    read::Reader,
    yaml::{At, Node},
};

/// `None` when faulty.
pub(super) fn read(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<ServerTls> {
    let mut fields = reader.fields(node, path)?;
    let words = [("Terminate", false), ("Passthrough", true)];
    let passed_on = fields.read("mode", |node, path| reader.word(node, path, &words)).unwrap_or(false);
    let mut credentials = Vec::new();
    if let Some((node, path)) = fields.take("certificateRefs") {
        for (node, path) in reader.list(node, &path) {
            credentials.extend(reference(node, &path, reader));
        }
    }
    fields.ignored(reader, &["options"], "options are of other implementations");
    fields.close(reader);
    if passed_on {
        return Some(ServerTls::Passthrough);
    }
    if credentials.is_empty() {
        reader.invalid(node.at, format!("{path} names no certificate")).help =
            Some("write certificateRefs: [{name: SECRET}]".to_owned());
    }
    Some(ServerTls::Own(TlsServer { credentials, ..TlsServer::default() }))
}

fn reference(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<At<String>> {
    let mut fields = reader.fields(node, path)?;
    let group = fields.read("group", |node, path| reader.text(node, path));
    let kind = fields.read("kind", |node, path| reader.text(node, path));
    let namespace = fields.read("namespace", |node, path| reader.text(node, path));
    let name = fields.read("name", |node, path| reader.text(node, path));
    if name.is_none() && !fields.seen("name") {
        reader.missing(&fields, "name");
    }
    fields.close(reader);
    let is_secret =
        group.as_ref().is_none_or(|group| group.is_empty()) && kind.as_ref().is_none_or(|kind| kind.value == "Secret");
    if !is_secret {
        reader.unsupported(node.at, &format!("{path}.kind"), "a certificate is a Secret");
    }
    let name = name?;
    Some(match namespace {
        Some(namespace) => At { value: format!("{}/{}", namespace.value, name.value), at: name.at },
        None => name,
    })
}
