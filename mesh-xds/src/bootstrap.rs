//! Where the control plane is and who we are: the gRPC bootstrap (gRFC A27, A65, A97), read from file, environment or code.
//!
//! The file named by `GRPC_XDS_BOOTSTRAP` wins over the text in `GRPC_XDS_BOOTSTRAP_CONFIG`. Unknown keys are ignored as
//! the gRFC asks; known keys without effect here are listed in [`Bootstrap::ignored`]. One key is our own:
//! `"mesh": {"ca": {"server_uri": ...}}`, where certificates are signed; without it the control plane does that.

use std::{fmt, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use crate::{
    ads::{DataErrors, client::Variant},
    node::Node,
};

/// `true` or `false`: whether to speak the incremental variant, unless the bootstrap says so itself.
pub const DELTA_VARIABLE: &str = "ISTIO_DELTA_XDS";
/// Names a bootstrap file.
pub const FILE_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";
/// Holds a bootstrap as text.
pub const TEXT_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";

/// Where the control plane is and who we are.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// The control plane.
    pub server: Server,
    /// Where certificates are signed; `None` when nothing could be proven there (no TLS or no token): then the process
    /// has no identity.
    pub ca: Option<Ca>,
    /// Who we are.
    pub node: Node,
    /// Which variant of ADS is spoken. Own key `mesh.delta`, or the variable `ISTIO_DELTA_XDS` (as Istio's agent has it);
    /// default: state of the world.
    pub variant: Variant,
    /// What was read but has no effect, one sentence each.
    pub ignored: Vec<String>,
}

/// A gRPC server and how to reach it. Source: gRFC A27 `xds_servers[]`.
#[derive(Clone, Debug, PartialEq)]
pub struct Server {
    /// `host:port`.
    pub address: String,
    /// `None` is plaintext.
    pub tls: Option<Tls>,
    /// A file with a bearer token, read at each connect since it is rotated; never set without TLS (gRFC A97).
    pub token_file: Option<PathBuf>,
    /// What errors in its data do to resources in force. `server_features`.
    pub data_errors: DataErrors,
}

/// TLS towards a server. Source: gRFC A65.
#[derive(Clone, Debug, PartialEq)]
pub struct Tls {
    /// PEM file of the roots trusted, read at each connect.
    pub ca_file: PathBuf,
    /// PEM files of a client certificate and its key, read at each connect.
    pub client_files: Option<(PathBuf, PathBuf)>,
    /// The name the server must prove, instead of the host dialled. Our own key `server_name`.
    pub server_name: Option<String>,
}

/// A certificate authority that speaks `istio.v1.auth.IstioCertificateService`.
#[derive(Clone, Debug, PartialEq)]
pub struct Ca {
    /// Where.
    pub server: Server,
    /// The lifetime asked for. Own key `mesh.ca.ttl_seconds`, default 24 h as Istio `SECRET_TTL`.
    pub ttl: Duration,
}

impl Bootstrap {
    /// Reads the bootstrap that the environment names.
    ///
    /// # Errors
    /// [`BootstrapError::NotConfigured`] when it names none, otherwise what is wrong with the one it names.
    pub fn from_env() -> Result<Self, BootstrapError> {
        Self::from_variables(|name| std::env::var(name).ok())
    }

    /// [`from_env`](Self::from_env) with the environment as a function. An empty variable counts as unset.
    ///
    /// # Errors
    /// As [`from_env`](Self::from_env).
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, BootstrapError> {
        let variable = |name| variable(name).filter(|value| !value.is_empty());
        let delta = variable(DELTA_VARIABLE).map(|value| value.eq_ignore_ascii_case("true"));
        if let Some(path) = variable(FILE_VARIABLE) {
            return Self::read(&path, delta);
        }
        match variable(TEXT_VARIABLE) {
            Some(text) => Self::resolve(&text, TEXT_VARIABLE, delta),
            None => Err(BootstrapError::NotConfigured),
        }
    }

    /// Reads a bootstrap file.
    ///
    /// # Errors
    /// When it cannot be read or used.
    pub fn from_file(path: &str) -> Result<Self, BootstrapError> {
        Self::read(path, None)
    }

    fn read(path: &str, delta: Option<bool>) -> Result<Self, BootstrapError> {
        let text = std::fs::read_to_string(path)
            .map_err(|error| BootstrapError::Unreadable { path: path.to_owned(), reason: error.to_string() })?;
        Self::resolve(&text, path, delta)
    }

    /// Reads a bootstrap text; `source` names it in errors.
    ///
    /// # Errors
    /// When it is not JSON, or names no server that can be used.
    pub fn parse(text: &str, source: &str) -> Result<Self, BootstrapError> {
        Self::resolve(text, source, None)
    }

    fn resolve(text: &str, source: &str, delta: Option<bool>) -> Result<Self, BootstrapError> {
        let invalid = |message: String| BootstrapError::Invalid { source: source.to_owned(), message };
        let file: File = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        file.resolve(delta).map_err(invalid)
    }
}

/// Why there is no bootstrap.
#[derive(Clone, Debug, PartialEq)]
pub enum BootstrapError {
    /// Neither variable is set.
    NotConfigured,
    /// The file cannot be read.
    Unreadable {
        /// The file.
        path: String,
        /// The system's reason.
        reason: String,
    },
    /// The text cannot be used.
    Invalid {
        /// The file or variable.
        source: String,
        /// Which key is wrong and how, or where the JSON breaks off.
        message: String,
    },
}

impl fmt::Display for BootstrapError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotConfigured => {
                write!(f, "no xDS bootstrap: neither {FILE_VARIABLE} (a file) nor {TEXT_VARIABLE} (its text) is set")
            }
            Self::Unreadable { path, reason } => {
                write!(f, "xDS bootstrap file {path} ({FILE_VARIABLE}) cannot be read: {reason}")
            }
            Self::Invalid { source, message } => write!(f, "xDS bootstrap in {source} cannot be used: {message}"),
        }
    }
}

impl std::error::Error for BootstrapError {}

#[derive(Deserialize)]
struct File {
    #[serde(default)]
    xds_servers: Vec<ServerEntry>,
    #[serde(default)]
    node: Node,
    #[serde(default)]
    mesh: MeshEntry,
    #[serde(default)]
    certificate_providers: Value,
    #[serde(default)]
    authorities: Value,
    #[serde(default)]
    server_listener_resource_name_template: Value,
    #[serde(default)]
    client_default_listener_resource_name_template: Value,
}

#[derive(Deserialize)]
struct ServerEntry {
    server_uri: String,
    #[serde(default)]
    channel_creds: Vec<CredsEntry>,
    #[serde(default)]
    call_creds: Vec<CredsEntry>,
    #[serde(default)]
    server_features: Vec<Value>,
}

#[derive(Deserialize)]
struct CredsEntry {
    r#type: String,
    #[serde(default)]
    config: Value,
}

#[derive(Default, Deserialize)]
struct TlsEntry {
    ca_certificate_file: Option<PathBuf>,
    certificate_file: Option<PathBuf>,
    private_key_file: Option<PathBuf>,
    server_name: Option<String>,
}

#[derive(Deserialize)]
struct TokenEntry {
    jwt_token_file: PathBuf,
}

#[derive(Default, Deserialize)]
struct MeshEntry {
    ca: Option<CaEntry>,
    delta: Option<bool>,
}

#[derive(Deserialize)]
struct CaEntry {
    server_uri: Option<String>,
    ttl_seconds: Option<u64>,
}

impl File {
    fn resolve(self, delta: Option<bool>) -> Result<Bootstrap, String> {
        let mut ignored = Vec::new();
        let mut servers = self.xds_servers.into_iter();
        let Some(first) = servers.next() else {
            return Err("xds_servers is missing or empty: name the control plane in xds_servers[0].server_uri".into());
        };
        let more = servers.count();
        if more > 0 {
            ignored.push(format!("xds_servers: {more} further entries, since there is no fallback between servers"));
        }
        let unused = [
            ("certificate_providers", &self.certificate_providers),
            ("authorities", &self.authorities),
            ("server_listener_resource_name_template", &self.server_listener_resource_name_template),
            ("client_default_listener_resource_name_template", &self.client_default_listener_resource_name_template),
        ];
        ignored.extend(unused.into_iter().filter(|(_, value)| !value.is_null()).map(|(key, _)| key.to_owned()));
        if self.node.id.is_empty() {
            return Err("node.id is missing: the control plane refuses streams without it".into());
        }
        let server = first.resolve(&mut ignored)?;
        let ca = resolve_ca(self.mesh.ca, &server)?;
        let variant = if self.mesh.delta.or(delta) == Some(true) { Variant::Delta } else { Variant::Sotw };
        Ok(Bootstrap { server, ca, node: self.node, variant, ignored })
    }
}

impl ServerEntry {
    fn resolve(self, ignored: &mut Vec<String>) -> Result<Server, String> {
        let address = target(&self.server_uri).map_err(|why| format!("xds_servers[0].server_uri: {why}"))?;
        // gRFC A27: the first entry of a supported type is taken, others are skipped.
        let mut tls = None;
        let mut found = false;
        for creds in &self.channel_creds {
            match creds.r#type.as_str() {
                "insecure" => found = true,
                "tls" => {
                    tls = Some(resolve_tls(&creds.config)?);
                    found = true;
                }
                other => {
                    ignored.push(format!("xds_servers[0].channel_creds of type {other:?}"));
                    continue;
                }
            }
            break;
        }
        if !found {
            return Err("xds_servers[0].channel_creds names no supported type: use \"insecure\" or \"tls\"".into());
        }
        let mut token_file = None;
        for creds in self.call_creds {
            match creds.r#type.as_str() {
                "jwt_token_file" if tls.is_none() => {
                    ignored.push("xds_servers[0].call_creds: a token is never sent over an insecure channel".into());
                }
                "jwt_token_file" if token_file.is_none() => {
                    let entry: TokenEntry = serde_json::from_value(creds.config)
                        .map_err(|error| format!("xds_servers[0].call_creds of type jwt_token_file: {error}"))?;
                    token_file = Some(entry.jwt_token_file);
                }
                other => ignored.push(format!("xds_servers[0].call_creds of type {other:?}")),
            }
        }
        let mut data_errors = DataErrors::default();
        for feature in &self.server_features {
            match feature.as_str() {
                // What is the only choice here.
                Some("xds_v3") => {}
                Some("fail_on_data_errors") => data_errors.drop_refused = true,
                Some("ignore_resource_deletion") => data_errors.keep_deleted = true,
                Some("resource_timer_is_transient_error") => data_errors.transient_timer = true,
                _ => ignored.push(format!("xds_servers[0].server_features {feature}")),
            }
        }
        // gRFC A88: told to fail on errors, a client does not ignore a deletion either.
        data_errors.keep_deleted &= !data_errors.drop_refused;
        Ok(Server { address, tls, token_file, data_errors })
    }
}

fn resolve_tls(config: &Value) -> Result<Tls, String> {
    let field = "xds_servers[0].channel_creds of type tls";
    let entry: TlsEntry = match config {
        Value::Null => TlsEntry::default(),
        config => TlsEntry::deserialize(config).map_err(|error| format!("{field}: {error}"))?,
    };
    let Some(ca_file) = entry.ca_certificate_file else {
        return Err(format!("{field}: ca_certificate_file is missing; the system's roots are not consulted"));
    };
    let client_files = match (entry.certificate_file, entry.private_key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(format!("{field}: certificate_file and private_key_file must be given together")),
    };
    Ok(Tls { ca_file, client_files, server_name: entry.server_name })
}

fn resolve_ca(entry: Option<CaEntry>, server: &Server) -> Result<Option<Ca>, String> {
    if server.tls.is_none()
        || server.token_file.is_none() && server.tls.as_ref().is_some_and(|tls| tls.client_files.is_none())
    {
        // Nobody signs for a caller that proves nothing; a CA named all the same is a mistake worth stopping for.
        return match entry {
            Some(CaEntry { server_uri: Some(uri), .. }) => Err(format!(
                "mesh.ca.server_uri {uri:?} needs xds_servers[0] to have channel_creds of type tls and call_creds of type \
                 jwt_token_file, which are used for it too"
            )),
            _ => Ok(None),
        };
    }
    let mut server = server.clone();
    let mut ttl = Duration::from_secs(24 * 60 * 60);
    if let Some(entry) = entry {
        if let Some(uri) = entry.server_uri {
            server.address = target(&uri).map_err(|why| format!("mesh.ca.server_uri: {why}"))?;
        }
        if let Some(seconds) = entry.ttl_seconds {
            ttl = Duration::from_secs(seconds);
        }
    }
    Ok(Some(Ca { server, ttl }))
}

/// `host:port` of a gRPC target or URL.
fn target(uri: &str) -> Result<String, String> {
    let rest = ["dns:///", "dns:", "passthrough:///", "https://", "http://"]
        .iter()
        .find_map(|prefix| uri.strip_prefix(prefix))
        .unwrap_or(uri)
        .trim_end_matches('/');
    let port = rest.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port.parse::<u16>());
    match port {
        _ if rest.contains('/') || rest.starts_with("unix:") => Err(format!("{uri:?} is not a host and port")),
        Some(Ok(port)) if port != 0 => Ok(rest.to_owned()),
        _ => Err(format!("{uri:?} needs a host and a port, such as \"127.0.0.1:15012\"")),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::json;

    use super::*;

    fn parse(value: &Value) -> Result<Bootstrap, String> {
        Bootstrap::parse(&value.to_string(), "test").map_err(|error| error.to_string())
    }

    fn secure() -> Value {
        json!({
            "xds_servers": [{
                "server_uri": "dns:///127.0.0.1:15012",
                "channel_creds": [
                    {"type": "google_default"},
                    {"type": "tls", "config": {"ca_certificate_file": "root.pem", "server_name": "istiod.istio-system.svc"}},
                    {"type": "insecure"},
                ],
                "call_creds": [{"type": "jwt_token_file", "config": {"jwt_token_file": "token"}}],
                "server_features": ["xds_v3"],
                "unknown": 1,
            }],
            "node": {
                "id": "sidecar~127.0.0.11~a.default~default.svc.cluster.local", "cluster": "a.default",
                "locality": {"region": "r", "zone": "z"}, "metadata": {"NAMESPACE": "default", "PROXY_CONFIG": {}},
                "user_agent_name": "ignored",
            },
            "unknown": {},
        })
    }

    /// XD18: the file wins over the text; both missing is an error that names both.
    #[test]
    fn file_variable_wins() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bootstrap.json");
        std::fs::write(&path, secure().to_string()).unwrap();
        let path = path.to_str().unwrap().to_owned();
        let env = |file: Option<String>, text: Option<&str>| {
            let text = text.map(str::to_owned);
            Bootstrap::from_variables(move |name| match name {
                FILE_VARIABLE => file.clone(),
                TEXT_VARIABLE => text.clone(),
                _ => None,
            })
        };
        assert_eq!(env(Some(path.clone()), Some("{")).unwrap().server.address, "127.0.0.1:15012");
        assert_eq!(env(Some(String::new()), Some(&secure().to_string())).unwrap().node.cluster, "a.default");
        let missing = env(None, None).unwrap_err();
        assert_eq!(missing, BootstrapError::NotConfigured);
        assert!(missing.to_string().contains(FILE_VARIABLE) && missing.to_string().contains(TEXT_VARIABLE));
        let unreadable = env(Some(format!("{path}.not")), Some(&secure().to_string())).unwrap_err().to_string();
        assert!(unreadable.contains(".not") && unreadable.contains(FILE_VARIABLE), "{unreadable}");
        let broken = env(None, Some("{\n  \"xds_servers\": }")).unwrap_err().to_string();
        assert!(broken.contains(TEXT_VARIABLE) && broken.contains("line 2"), "{broken}");
    }

    /// XD19, XD20, XD22: the first supported credentials are chosen, the node is passed on, the token file is kept.
    #[test]
    fn secure_server_with_token() {
        let bootstrap = parse(&secure()).unwrap();
        let tls = bootstrap.server.tls.clone().unwrap();
        assert_eq!(tls.ca_file, PathBuf::from("root.pem"));
        assert_eq!(tls.server_name.as_deref(), Some("istiod.istio-system.svc"));
        assert_eq!(bootstrap.server.token_file, Some(PathBuf::from("token")));
        assert_eq!(bootstrap.ca, Some(Ca { server: bootstrap.server.clone(), ttl: Duration::from_secs(86_400) }));
        assert_eq!(bootstrap.node.metadata["PROXY_CONFIG"], json!({}));
        assert_eq!(&*bootstrap.node.locality.zone, "z");
        assert_eq!(bootstrap.ignored, ["xds_servers[0].channel_creds of type \"google_default\""]);
    }

    /// XD22: a token is never sent over an insecure channel, and without proof there is no identity.
    #[test]
    fn insecure_server_has_neither_token_nor_identity() {
        let mut value = secure();
        value["xds_servers"][0]["channel_creds"] = json!([{"type": "insecure"}]);
        let bootstrap = parse(&value).unwrap();
        assert_eq!((bootstrap.server.tls, bootstrap.server.token_file, bootstrap.ca), (None, None, None));
        assert!(bootstrap.ignored[0].contains("insecure channel"), "{:?}", bootstrap.ignored);
        value["mesh"] = json!({"ca": {"server_uri": "ca:1"}});
        assert!(parse(&value).unwrap_err().contains("mesh.ca.server_uri"));
    }

    #[test]
    fn certificates_can_come_from_elsewhere() {
        let mut value = secure();
        value["mesh"] = json!({"ca": {"server_uri": "https://ca.example:15013", "ttl_seconds": 60}});
        let ca = parse(&value).unwrap().ca.unwrap();
        assert_eq!((ca.server.address.as_str(), ca.ttl), ("ca.example:15013", Duration::from_secs(60)));
    }

    /// XD18, XD19: what cannot be used names the key and says what to do.
    #[test]
    fn mistakes_name_the_key() {
        let with = |pointer: &str, new: Value| {
            let mut value = secure();
            *value.pointer_mut(pointer).unwrap() = new;
            parse(&value).unwrap_err()
        };
        let cases = [
            (with("/xds_servers", json!([])), "xds_servers is missing or empty"),
            (with("/xds_servers/0/server_uri", json!("localhost")), "server_uri"),
            (with("/xds_servers/0/server_uri", json!("unix:///x.sock")), "not a host and port"),
            (with("/xds_servers/0/server_uri", json!("localhost:0")), "needs a host and a port"),
            (with("/xds_servers/0/server_uri", json!(3)), "expected a string"),
            (with("/xds_servers/0/channel_creds", json!([])), "no supported type"),
            (with("/xds_servers/0/channel_creds", json!([{"type": "tls"}])), "ca_certificate_file is missing"),
            (
                with(
                    "/xds_servers/0/channel_creds/1/config",
                    json!({"ca_certificate_file": "a", "certificate_file": "b"}),
                ),
                "given together",
            ),
            (with("/xds_servers/0/call_creds/0/config", json!({})), "jwt_token_file"),
            (with("/node/id", json!("")), "node.id is missing"),
        ];
        for (error, expected) in cases {
            assert!(error.contains(expected), "{error} should say {expected}");
        }
    }

    #[test]
    fn known_keys_without_effect_are_listed() {
        let mut value = secure();
        value["certificate_providers"] = json!({"default": {}});
        value["xds_servers"].as_array_mut().unwrap().push(json!({"server_uri": "other:1"}));
        value["xds_servers"][0]["server_features"] = json!(["xds_v3", "fail_on_data_errors", "warp"]);
        let ignored = parse(&value).unwrap().ignored.join("\n");
        for part in ["certificate_providers", "1 further", "warp"] {
            assert!(ignored.contains(part), "{ignored}");
        }
    }
}
