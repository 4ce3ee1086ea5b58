//! Istio `Gateway`: what an ingress or egress listens for, and how TLS ends there.
//!
//! Source: `istio.networking.v1.Gateway`.

use mesh_core::config::{CallerCertificate, CertificateFiles, Labels, StringMatch, TlsVersions};

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
    /// Its name, unique among the servers.
    pub name: String,
    /// What is spoken.
    pub protocol: PortProtocol,
    /// What TLS ends for is no HTTP: protocol `TLS`.
    pub raw: bool,
    /// `host`, `namespace/host`, `./host`, `*`.
    pub hosts: Vec<At<String>>,
    /// Every request is sent to `https`. `tls.httpsRedirect`.
    pub https_redirect: bool,
    /// How TLS is treated; `None` is plaintext.
    pub tls: Option<ServerTls>,
}

/// What becomes of TLS at a server. Source: Istio `ServerTLSSettings`.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerTls {
    /// The bytes are handed on as they come, by the name asked for. `PASSTHROUGH`.
    Passthrough,
    /// The mesh's own mutual TLS. `ISTIO_MUTUAL`.
    Mesh(TlsServer),
    /// Its own certificates. `SIMPLE`, `MUTUAL`, `OPTIONAL_MUTUAL`.
    Own(TlsServer),
}

/// Certificates and what is demanded of callers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TlsServer {
    /// Must callers show a certificate?
    pub callers: CallerCertificate,
    /// Names of Secrets of the gateway's namespace, `namespace/name` of another. `credentialName`, `credentialNames`.
    pub credentials: Vec<At<String>>,
    /// Files at the gateway. `serverCertificate`, `privateKey`, `tlsCertificates`.
    pub files: Vec<CertificateFiles>,
    /// The file of roots at the gateway. `caCertificates`.
    pub root_file: Option<String>,
    /// The Secret with roots, where it is another. `caCertCredentialName`.
    pub root_credential: Option<String>,
    /// Names of which callers must have one.
    pub subject_alt_names: Vec<StringMatch>,
    /// Versions spoken.
    pub versions: TlsVersions,
    /// Ciphers of TLS 1.2.
    pub ciphers: Vec<String>,
}

/// Ciphers that can be spoken, by the names Istio takes.
const CIPHERS: [&str; 6] = [
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-ECDSA-CHACHA20-POLY1305",
    "ECDHE-RSA-CHACHA20-POLY1305",
];

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
    let tls = fields.take("tls").map(|(node, path)| (node, tls(node, &path, reader)));
    fields.ignored(reader, &["bind"], "the gateway says itself which address it listens on");
    fields.ignored(reader, &["name", "defaultEndpoint"], "it changes nothing of how requests are routed");
    fields.close(reader);
    let (number, name, protocol, raw) = port?;
    let https_redirect = tls.as_ref().is_some_and(|(_, (redirect, _))| *redirect);
    let ends = tls.as_ref().and_then(|(_, (_, tls))| tls.clone());
    match (protocol, &ends) {
        (PortProtocol::Tls, None) => {
            reader.invalid(node.at, format!("{path}: protocol HTTPS or TLS needs tls.mode")).help =
                Some("write tls: {mode: SIMPLE, credentialName: NAME}, or mode: PASSTHROUGH".to_owned());
        }
        (PortProtocol::Http | PortProtocol::Http2, Some(_)) => {
            let at = tls.as_ref().map_or(node.at, |(node, _)| node.at);
            reader.invalid(at, format!("{path}.tls is not for a server of plain HTTP")).help =
                Some("write protocol: HTTPS, or tls: {httpsRedirect: true} alone".to_owned());
        }
        _ => {}
    }
    let hosts = hosts.unwrap_or_default();
    Some(Server { port: number, name, protocol, raw, hosts, https_redirect, tls: ends })
}

fn port(
    node: &Node,
    path: &str,
    names: &mut Vec<String>,
    reader: &mut Reader<'_>,
) -> Option<(u16, String, PortProtocol, bool)> {
    let mut fields = reader.fields(node, path)?;
    let number = fields.read("number", |node, path| reader.port(node, path));
    if number.is_none() && !fields.seen("number") {
        reader.missing(&fields, "number");
    }
    let mut own = String::new();
    match fields.read("name", |node, path| reader.text(node, path)) {
        Some(name) if names.contains(&name.value) => {
            reader.invalid(name.at, format!("{path}.name {:?} is used by another server", name.value));
        }
        Some(name) => {
            own.clone_from(&name.value);
            names.push(name.value);
        }
        None if !fields.seen("name") => reader.missing(&fields, "name"),
        None => {}
    }
    let raw = fields.word("protocol").is_some_and(|word| word.eq_ignore_ascii_case("TLS"));
    let protocol = fields.read("protocol", |node, path| protocol(node, path, reader));
    if protocol.is_none() && !fields.seen("protocol") {
        reader.missing(&fields, "protocol");
    }
    fields.ignored(reader, &["targetPort"], "it is deprecated and has no effect in Istio either");
    fields.close(reader);
    Some((number?, own, protocol?, raw))
}

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Passthrough,
    Mesh,
    Own(CallerCertificate),
    Auto,
}

/// Whether requests are redirected, and how TLS is treated, if it is.
fn tls(node: &Node, path: &str, reader: &mut Reader<'_>) -> (bool, Option<ServerTls>) {
    let Some(mut fields) = reader.fields(node, path) else { return (false, None) };
    let redirect = fields.read("httpsRedirect", |node, path| reader.boolean(node, path)).unwrap_or(false);
    let words = [
        ("PASSTHROUGH", Mode::Passthrough),
        ("SIMPLE", Mode::Own(CallerCertificate::None)),
        ("MUTUAL", Mode::Own(CallerCertificate::Required)),
        ("OPTIONAL_MUTUAL", Mode::Own(CallerCertificate::Optional)),
        ("ISTIO_MUTUAL", Mode::Mesh),
        ("AUTO_PASSTHROUGH", Mode::Auto),
    ];
    let mode = fields.take("mode").and_then(|(node, path)| {
        let mode = reader.word(node, &path, &words);
        if mode == Some(Mode::Auto) {
            let help =
                "it joins the networks of several clusters, which are not joined here; route by tls[] with PASSTHROUGH";
            reader.unsupported(node.at, &format!("{path} AUTO_PASSTHROUGH"), help);
        }
        mode
    });
    let text = |fields: &mut Fields<'_>, name, reader: &mut Reader<'_>| {
        fields.read(name, |node, path| reader.text(node, path)).filter(|text| !text.is_empty())
    };
    let mut out = TlsServer::default();
    out.credentials.extend(text(&mut fields, "credentialName", reader));
    out.credentials
        .extend(fields.read("credentialNames", |node, path| Some(reader.texts(node, path))).unwrap_or_default());
    for name in out.credentials.iter().filter(|name| name.contains('/')) {
        reader.invalid(name.at, format!("{path}: {:?} is of another namespace", name.value)).help =
            Some("a gateway shows certificates of its own namespace".to_owned());
    }
    let chain = text(&mut fields, "serverCertificate", reader).map(|at| at.value);
    let key = text(&mut fields, "privateKey", reader).map(|at| at.value);
    match (chain, key) {
        (Some(chain), Some(key)) => out.files.push(CertificateFiles { chain, key }),
        (None, None) => {}
        _ => drop(reader.invalid(node.at, format!("{path}: serverCertificate and privateKey go together"))),
    }
    if let Some((node, path)) = fields.take("tlsCertificates") {
        for (node, path) in reader.list(node, &path) {
            let Some(mut pair) = reader.fields(node, &path) else { continue };
            let chain = text(&mut pair, "serverCertificate", reader).map(|at| at.value);
            let key = text(&mut pair, "privateKey", reader).map(|at| at.value);
            pair.ignored(reader, &["caCertificates"], "roots are those of the server");
            pair.close(reader);
            out.files.extend(chain.zip(key).map(|(chain, key)| CertificateFiles { chain, key }));
        }
    }
    out.root_file = text(&mut fields, "caCertificates", reader).map(|at| at.value);
    let roots = text(&mut fields, "caCertCredentialName", reader);
    if let Some(name) = roots.as_ref().filter(|name| name.contains('/')) {
        reader
            .invalid(name.at, format!("{path}.caCertCredentialName: {:?} is of another namespace", name.value))
            .help = Some("a gateway judges callers by roots of its own namespace".to_owned());
    }
    out.root_credential = roots.map(|at| at.value);
    let names = fields.read("subjectAltNames", |node, path| Some(reader.texts(node, path))).unwrap_or_default();
    let exact = |name: At<String>| StringMatch::Exact { value: name.value, ignore_case: false };
    out.subject_alt_names = names.into_iter().map(exact).collect();
    out.versions = versions(&mut fields, path, reader);
    for cipher in fields.read("cipherSuites", |node, path| Some(reader.texts(node, path))).unwrap_or_default() {
        if CIPHERS.contains(&cipher.value.as_str()) {
            out.ciphers.push(cipher.value);
        } else {
            let what = format!("{path}.cipherSuites {:?}", cipher.value);
            reader.unsupported(cipher.at, &what, &format!("spoken are {}", CIPHERS.join(", ")));
        }
    }
    fields.refused(
        reader,
        &["verifyCertificateSpki", "verifyCertificateHash", "caCrl"],
        "name the callers by subjectAltNames; a list of revoked certificates goes into the Secret as ca.crl",
    );
    fields.close(reader);
    let named = !out.credentials.is_empty() || !out.files.is_empty();
    let tls = match mode {
        None => {
            if named {
                reader.invalid(node.at, format!("{path}.mode is missing")).help =
                    Some("write mode: SIMPLE, or another".to_owned());
            }
            None
        }
        Some(Mode::Passthrough | Mode::Auto) => Some(ServerTls::Passthrough),
        Some(Mode::Mesh) => Some(ServerTls::Mesh(TlsServer { callers: CallerCertificate::Required, ..out })),
        Some(Mode::Own(callers)) => Some(ServerTls::Own(TlsServer { callers, ..out })),
    };
    match &tls {
        Some(ServerTls::Own(own)) => {
            if !named {
                reader.invalid(node.at, format!("{path} names no certificate")).help =
                    Some("write credentialName: NAME of a Secret, or serverCertificate and privateKey".to_owned());
            }
            if !own.credentials.is_empty() && !own.files.is_empty() {
                reader.invalid(node.at, format!("{path}: credentialName and files exclude each other"));
            }
            if own.callers != CallerCertificate::None
                && own.credentials.is_empty()
                && own.root_file.is_none()
                && own.root_credential.is_none()
            {
                reader.invalid(node.at, format!("{path}: nothing says by what roots callers are judged")).help =
                    Some("write caCertificates, or put ca.crt into the Secret".to_owned());
            }
        }
        Some(_) if named => {
            reader.invalid(node.at, format!("{path}: this mode takes no certificates of its own"));
        }
        _ => {}
    }
    (redirect, tls)
}

fn versions(fields: &mut Fields<'_>, path: &str, reader: &mut Reader<'_>) -> TlsVersions {
    let words = [("TLS_AUTO", 0), ("TLSV1_0", 10), ("TLSV1_1", 11), ("TLSV1_2", 12), ("TLSV1_3", 13)];
    let least = fields.read("minProtocolVersion", |node, path| reader.word(node, path, &words)).unwrap_or(0);
    let most = fields.take("maxProtocolVersion");
    let at = most.as_ref().map_or(fields.at, |(node, _)| node.at);
    let most = most.and_then(|(node, path)| reader.word(node, &path, &words)).unwrap_or(0);
    match (least, most) {
        (13, 0 | 13) => TlsVersions::Only13,
        (_, 0 | 13) => TlsVersions::Both,
        (0..=12, 12) => TlsVersions::Only12,
        _ => {
            reader
                .invalid(at, format!("{path}: minProtocolVersion and maxProtocolVersion leave no version from 1.2 on"));
            TlsVersions::Both
        }
    }
}
