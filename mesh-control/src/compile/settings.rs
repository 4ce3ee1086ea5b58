//! What holds for the whole mesh: how the control plane was started, and the `MeshConfig` that was applied.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{AuthzService, ExtAuthz, MtlsMode, PathNormalization, TlsVersions};
use serde::{Deserialize, Serialize};

use super::cluster::cluster_name;
use crate::kinds::{AuthzProvider, MeshConfig, Object, Spec, TelemetryProvider};

/// What holds for the whole mesh. Source: Istio `MeshConfig`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct MeshSettings {
    /// `trustDomain`.
    pub trust_domain: String,
    /// Where objects that hold for all namespaces live. `rootNamespace`.
    pub root_namespace: String,
    /// Other names of the trust domain, whose identities are as good as its own. `trustDomainAliases`.
    pub trust_domain_aliases: Vec<String>,
    /// Who is asked by policies of the action `CUSTOM`, by name. `extensionProviders`.
    pub extension_providers: BTreeMap<String, ExtAuthz>,
    /// Who is told of requests, by name. `extensionProviders`.
    pub telemetry_providers: BTreeMap<String, TelemetryProvider>,
    /// How many proxies are in front of the gateways. `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub trusted_proxies: u32,
    /// Versions of TLS that servers speak. `meshMTLS.minProtocolVersion`.
    pub tls_versions: TlsVersions,
    /// The form paths are brought into before they are decided by. `pathNormalization.normalization`.
    pub path: PathNormalization,
    /// What hosts end in: `reviews.default.svc.<domain>`.
    pub domain: String,
    /// What servers demand where no PeerAuthentication says otherwise.
    ///
    /// Strict: secure by default, unlike Istio, whose default is `PERMISSIVE`.
    pub mtls: MtlsMode,
    /// Endpoints that can are called with mutual TLS where no DestinationRule says otherwise. `enableAutoMtls`.
    pub auto_mtls: bool,
    /// Hosts nobody defined are passed through by DNS; otherwise they get 502. `outboundTrafficPolicy`, `ALLOW_ANY`.
    pub allow_any: bool,
    /// `connectTimeout`.
    pub connect_timeout: Duration,
    /// The name of the cluster, for telemetry.
    pub cluster: String,
    /// Which of several control planes beside one another this is: it acts on objects without the label `istio.io/rev`, and on those whose label is this.
    /// Source: Istio's revisions.
    pub revision: String,
}

impl Default for MeshSettings {
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            trust_domain_aliases: Vec::new(),
            extension_providers: BTreeMap::new(),
            telemetry_providers: BTreeMap::new(),
            trusted_proxies: 0,
            tls_versions: TlsVersions::Both,
            path: PathNormalization::BASE,
            domain: "cluster.local".to_owned(),
            mtls: MtlsMode::Strict,
            auto_mtls: true,
            allow_any: true,
            connect_timeout: Duration::from_secs(10),
            cluster: "Kubernetes".to_owned(),
            revision: "default".to_owned(),
        }
    }
}

impl MeshSettings {
    /// With what the first `MeshConfig` says, but for the trust domain, which the authority was started with.
    pub(crate) fn with(mut self, objects: &[Arc<Object>]) -> Self {
        let Some(config) = first(objects) else { return self };
        let MeshConfig {
            trust_domain: _,
            trust_domain_aliases,
            root_namespace,
            path,
            trusted_proxies,
            auto_mtls,
            allow_any,
            connect_timeout,
            tls_versions,
            authorizers,
            telemetry,
        } = config;
        if let Some(aliases) = trust_domain_aliases {
            self.trust_domain_aliases.clone_from(aliases);
        }
        if let Some(root) = root_namespace {
            self.root_namespace.clone_from(root);
        }
        self.path = path.unwrap_or(self.path);
        self.trusted_proxies = trusted_proxies.unwrap_or(self.trusted_proxies);
        self.auto_mtls = auto_mtls.unwrap_or(self.auto_mtls);
        self.allow_any = allow_any.unwrap_or(self.allow_any);
        self.connect_timeout = connect_timeout.unwrap_or(self.connect_timeout);
        self.tls_versions = tls_versions.unwrap_or(self.tls_versions);
        self.extension_providers.extend(authorizers.iter().map(|(name, provider)| (name.clone(), service(provider))));
        self.telemetry_providers.extend(telemetry.iter().map(|(name, provider)| (name.clone(), provider.clone())));
        self
    }

    /// With the trust domain that a `MeshConfig` among these says.
    pub(crate) fn with_trust_domain<'o>(mut self, objects: impl IntoIterator<Item = &'o Object>) -> Self {
        let mut configs = objects.into_iter().filter_map(|object| match &object.spec {
            Spec::MeshConfig(config) => config.trust_domain.as_ref(),
            _ => None,
        });
        if let Some(domain) = configs.next() {
            self.trust_domain.clone_from(&domain.value);
        }
        self
    }
}

/// The one that counts.
fn first(objects: &[Arc<Object>]) -> Option<&MeshConfig> {
    objects.iter().find_map(|object| match &object.spec {
        Spec::MeshConfig(config) => Some(config),
        _ => None,
    })
}

fn service(provider: &AuthzProvider) -> ExtAuthz {
    let cluster = cluster_name(&provider.at.host, provider.at.port, "");
    let authority = provider.at.host.clone();
    let service = if provider.grpc {
        AuthzService::Grpc { cluster, authority }
    } else {
        AuthzService::Http {
            cluster,
            authority,
            path_prefix: provider.path_prefix.clone(),
            add: provider.add.iter().map(|(name, value)| (name.to_ascii_lowercase().into(), value.clone())).collect(),
            to_upstream: provider.to_upstream.clone(),
            to_client: provider.to_client.clone(),
        }
    };
    ExtAuthz {
        service,
        timeout: provider.timeout,
        failure_allows: provider.fail_open,
        status_on_error: provider.status_on_error,
        allowed_headers: (!provider.grpc).then(|| provider.include.clone()),
        disallowed_headers: Vec::new(),
        body: provider.body,
        when: None,
    }
}
