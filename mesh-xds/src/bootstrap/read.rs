//! Reading the bootstrap's JSON: what of it is taken, what is listed as without effect, and what is wrong with it.

use std::{collections::BTreeMap, path::PathBuf, time::Duration};

use serde::Deserialize;
use serde_json::Value;

use super::{Authority, Bootstrap, Ca, Files, Provider, Server, Tls};
use crate::{
    ads::{DataErrors, client::Variant},
    node::Node,
    profile::Profile,
};

/// gRFC A65: certificate files are read again this often.
const REFRESH: Duration = Duration::from_secs(600);

#[derive(Deserialize)]
pub(super) struct File {
    /// The control planes, best first; the first is used, the others while it cannot be reached and something is missing (gRFC
    /// A27, A71). At least one.
    #[serde(default)]
    xds_servers: Vec<ServerEntry>,
    /// Who this process is: `id` (needed), `cluster`, `locality`, `metadata`, as the control plane wants it.
    #[serde(default)]
    node: Node,
    /// What no other xDS client has.
    #[serde(default)]
    mesh: MeshEntry,
    /// Where certificates come from, by the instance's name (gRFC A29).
    #[serde(default)]
    certificate_providers: BTreeMap<String, ProviderEntry>,
    /// Who is asked for `xdstp:` names, by authority (gRFC A47).
    #[serde(default)]
    authorities: BTreeMap<String, AuthorityEntry>,
    /// What a server is called in LDS, `%s` being the address it listens on (gRFC A36).
    server_listener_resource_name_template: Option<String>,
    /// What a target is called in LDS, `%s` being the target; default `%s` (gRFC A47).
    client_default_listener_resource_name_template: Option<String>,
    /// Read, without effect.
    #[serde(default)]
    allowed_grpc_services: Value,
}

#[derive(Deserialize)]
struct AuthorityEntry {
    /// What a target is called there; default `xdstp://AUTHORITY/envoy.config.listener.v3.Listener/%s`.
    client_listener_resource_name_template: Option<String>,
    /// Its own control planes; the top level's unless there are any.
    #[serde(default)]
    xds_servers: Vec<ServerEntry>,
}

#[derive(Deserialize)]
struct ProviderEntry {
    /// `file_watcher`; others are an error where something refers to them.
    plugin_name: String,
    /// The plugin's own settings.
    #[serde(default)]
    config: Value,
}

#[derive(Deserialize)]
struct FilesEntry {
    /// The certificate and its chain, in PEM.
    certificate_file: Option<PathBuf>,
    /// Its key, in PEM.
    private_key_file: Option<PathBuf>,
    /// The roots trusted, in PEM.
    ca_certificate_file: Option<PathBuf>,
    /// The roots of each trust domain, as a SPIFFE bundle map (gRFC A87).
    spiffe_trust_bundle_map_file: Option<PathBuf>,
    /// Lists of revoked certificates, in PEM; a key of ours.
    crl_file: Option<PathBuf>,
    /// How often the files are read again, as `"900s"`; default `"600s"`.
    refresh_interval: Option<String>,
}

#[derive(Deserialize)]
struct ServerEntry {
    /// `host:port`.
    server_uri: String,
    /// The first known one counts: `tls` or `insecure` (gRFC A65).
    #[serde(default)]
    channel_creds: Vec<CredsEntry>,
    /// `jwt_token_file`, only over TLS (gRFC A97).
    #[serde(default)]
    call_creds: Vec<CredsEntry>,
    /// `ignore_resource_deletion`, `fail_on_data_errors`, `resource_timer_is_transient_error`, `trusted_xds_server`; others are
    /// without effect.
    #[serde(default)]
    server_features: Vec<Value>,
}

#[derive(Deserialize)]
struct CredsEntry {
    /// Which kind.
    r#type: String,
    /// Its settings.
    #[serde(default)]
    config: Value,
}

#[derive(Default, Deserialize)]
struct TlsEntry {
    /// The roots trusted, in PEM; read at each connect. Needed.
    ca_certificate_file: Option<PathBuf>,
    /// A client's certificate, in PEM; read at each connect.
    certificate_file: Option<PathBuf>,
    /// Its key.
    private_key_file: Option<PathBuf>,
    /// The name the server must prove in place of the host dialled; a key of ours.
    server_name: Option<String>,
}

#[derive(Deserialize)]
struct TokenEntry {
    /// A bearer token, read at each connect.
    jwt_token_file: PathBuf,
}

#[derive(Default, Deserialize)]
struct MeshEntry {
    /// Where certificates are signed; without it the control plane does that, where TLS and a token prove who asks.
    ca: Option<CaEntry>,
    /// The Unix socket of an agent that gives certificates by SDS.
    sds: Option<String>,
    /// The Unix socket of the SPIFFE Workload API.
    workload_api: Option<String>,
    /// The incremental protocol; default `false`.
    delta: Option<bool>,
    /// `"envoy"` or `"grpc"`: whose rules are followed; default `"grpc"` where the metadata has `GENERATOR: grpc`, else `"envoy"`.
    profile: Option<String>,
}

#[derive(Deserialize)]
struct CaEntry {
    /// `host:port` of an `istio.v1.auth.IstioCertificateService`; default the control plane's.
    server_uri: Option<String>,
    /// The lifetime asked for; default a day.
    ttl_seconds: Option<u64>,
}

impl File {
    pub(super) fn resolve(self, delta: Option<bool>) -> Result<Bootstrap, String> {
        let mut ignored = Vec::new();
        let mut servers = resolve_servers(self.xds_servers, "xds_servers", &mut ignored)?.into_iter();
        let Some(mut server) = servers.next() else {
            return Err("xds_servers is missing or empty: name the control plane in xds_servers[0].server_uri".into());
        };
        if !self.allowed_grpc_services.is_null() {
            ignored.push("allowed_grpc_services".to_owned());
        }
        if self.node.id.is_empty() {
            return Err("node.id is missing: the control plane refuses streams without it".into());
        }
        let mut authorities = BTreeMap::new();
        for (name, entry) in self.authorities {
            let authority = entry.resolve(&name, &mut ignored)?;
            authorities.insert(name, authority);
        }
        let mut certificate_providers = BTreeMap::new();
        for (instance, entry) in self.certificate_providers {
            let provider = entry.resolve(&instance)?;
            certificate_providers.insert(instance, provider);
        }
        let ca = resolve_ca(self.mesh.ca, &server)?;
        let agent = |name: &str, path: Option<String>| {
            path.map(|path| socket(&path)).transpose().map_err(|why| format!("mesh.{name}: {why}"))
        };
        let sds = agent("sds", self.mesh.sds)?;
        let workload_api = agent("workload_api", self.mesh.workload_api)?;
        let profile = match self.mesh.profile.as_deref() {
            Some("envoy") => Profile::Envoy,
            Some("grpc") => Profile::Grpc,
            None if self.node.meta("GENERATOR") == Some("grpc") => Profile::Grpc,
            None => Profile::Envoy,
            Some(other) => return Err(format!("mesh.profile is {other:?}: it is \"envoy\" or \"grpc\"")),
        };
        // A gRPC client has no other variant, and istiod's gRPC resources cannot be had by it.
        let variant = match self.mesh.delta.or(delta) {
            Some(true) if profile == Profile::Envoy => Variant::Delta,
            _ => Variant::Sotw,
        };
        let mut fallbacks: Vec<Server> = servers.collect();
        if profile == Profile::Grpc {
            // What a gRPC client has it do unless told to fail (gRFC A88).
            let own = authorities.values_mut().flat_map(|authority: &mut Authority| &mut authority.servers);
            for server in std::iter::once(&mut server).chain(&mut fallbacks).chain(own) {
                server.data_errors.keep_deleted = !server.data_errors.drop_refused;
            }
        }
        Ok(Bootstrap {
            server,
            fallbacks,
            authorities,
            ca,
            sds,
            workload_api,
            node: self.node,
            variant,
            profile,
            listener_template: self.client_default_listener_resource_name_template.unwrap_or_else(|| "%s".to_owned()),
            server_listener_template: self.server_listener_resource_name_template,
            certificate_providers,
            ignored,
        })
    }
}

impl AuthorityEntry {
    fn resolve(self, name: &str, ignored: &mut Vec<String>) -> Result<Authority, String> {
        let field = format!("authorities[{name:?}]");
        let servers = resolve_servers(self.xds_servers, &format!("{field}.xds_servers"), ignored)?;
        let prefix = format!("xdstp://{name}/");
        let default = || format!("{prefix}envoy.config.listener.v3.Listener/%s");
        let listener_template = self.client_listener_resource_name_template.unwrap_or_else(default);
        if !listener_template.starts_with(&prefix) {
            return Err(format!("{field}.client_listener_resource_name_template must begin with {prefix:?}"));
        }
        Ok(Authority { servers, listener_template })
    }
}

impl ProviderEntry {
    fn resolve(self, instance: &str) -> Result<Provider, String> {
        let field = format!("certificate_providers[{instance:?}]");
        if self.plugin_name != "file_watcher" {
            return Ok(Provider::Unknown(self.plugin_name));
        }
        let entry: FilesEntry =
            serde_json::from_value(self.config).map_err(|error| format!("{field}.config: {error}"))?;
        let identity = pair(entry.certificate_file, entry.private_key_file).map_err(|why| format!("{field}: {why}"))?;
        let roots = entry.ca_certificate_file.is_some() || entry.spiffe_trust_bundle_map_file.is_some();
        if identity.is_none() && !roots {
            return Err(format!("{field}.config names neither certificate_file nor ca_certificate_file"));
        }
        let refresh = match entry.refresh_interval {
            None => REFRESH,
            Some(text) => {
                let seconds = text.strip_suffix('s').and_then(|seconds| seconds.parse::<f64>().ok());
                let interval = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
                interval
                    .filter(|interval| !interval.is_zero())
                    .ok_or_else(|| format!("{field}.config.refresh_interval is {text:?}, not such as \"600s\""))?
            }
        };
        Ok(Provider::Files(Files {
            identity,
            roots: entry.ca_certificate_file,
            bundles: entry.spiffe_trust_bundle_map_file,
            crl: entry.crl_file,
            refresh,
        }))
    }
}

fn pair(certificate: Option<PathBuf>, key: Option<PathBuf>) -> Result<Option<(PathBuf, PathBuf)>, String> {
    match (certificate, key) {
        (Some(certificate), Some(key)) => Ok(Some((certificate, key))),
        (None, None) => Ok(None),
        _ => Err("certificate_file and private_key_file must be given together".to_owned()),
    }
}

fn resolve_servers(entries: Vec<ServerEntry>, field: &str, ignored: &mut Vec<String>) -> Result<Vec<Server>, String> {
    let resolve = |(index, entry): (usize, ServerEntry)| entry.resolve(&format!("{field}[{index}]"), ignored);
    entries.into_iter().enumerate().map(resolve).collect()
}

impl ServerEntry {
    fn resolve(self, field: &str, ignored: &mut Vec<String>) -> Result<Server, String> {
        let address = target(&self.server_uri).map_err(|why| format!("{field}.server_uri: {why}"))?;
        // gRFC A27: the first entry of a supported type is taken, others are skipped.
        let mut tls = None;
        let mut found = false;
        for creds in &self.channel_creds {
            match creds.r#type.as_str() {
                "insecure" => found = true,
                "tls" => {
                    tls = Some(resolve_tls(&creds.config, field)?);
                    found = true;
                }
                other => {
                    ignored.push(format!("{field}.channel_creds of type {other:?}"));
                    continue;
                }
            }
            break;
        }
        if !found {
            return Err(format!("{field}.channel_creds names no supported type: use \"insecure\" or \"tls\""));
        }
        let mut token_file = None;
        for creds in self.call_creds {
            match creds.r#type.as_str() {
                "jwt_token_file" if tls.is_none() => {
                    ignored.push(format!("{field}.call_creds: a token is never sent over an insecure channel"));
                }
                "jwt_token_file" if token_file.is_none() => {
                    let entry: TokenEntry = serde_json::from_value(creds.config)
                        .map_err(|error| format!("{field}.call_creds of type jwt_token_file: {error}"))?;
                    token_file = Some(entry.jwt_token_file);
                }
                other => ignored.push(format!("{field}.call_creds of type {other:?}")),
            }
        }
        let mut data_errors = DataErrors::default();
        let mut trusted = false;
        for feature in &self.server_features {
            match feature.as_str() {
                // What is the only choice here.
                Some("xds_v3") => {}
                Some("fail_on_data_errors") => data_errors.drop_refused = true,
                Some("ignore_resource_deletion") => data_errors.keep_deleted = true,
                Some("trusted_xds_server") => trusted = true,
                Some("resource_timer_is_transient_error") => data_errors.transient_timer = true,
                _ => ignored.push(format!("{field}.server_features {feature}")),
            }
        }
        // gRFC A88: told to fail on errors, a client does not ignore a deletion either.
        data_errors.keep_deleted &= !data_errors.drop_refused;
        Ok(Server { address, tls, token_file, data_errors, trusted })
    }
}

fn resolve_tls(config: &Value, field: &str) -> Result<Tls, String> {
    let field = format!("{field}.channel_creds of type tls");
    let entry: TlsEntry = match config {
        Value::Null => TlsEntry::default(),
        config => TlsEntry::deserialize(config).map_err(|error| format!("{field}: {error}"))?,
    };
    let Some(ca_file) = entry.ca_certificate_file else {
        return Err(format!("{field}: ca_certificate_file is missing; the system's roots are not consulted"));
    };
    let client_files = pair(entry.certificate_file, entry.private_key_file).map_err(|why| format!("{field}: {why}"))?;
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
    let named = entry.is_some();
    if let Some(entry) = entry {
        if let Some(uri) = entry.server_uri {
            server.address = target(&uri).map_err(|why| format!("mesh.ca.server_uri: {why}"))?;
        }
        if let Some(seconds) = entry.ttl_seconds {
            ttl = Duration::from_secs(seconds);
        }
    }
    Ok(Some(Ca { server, ttl, named }))
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

/// The path of a Unix socket: `unix:///run/socket`, `unix:/run/socket` or the path itself.
pub(super) fn socket(uri: &str) -> Result<PathBuf, String> {
    let path = uri.strip_prefix("unix://").or_else(|| uri.strip_prefix("unix:")).unwrap_or(uri);
    if path.is_empty() || path.contains("://") || path.starts_with("tcp:") {
        return Err(format!("{uri:?} is not a Unix socket, such as \"unix:///run/spire/agent.sock\""));
    }
    Ok(PathBuf::from(path))
}
