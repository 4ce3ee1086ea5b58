//! Where the control planes are and who we are: the gRPC bootstrap (gRFC A27, A29, A36, A47, A65, A71, A97), read from file,
//! environment or code.
//!
//! The file named by `GRPC_XDS_BOOTSTRAP` wins over the text in `GRPC_XDS_BOOTSTRAP_CONFIG`. Unknown keys are ignored as
//! the gRFC asks; known keys without effect here are listed in [`Bootstrap::ignored`]. One key is our own: `"mesh"`, with
//! `"ca": {"server_uri": ...}`, where certificates are signed (without it the control plane does that), `"sds"` and
//! `"workload_api"` (Unix sockets of agents that give certificates), `"delta"` and `"profile"`.

use std::{collections::BTreeMap, fmt, net::SocketAddr, path::PathBuf, time::Duration};

use mesh_core::config::Name;

use crate::{
    ads::{DataErrors, client::Variant},
    certs::Origin,
    node::Node,
    profile::{Context, Profile},
    xdstp,
};

mod read;

/// `true` or `false`: whether to speak the incremental variant, unless the bootstrap says so itself.
pub const DELTA_VARIABLE: &str = "ISTIO_DELTA_XDS";
/// Names a bootstrap file.
pub const FILE_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP";
/// Holds a bootstrap as text.
pub const TEXT_VARIABLE: &str = "GRPC_XDS_BOOTSTRAP_CONFIG";
/// Names the socket of the SPIFFE Workload API, unless the bootstrap does. Source: SPIFFE Workload Endpoint 4.
pub const SPIFFE_VARIABLE: &str = "SPIFFE_ENDPOINT_SOCKET";

/// Where the control plane is and who we are.
#[derive(Clone, Debug, PartialEq)]
pub struct Bootstrap {
    /// The control plane.
    pub server: Server,
    /// Asked while the one before cannot be reached and something is missing, in this order. Source: gRFC A71, the further
    /// `xds_servers[]`.
    pub fallbacks: Vec<Server>,
    /// Who is asked for `xdstp:` names, by authority. Source: gRFC A47 `authorities`.
    pub authorities: BTreeMap<String, Authority>,
    /// Where certificates are signed; `None` when nothing could be proven there (no TLS or no token): then the process
    /// has no identity.
    pub ca: Option<Ca>,
    /// The agent on this machine that gives certificates by SDS: a Unix socket. Own key `mesh.sds`; Istio's agent and SPIRE have
    /// `./var/run/secrets/workload-spiffe-uds/socket`.
    pub sds: Option<PathBuf>,
    /// The SPIFFE Workload API: a Unix socket. Own key `mesh.workload_api`, or the variable `SPIFFE_ENDPOINT_SOCKET`.
    pub workload_api: Option<PathBuf>,
    /// Who we are.
    pub node: Node,
    /// Which variant of ADS is spoken. Own key `mesh.delta`, or the variable `ISTIO_DELTA_XDS` (as Istio's agent has it);
    /// default: state of the world.
    pub variant: Variant,
    /// Whose rules are followed. Own key `mesh.profile`, `"envoy"` or `"grpc"`; default: gRPC's where the node's metadata
    /// asks Istio for its resources (`GENERATOR: grpc`), else Envoy's.
    pub profile: Profile,
    /// What a target is called in LDS, with `%s` for the target. Source: gRFC A47
    /// `client_default_listener_resource_name_template`, default `%s`.
    pub listener_template: String,
    /// What a server of ours is called in LDS, with `%s` for the address it listens on. Source: gRFC A36
    /// `server_listener_resource_name_template`; no default.
    pub server_listener_template: Option<String>,
    /// Where certificates come from, by instance. Source: gRFC A29 `certificate_providers`.
    pub certificate_providers: BTreeMap<String, Provider>,
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
    /// It may ask for what bears on security. `server_features` `trusted_xds_server` (gRFC A81).
    pub trusted: bool,
}

/// Who is asked for the names of an authority. Source: gRFC A47.
#[derive(Clone, Debug, PartialEq)]
pub struct Authority {
    /// Its own control planes, best first; empty for those of names without an authority.
    pub servers: Vec<Server>,
    /// What a target is called there. `client_listener_resource_name_template`, default
    /// `xdstp://AUTHORITY/envoy.config.listener.v3.Listener/%s`.
    pub listener_template: String,
}

/// A source of certificates. Source: gRFC A29.
#[derive(Clone, Debug, PartialEq)]
pub enum Provider {
    /// Plugin `file_watcher`: PEM files, read again every so often.
    Files(Files),
    /// A plugin that is not known here; a mistake only where it is referred to.
    Unknown(String),
}

/// Certificate files. Source: gRFC A29, A65 `file_watcher`.
#[derive(Clone, Debug, PartialEq)]
pub struct Files {
    /// The certificate and its chain, and the private key. `certificate_file`, `private_key_file`.
    pub identity: Option<(PathBuf, PathBuf)>,
    /// The roots. `ca_certificate_file`.
    pub roots: Option<PathBuf>,
    /// The roots of each trust domain, as a SPIFFE bundle map. `spiffe_trust_bundle_map_file` (gRFC A87).
    pub bundles: Option<PathBuf>,
    /// Lists of revoked certificates, in PEM. Our own key `crl_file`; Istio mounts `ca-crl.pem`.
    pub crl: Option<PathBuf>,
    /// How often they are read again. `refresh_interval`, default 600 s.
    pub refresh: Duration,
}

impl Files {
    /// All that are named.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let pair = self.identity.iter().flat_map(|(certificate, key)| [certificate, key]);
        pair.chain(&self.roots).chain(&self.bundles).chain(&self.crl)
    }
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
    /// It is named by `mesh.ca`, and not just what the control plane is believed to offer.
    pub named: bool,
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
        let mut bootstrap = match (variable(FILE_VARIABLE), variable(TEXT_VARIABLE)) {
            (Some(path), _) => Self::read(&path, delta)?,
            (None, Some(text)) => Self::resolve(&text, TEXT_VARIABLE, delta)?,
            (None, None) => return Err(BootstrapError::NotConfigured),
        };
        if let (None, Some(socket)) = (&bootstrap.workload_api, variable(SPIFFE_VARIABLE)) {
            let invalid = |message| BootstrapError::Invalid { source: SPIFFE_VARIABLE.to_owned(), message };
            bootstrap.workload_api = Some(read::socket(&socket).map_err(invalid)?);
        }
        Ok(bootstrap)
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
        let file: read::File = serde_json::from_str(text).map_err(|error| invalid(error.to_string()))?;
        file.resolve(delta).map_err(invalid)
    }

    /// The provider and the files that an identity can be had from without a CA: `default`, as Istio calls it, or the only one
    /// that has a certificate and roots.
    pub fn identity_provider(&self) -> Option<(&str, &Files)> {
        let whole = self.certificate_providers.iter().filter_map(|(instance, provider)| match provider {
            Provider::Files(files)
                if files.identity.is_some() && (files.roots.is_some() || files.bundles.is_some()) =>
            {
                Some((&**instance, files))
            }
            _ => None,
        });
        let whole: Vec<_> = whole.collect();
        let only = if let [only] = whole.as_slice() { Some(*only) } else { None };
        whole.into_iter().find(|(instance, _)| *instance == "default").or(only)
    }

    /// Its files.
    pub fn identity_files(&self) -> Option<&Files> {
        self.identity_provider().map(|(_, files)| files)
    }

    /// Where this process gets its certificate: the first that is named of a CA, an agent's SDS and the Workload API; else the
    /// control plane as CA, else files.
    pub fn identity_origin(&self) -> Option<Origin> {
        let ca = self.ca.clone().map(Origin::Ca);
        let is_named = self.ca.as_ref().is_some_and(|ca| ca.named);
        let agent = || {
            let sds = self.sds.clone().map(Origin::Sds);
            sds.or_else(|| self.workload_api.clone().map(Origin::WorkloadApi))
        };
        let first = if is_named { ca.clone() } else { agent() };
        first.or(ca).or_else(|| self.identity_files().cloned().map(Origin::Files))
    }

    /// What the reading of resources depends on.
    pub fn context(&self) -> Context {
        let known = self.certificate_providers.iter().filter_map(|(instance, provider)| match provider {
            Provider::Files(files) => Some((instance.clone(), files.clone())),
            Provider::Unknown(_) => None,
        });
        Context {
            profile: self.profile,
            trusted: self.server.trusted || self.profile == Profile::Envoy,
            certificates: known.collect(),
            identity: self.identity_provider().map(|(instance, _)| instance.to_owned()),
            gateway: self.is_gateway(),
        }
    }

    /// Is the process a gateway? By the node type `router`.
    pub fn is_gateway(&self) -> bool {
        self.profile == Profile::Envoy && self.node.id.starts_with("router~")
    }

    /// What a target is called in LDS: `xds:///HOST:PORT`, `xds://AUTHORITY/HOST:PORT`, or `HOST:PORT` alone. The endpoint
    /// of a target may be percent-encoded, as in any URI.
    ///
    /// # Errors
    /// The bootstrap does not name the authority.
    pub fn listener_of_target(&self, target: &str) -> Result<Name, String> {
        let rest = target.strip_prefix("xds:").unwrap_or(target);
        let (template, endpoint) = match rest.strip_prefix("//").map(|rest| rest.split_once('/').unwrap_or((rest, "")))
        {
            Some(("", endpoint)) => (&self.listener_template, endpoint),
            Some((authority, endpoint)) => {
                let known = self.authorities.get(authority);
                let missing = || format!("{target:?}: the bootstrap's authorities have no {authority:?}");
                (&known.ok_or_else(missing)?.listener_template, endpoint)
            }
            None => (&self.listener_template, rest.trim_start_matches('/')),
        };
        let plain = xdstp::decode(endpoint).ok_or_else(|| format!("{target:?} is not percent-encoded as URIs are"))?;
        Ok(xdstp::canonical(&xdstp::fill(template, &plain)).as_ref().into())
    }

    /// What a server that listens on `address` is called in LDS; `None` without a template, with which gRPC's servers
    /// cannot start.
    pub fn listener_of_server(&self, address: SocketAddr) -> Option<Name> {
        let template = self.server_listener_template.as_ref()?;
        Some(xdstp::canonical(&xdstp::fill(template, &address.to_string())).as_ref().into())
    }

    /// The servers asked for resources of this name, best first; `None` when its authority is not known.
    pub fn servers_of(&self, name: &str) -> Option<Vec<&Server>> {
        let own = match xdstp::authority(name) {
            Some(authority) => self.authorities.get(authority)?.servers.as_slice(),
            None => &[],
        };
        if own.is_empty() {
            return Some(std::iter::once(&self.server).chain(&self.fallbacks).collect());
        }
        Some(own.iter().collect())
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use serde_json::{Value, json};

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
        assert_eq!(
            bootstrap.ca,
            Some(Ca { server: bootstrap.server.clone(), ttl: Duration::from_secs(86_400), named: false })
        );
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

    /// XD30: known keys without effect here are listed, among them who may be called beside the control plane.
    #[test]
    fn known_keys_without_effect_are_listed() {
        let mut value = secure();
        value["allowed_grpc_services"] = json!({"a": {}});
        value["xds_servers"][0]["server_features"] = json!(["xds_v3", "fail_on_data_errors", "warp"]);
        let ignored = parse(&value).unwrap().ignored.join("\n");
        for part in ["allowed_grpc_services", "warp"] {
            assert!(ignored.contains(part), "{ignored}");
        }
    }

    /// XD27, XD29: further servers are fallbacks; what a server may do is said of each.
    #[test]
    fn further_servers_are_fallbacks() {
        let mut value = secure();
        let insecure = json!([{"type": "insecure"}]);
        value["xds_servers"].as_array_mut().unwrap().push(json!({
            "server_uri": "other:1", "channel_creds": insecure, "server_features": ["trusted_xds_server"],
        }));
        let bootstrap = parse(&value).unwrap();
        assert_eq!((bootstrap.fallbacks[0].address.as_str(), bootstrap.fallbacks[0].trusted), ("other:1", true));
        assert!(!bootstrap.server.trusted && bootstrap.context().trusted, "a sidecar trusts its control plane");
        value["node"]["metadata"]["GENERATOR"] = json!("grpc");
        let bootstrap = parse(&value).unwrap();
        assert_eq!((bootstrap.profile, bootstrap.context().trusted), (Profile::Grpc, false));
        value["xds_servers"][1]["channel_creds"] = json!([]);
        assert!(parse(&value).unwrap_err().contains("xds_servers[1].channel_creds"));
    }

    /// XD10: what errors in data do is said of each server.
    #[test]
    fn data_errors_are_read() {
        let mut value = secure();
        let mut read = |features: Value| {
            value["xds_servers"][0]["server_features"] = features;
            parse(&value).unwrap().server.data_errors
        };
        assert_eq!(read(json!([])), DataErrors::default());
        let keep = read(json!(["ignore_resource_deletion", "resource_timer_is_transient_error"]));
        assert_eq!(keep, DataErrors { keep_deleted: true, transient_timer: true, ..DataErrors::default() });
        let drop = read(json!(["ignore_resource_deletion", "fail_on_data_errors"]));
        assert_eq!(drop, DataErrors { drop_refused: true, ..DataErrors::default() });
    }

    /// XD2: the variant is the bootstrap's choice, or the environment's; gRPC's profile has but one.
    #[test]
    fn delta_is_chosen() {
        let text = secure().to_string();
        let env = |delta: &'static str, text: &str| {
            let text = text.to_owned();
            let variable = move |name: &str| match name {
                TEXT_VARIABLE => Some(text.clone()),
                DELTA_VARIABLE => Some(delta.to_owned()),
                _ => None,
            };
            Bootstrap::from_variables(variable).unwrap().variant
        };
        assert_eq!(
            (env("", &text), env("false", &text), env("true", &text)),
            (Variant::Sotw, Variant::Sotw, Variant::Delta)
        );
        let mut value = secure();
        value["mesh"] = json!({"delta": false});
        assert_eq!(env("true", &value.to_string()), Variant::Sotw);
        value["mesh"] = json!({"delta": true, "profile": "grpc"});
        assert_eq!(env("true", &value.to_string()), Variant::Sotw);
    }

    /// XD24, XD25: what targets and servers are called; templates of an authority must name it.
    #[test]
    fn listeners_have_names() {
        let mut value = secure();
        value["authorities"] = json!({
            "plain": {}, "own": {"client_listener_resource_name_template": "xdstp://own/L/%s?a=b"},
        });
        let bootstrap = parse(&value).unwrap();
        let cases = [
            ("a:80", "a:80"),
            ("xds:///a:80", "a:80"),
            ("xds:a:80", "a:80"),
            ("xds://plain/a:80", "xdstp://plain/envoy.config.listener.v3.Listener/a:80"),
            ("xds://own/a b", "xdstp://own/L/a%20b?a=b"),
        ];
        for (target, name) in cases {
            assert_eq!(&*bootstrap.listener_of_target(target).unwrap(), name, "{target}");
        }
        assert!(bootstrap.listener_of_target("xds://none/a").unwrap_err().contains("no \"none\""));
        let address: SocketAddr = "[::1]:80".parse().unwrap();
        assert_eq!(bootstrap.listener_of_server(address), None);
        value["client_default_listener_resource_name_template"] = json!("l/%s");
        value["server_listener_resource_name_template"] = json!("xds.istio.io/grpc/lds/inbound/%s");
        let bootstrap = parse(&value).unwrap();
        assert_eq!(&*bootstrap.listener_of_target("xds:///a").unwrap(), "l/a");
        assert_eq!(&*bootstrap.listener_of_server(address).unwrap(), "xds.istio.io/grpc/lds/inbound/[::1]:80");
        value["authorities"]["own"]["client_listener_resource_name_template"] = json!("xdstp://other/%s");
        assert!(parse(&value).unwrap_err().contains("must begin with \"xdstp://own/\""));
    }

    /// XD23: certificate files by instance; a plugin that is not known is no mistake by itself.
    #[test]
    fn certificate_providers_are_read() {
        let mut value = secure();
        let files = json!({
            "certificate_file": "c", "private_key_file": "k", "ca_certificate_file": "r", "refresh_interval": "900s",
        });
        value["certificate_providers"] = json!({
            "default": {"plugin_name": "file_watcher", "config": files}, "other": {"plugin_name": "warp"},
        });
        let bootstrap = parse(&value).unwrap();
        let files = bootstrap.identity_files().unwrap();
        assert_eq!((files.refresh, &files.roots), (Duration::from_secs(900), &Some("r".into())));
        assert_eq!(bootstrap.certificate_providers["other"], Provider::Unknown("warp".to_owned()));
        assert!(bootstrap.context().certificates.keys().eq(["default"]));
        value["certificate_providers"]["default"]["config"]["private_key_file"] = Value::Null;
        assert!(parse(&value).unwrap_err().contains("given together"));
    }
}
