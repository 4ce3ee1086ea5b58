//! Istio `MeshConfig`: what holds for the whole mesh, and who else is asked or told.
//!
//! Source: `istio.mesh.v1alpha1.MeshConfig`. It is written as Istio installs it, in the key `mesh` of the ConfigMap `istio`, or as
//! a file of its own without `kind`. Of several the first by namespace and name counts.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{EscapedSlashes, PathNormalization, TlsVersions};

use super::{
    Key, Kind, Object, Source, Spec,
    read::{Fields, Reader},
    yaml::{At, Node, Value},
};
use crate::diagnostic::{Diagnostic, Level, codes};

mod provider;

pub use provider::{AuthzProvider, ProviderAddress, TelemetryProvider};
use provider::{authorizer, telemetry};

/// A `MeshConfig`. What is not said is as the control plane was started.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MeshConfig {
    /// `trustDomain`; counts when the control plane starts.
    pub trust_domain: Option<At<String>>,
    /// `trustDomainAliases`.
    pub trust_domain_aliases: Option<Vec<String>>,
    /// `rootNamespace`.
    pub root_namespace: Option<String>,
    /// `pathNormalization.normalization`.
    pub path: Option<PathNormalization>,
    /// `defaultConfig.gatewayTopology.numTrustedProxies`.
    pub trusted_proxies: Option<u32>,
    /// `enableAutoMtls`.
    pub auto_mtls: Option<bool>,
    /// `outboundTrafficPolicy.mode` is `ALLOW_ANY`.
    pub allow_any: Option<bool>,
    /// `connectTimeout`.
    pub connect_timeout: Option<Duration>,
    /// `meshMTLS.minProtocolVersion`.
    pub tls_versions: Option<TlsVersions>,
    /// `extensionProviders` that are asked whether a request may pass, by name.
    pub authorizers: BTreeMap<String, AuthzProvider>,
    /// `extensionProviders` that are told of requests, by name.
    pub telemetry: BTreeMap<String, TelemetryProvider>,
}

/// Fields by which a file without `kind` is known.
const KNOWN: [&str; 12] = [
    "extensionProviders",
    "trustDomain",
    "trustDomainAliases",
    "pathNormalization",
    "defaultConfig",
    "rootNamespace",
    "outboundTrafficPolicy",
    "enableAutoMtls",
    "connectTimeout",
    "meshMTLS",
    "accessLogFile",
    "defaultProviders",
];

/// A document that is a `MeshConfig`: the map it stands in, and the name and namespace of the object it is.
pub(super) fn is_one(tree: &Node) -> bool {
    match tree.get("kind").map(|node| &node.value) {
        Some(Value::Text(kind)) => {
            kind == "ConfigMap" && tree.get("data").is_some_and(|data| data.get("mesh").is_some())
        }
        Some(_) => false,
        None => tree.get("apiVersion").is_none() && KNOWN.iter().any(|name| tree.get(name).is_some()),
    }
}

/// Reads such a document.
pub(super) fn object(source: &Source, tree: &Node, found: &mut Vec<Diagnostic>) -> Option<Object> {
    let text = |node: Option<&Node>| match node.map(|node| &node.value) {
        Some(Value::Text(text)) => Some(text.clone()),
        _ => None,
    };
    let meta = tree.get("metadata");
    let name = text(meta.and_then(|meta| meta.get("name"))).unwrap_or_else(|| "istio".to_owned());
    let namespace = text(meta.and_then(|meta| meta.get("namespace"))).unwrap_or_else(|| "istio-system".to_owned());
    let key = Key::new(Kind::MeshConfig, namespace, name);
    let spec = match tree.get("data").and_then(|data| data.get("mesh")) {
        None => read(source, tree, "", &key, found),
        Some(node) => match &node.value {
            Value::Text(inner) => {
                // A block begins on the line after the mark that announces it.
                let is_block = source
                    .text
                    .lines()
                    .nth(node.at.line.saturating_sub(source.first_line) as usize)
                    .is_some_and(|line| line.trim_end().ends_with(['|', '>', '-', '+']));
                let first_line = node.at.line + u32::from(is_block);
                let within = Source { file: source.file.clone(), first_line, text: inner.as_str().into() };
                match within.tree() {
                    Ok(tree) => read(&within, &tree, "", &key, found),
                    Err(diagnostic) => {
                        found.push(*diagnostic);
                        None
                    }
                }
            }
            _ => read(source, node, "data.mesh", &key, found),
        },
    };
    Some(Object {
        key,
        api_version: text(tree.get("apiVersion")).unwrap_or_else(|| "v1".to_owned()),
        labels: BTreeMap::new(),
        created: 0,
        spec: Spec::MeshConfig(spec?),
        raw: Arc::new(tree.to_json()),
        source: source.clone(),
    })
}

fn read(source: &Source, tree: &Node, path: &str, key: &Key, found: &mut Vec<Diagnostic>) -> Option<MeshConfig> {
    let mut reader = Reader::new(source, key.to_string());
    let config = reader.fields(tree, path).map(|mut fields| {
        let config = MeshConfig::read(&mut fields, &mut reader);
        fields.close(&mut reader);
        config
    });
    found.append(&mut reader.found);
    config
}

impl MeshConfig {
    pub(crate) fn read(fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Self {
        let mut out = Self {
            trust_domain: fields.read("trustDomain", |node, path| reader.text(node, path)),
            trust_domain_aliases: fields
                .read("trustDomainAliases", |node, path| Some(reader.texts(node, path)))
                .map(|all| all.into_iter().map(|it| it.value).collect()),
            root_namespace: fields.read("rootNamespace", |node, path| reader.text(node, path)).map(|it| it.value),
            auto_mtls: fields.read("enableAutoMtls", |node, path| reader.boolean(node, path)),
            connect_timeout: fields.read("connectTimeout", |node, path| reader.some_time(node, path)),
            ..Self::default()
        };
        let word = |fields: &mut Fields<'_>,
                    name,
                    inner,
                    reader: &mut Reader<'_>,
                    read: &mut dyn FnMut(&Node, &str, &mut Reader<'_>)| {
            let Some((node, path)) = fields.take(name) else { return };
            let Some(mut map) = reader.fields(node, &path) else { return };
            if let Some((node, path)) = map.take(inner) {
                read(node, &path, reader);
            }
            map.close(reader);
        };
        word(fields, "pathNormalization", "normalization", reader, &mut |node, path, reader| {
            let merged = PathNormalization { merge_slashes: true, ..PathNormalization::BASE };
            let decoded = PathNormalization { escaped_slashes: EscapedSlashes::Forward, ..merged };
            let words = [
                ("DEFAULT", PathNormalization::BASE),
                ("NONE", PathNormalization::NONE),
                ("BASE", PathNormalization::BASE),
                ("MERGE_SLASHES", merged),
                ("DECODE_AND_MERGE_SLASHES", decoded),
            ];
            out.path = reader.word(node, path, &words);
        });
        word(fields, "outboundTrafficPolicy", "mode", reader, &mut |node, path, reader| {
            out.allow_any = reader.word(node, path, &[("ALLOW_ANY", true), ("REGISTRY_ONLY", false)]);
        });
        word(fields, "meshMTLS", "minProtocolVersion", reader, &mut |node, path, reader| {
            let words =
                [("TLS_AUTO", TlsVersions::Both), ("TLSV1_2", TlsVersions::Both), ("TLSV1_3", TlsVersions::Only13)];
            out.tls_versions = reader.word(node, path, &words);
        });
        if let Some((node, path)) = fields.take("defaultConfig") {
            out.trusted_proxies = default_config(node, &path, reader);
        }
        if let Some((node, path)) = fields.take("extensionProviders") {
            for (node, path) in reader.list(node, &path) {
                out.provider(node, &path, reader);
            }
        }
        fields.refused(
            reader,
            &["caCertificates", "ca", "certificates"],
            "whom the mesh believes beside its own members is said when the control plane starts",
        );
        fields.ignored(
            reader,
            &["accessLogFile", "accessLogFormat", "accessLogEncoding", "enableTracing", "defaultProviders"],
            "metrics are always on, logs and traces are switched by the environment",
        );
        fields.ignored(reader, &TOLD, "it is about proxies or about Kubernetes");
        out
    }

    fn provider(&mut self, node: &Node, path: &str, reader: &mut Reader<'_>) {
        let Some(mut fields) = reader.fields(node, path) else { return };
        let name = fields.read("name", |node, path| reader.text(node, path));
        let Some(name) = name else {
            reader.missing(&fields, "name");
            return;
        };
        let mut kinds = 0;
        for (field, grpc) in [("envoyExtAuthzHttp", false), ("envoyExtAuthzGrpc", true)] {
            if let Some((node, path)) = fields.take(field) {
                kinds += 1;
                let provider = authorizer(node, &path, grpc, reader);
                self.authorizers.extend(provider.map(|provider| (name.value.clone(), provider)));
            }
        }
        for field in ["opentelemetry", "zipkin", "envoyFileAccessLog", "envoyOtelAls", "prometheus"] {
            if let Some((node, path)) = fields.take(field) {
                kinds += 1;
                let message = format!("{path} is accepted and ignored");
                reader.report(codes::IGNORED_FIELD, Level::Warning, node.at, message).note =
                    Some("metrics are always on, logs and traces are switched by the environment".to_owned());
                let provider = telemetry(field, node, &path, reader);
                self.telemetry.extend(provider.map(|provider| (name.value.clone(), provider)));
            }
        }
        let others =
            ["lightstep", "datadog", "stackdriver", "opencensus", "skywalking", "envoyHttpAls", "envoyTcpAls", "sds"];
        for field in others {
            if fields.seen(field) {
                kinds += 1;
            }
        }
        fields.ignored(reader, &others, "requests are told of by OpenTelemetry, Zipkin and Prometheus");
        if kinds != 1 {
            reader.invalid(fields.at, format!("{path} must have exactly one kind of provider, and has {kinds}"));
        }
        fields.close(reader);
    }
}

/// Fields that mean nothing to libraries.
const TOLD: [&str; 36] = [
    "proxyListenPort",
    "proxyInboundListenPort",
    "proxyHttpPort",
    "tcpKeepalive",
    "ingressClass",
    "ingressService",
    "ingressControllerMode",
    "ingressSelector",
    "disableEnvoyListenerLog",
    "configSources",
    "enableEnvoyAccessLogService",
    "inboundClusterStatName",
    "outboundClusterStatName",
    "defaultServiceExportTo",
    "defaultVirtualServiceExportTo",
    "defaultDestinationRuleExportTo",
    "localityLbSetting",
    "dnsRefreshRate",
    "h2UpgradePolicy",
    "thriftConfig",
    "serviceSettings",
    "enablePrometheusMerge",
    "verifyCertificateAtClient",
    "discoverySelectors",
    "tlsDefaults",
    "defaultHttpRetryPolicy",
    "inboundTrafficPolicy",
    "protocolDetectionTimeout",
    "mixerCheckServer",
    "mixerReportServer",
    "disablePolicyChecks",
    "disableMixerHttpReports",
    "authPolicy",
    "sdsUdsPath",
    "reportBatchMaxEntries",
    "reportBatchMaxTime",
];

/// Of `defaultConfig` only how many proxies are in front; processes are configured by their environment.
fn default_config(node: &Node, path: &str, reader: &mut Reader<'_>) -> Option<u32> {
    let mut fields = reader.fields(node, path)?;
    let mut hops = None;
    if let Some((node, path)) = fields.take("gatewayTopology")
        && let Some(mut topology) = reader.fields(node, &path)
    {
        hops = topology.read("numTrustedProxies", |node, path| reader.u32(node, path));
        topology.ignored(
            reader,
            &["forwardClientCertDetails", "proxyProtocol"],
            "gateways say nothing of certificates",
        );
        topology.close(reader);
    }
    // All else, whatever it is, is about the process that Envoy is.
    fields.ignored(reader, &PROXY, "processes are configured by their environment");
    fields.close(reader);
    hops
}

const PROXY: [&str; 30] = [
    "configPath",
    "binaryPath",
    "serviceCluster",
    "drainDuration",
    "discoveryAddress",
    "statsdUdpAddress",
    "proxyAdminPort",
    "controlPlaneAuthPolicy",
    "customConfigFile",
    "statNameLength",
    "concurrency",
    "proxyBootstrapTemplatePath",
    "interceptionMode",
    "tracing",
    "envoyAccessLogService",
    "envoyMetricsService",
    "proxyMetadata",
    "runtimeValues",
    "statusPort",
    "extraStatTags",
    "terminationDrainDuration",
    "meshId",
    "readinessProbe",
    "proxyStatsMatcher",
    "holdApplicationUntilProxyStarts",
    "caCertificatesPem",
    "image",
    "privateKeyProvider",
    "proxyHeaders",
    "zipkinAddress",
];

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;
    use crate::kinds::{Parsed, parse};

    const BARE: &str = "\
trustDomain: example.org
trustDomainAliases: [old.example.org]
enableAutoMtls: false
connectTimeout: 3s
pathNormalization: {normalization: MERGE_SLASHES}
outboundTrafficPolicy: {mode: REGISTRY_ONLY}
meshMTLS: {minProtocolVersion: TLSV1_3}
defaultConfig:
  gatewayTopology: {numTrustedProxies: 2}
  holdApplicationUntilProxyStarts: true
accessLogFile: /dev/stdout
extensionProviders:
- name: opa
  envoyExtAuthzGrpc: {service: opa.local.svc.cluster.local, port: 9191, timeout: 1.5s, failOpen: true, statusOnError: \"503\"}
- name: oauth
  envoyExtAuthzHttp:
    service: auth/oauth.auth.svc.cluster.local
    port: 80
    pathPrefix: /check
    includeRequestHeadersInCheck: [cookie, x-auth-*]
    includeAdditionalHeadersInCheck: {X-From: mesh}
    headersToUpstreamOnAllow: [authorization]
    headersToDownstreamOnDeny: [\"*-reason\"]
- name: otel
  opentelemetry: {service: otel.observability.svc.cluster.local, port: 4317}
- name: logs
  envoyFileAccessLog: {path: /dev/stdout, logFormat: {labels: {status: \"%RESPONSE_CODE%\"}}}
";

    fn config(parsed: &Parsed) -> &MeshConfig {
        match &parsed.objects[0].spec {
            Spec::MeshConfig(config) => config,
            other => panic!("{other:?}"),
        }
    }

    /// AZ8, AZ5: a file of its own, and the ConfigMap, say the same; what is not taken is told where it stands.
    #[test]
    fn both_ways_of_writing_it_are_read() {
        let bare = parse("mesh.yaml", BARE).unwrap();
        let told: Vec<(u32, &str)> =
            bare.diagnostics.iter().map(|it| (it.line, it.message.rsplit(": ").next().unwrap())).collect();
        assert_eq!(
            told,
            [
                (10, "defaultConfig.holdApplicationUntilProxyStarts is accepted and ignored"),
                (11, "accessLogFile is accepted and ignored"),
                (25, "extensionProviders[2].opentelemetry is accepted and ignored"),
                (27, "extensionProviders[3].envoyFileAccessLog is accepted and ignored"),
            ]
        );
        let indented: String = BARE.lines().map(|line| format!("    {line}\n")).collect();
        let map = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: istio, namespace: istio-system}}\ndata:\n  mesh: |-\n{indented}"
        );
        let map = parse("mesh.yaml", &map).unwrap();
        assert_eq!(config(&map), config(&bare));
        assert_eq!(map.objects[0].key, bare.objects[0].key);
        assert_eq!(map.diagnostics[0].line, 10 + 5);

        let config = config(&bare);
        assert_eq!(config.trust_domain.as_ref().unwrap().value, "example.org");
        assert_eq!((config.trusted_proxies, config.auto_mtls, config.allow_any), (Some(2), Some(false), Some(false)));
        assert_eq!(config.tls_versions, Some(TlsVersions::Only13));
        assert!(config.path.unwrap().merge_slashes);
        let opa = &config.authorizers["opa"];
        assert_eq!(
            (opa.grpc, opa.fail_open, opa.status_on_error, opa.timeout),
            (true, true, 503, Duration::from_millis(1500))
        );
        let oauth = &config.authorizers["oauth"];
        assert_eq!((oauth.at.host.as_str(), oauth.at.port), ("oauth.auth.svc.cluster.local", 80));
        assert_eq!((oauth.include.len(), oauth.add.len(), oauth.timeout), (2, 1, Duration::from_secs(600)));
        assert_eq!(config.telemetry.keys().collect::<Vec<_>>(), ["logs", "otel"]);
    }

    /// AZ8: what is wrong is told, and so is what is no part of it.
    #[test]
    fn what_is_wrong_is_told() {
        for (text, why) in [
            ("trustDomain: 7\n", "trustDomain must be a string"),
            ("trustDomain: a\ntrustDomains: b\n", "unknown field trustDomains"),
            ("trustDomain: a\ncaCertificates: []\n", "caCertificates is not supported"),
            ("extensionProviders: [{name: x}]\n", "must have exactly one kind of provider"),
            ("extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: opa, port: 1}}]\n", "is no full host name"),
            ("extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: a.b}}]\n", "port is missing"),
            (
                "extensionProviders: [{name: x, envoyExtAuthzHttp: {service: a.b, port: 1, statusOnError: \"200\"}}]\n",
                "no status of a refusal",
            ),
            (
                "extensionProviders: [{name: x, envoyExtAuthzGrpc: {service: a.b, port: 1, includeRequestBodyInCheck: {}}}]\n",
                "includeRequestBodyInCheck.maxRequestBytes must be greater than 0",
            ),
            ("pathNormalization: {normalization: ALL}\n", "cannot be"),
        ] {
            let found = parse("mesh.yaml", text).unwrap_err();
            assert!(found.iter().any(|it| it.is_error() && it.message.contains(why)), "{text}: {found:?}");
        }
        assert!(parse("f.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata: {a: b}\n").is_err());
    }
}
