//! A file of documents into objects: the envelope that all kinds share, then each kind's own fields.

use std::{collections::BTreeMap, sync::Arc};

use super::{
    ApiByteRoute, ApiGateway, ApiRoute, AuthorizationPolicy, Deployment, DestinationRule, EnvoyFilter, Gateway, Grant,
    Key, Kind, MeshConfig, Object, Parsed, PeerAuthentication, RequestAuthentication, Secret, Service, ServiceEntry,
    Sidecar, Source, Spec, Telemetry, VirtualService, WorkloadEntry, WorkloadGroup, mesh_config,
    read::{Fields, Reader, nearest},
    refused, secret,
    yaml::{At, Node, Value},
};
use crate::diagnostic::{Diagnostic, Level, codes};

/// Where an object without a namespace belongs.
const NAMESPACE: &str = "default";

/// The namespace whose objects hold for the whole mesh.
const ROOT_NAMESPACE: &str = "istio-system";

/// Reads a file of YAML documents.
///
/// # Errors
///
/// All that is wrong with it, warnings included, in the order of the file.
pub fn parse(file: &str, text: &str) -> Result<Parsed, Vec<Diagnostic>> {
    parse_documents(Source::documents(file, text))
}

/// Reads a document that was cut out of its file before.
pub(crate) fn parse_source(source: &Source) -> Result<Parsed, Vec<Diagnostic>> {
    parse_documents(vec![source.clone()])
}

fn parse_documents(documents: Vec<Source>) -> Result<Parsed, Vec<Diagnostic>> {
    let mut parsed = Parsed::default();
    for source in documents {
        match source.tree() {
            Ok(tree) => document(&source, &tree, &mut parsed),
            Err(diagnostic) => parsed.diagnostics.push(*diagnostic),
        }
    }
    hints_once(&mut parsed);
    parsed.diagnostics.sort_by_key(|diagnostic| (diagnostic.line, diagnostic.column));
    if parsed.diagnostics.iter().any(Diagnostic::is_error) { Err(parsed.diagnostics) } else { Ok(parsed) }
}

/// A document is an object or, as `kubectl get -o yaml` prints several, a `List` of them.
fn document(source: &Source, tree: &Node, parsed: &mut Parsed) {
    let items = match tree.get("kind") {
        Some(Node { value: Value::Text(kind), .. }) if kind == "List" => tree.get("items"),
        _ => None,
    };
    let trees: &[Node] = match items {
        Some(Node { value: Value::List(items), .. }) => items,
        _ => std::slice::from_ref(tree),
    };
    for tree in trees {
        if mesh_config::is_one(tree) {
            parsed.objects.extend(mesh_config::object(source, tree, &mut parsed.diagnostics));
            continue;
        }
        let mut reader = Reader::new(source, String::new());
        let object = object(source, tree, &mut reader);
        parsed.diagnostics.append(&mut reader.found);
        parsed.objects.extend(object);
    }
}

fn object(source: &Source, tree: &Node, reader: &mut Reader<'_>) -> Option<Object> {
    let Value::Map(_) = &tree.value else {
        let message = format!("an object is expected here, this is {}", tree.kind());
        reader.report(codes::NOT_AN_OBJECT, Level::Error, tree.at, message).help =
            Some("an object has apiVersion, kind, metadata and spec".to_owned());
        return None;
    };
    let mut fields = reader.fields(tree, "")?;
    let api_version = fields.read("apiVersion", |node, path| reader.text(node, path));
    let kind = fields.read("kind", |node, path| reader.text(node, path));
    for (name, there) in [("apiVersion", api_version.is_some()), ("kind", kind.is_some())] {
        if !there && !fields.seen(name) {
            let message = format!("{name} is missing");
            reader.report(codes::NOT_AN_OBJECT, Level::Error, tree.at, message).help =
                Some("an object has apiVersion, kind, metadata and spec".to_owned());
        }
    }
    let (api_version, kind) = (api_version?, kind?);
    let kind = known_kind(&api_version, &kind, tree, reader)?;
    let meta = metadata(kind, &mut fields, reader)?;
    reader.object = Key::new(kind, &meta.namespace, &meta.name).to_string();
    let spec = spec(kind, &meta, tree, &mut fields, reader);
    fields.skip(&["status"]);
    fields.close(reader);
    Some(Object {
        key: Key::new(kind, meta.namespace, meta.name),
        api_version: api_version.value,
        labels: meta.labels,
        created: 0,
        spec: spec?,
        raw: Arc::new(if kind == Kind::Secret { secret::hidden(tree.to_json()) } else { tree.to_json() }),
        source: source.clone(),
    })
}

/// The kind, unless it or its version is none of ours; then the reason is told.
fn known_kind(api_version: &At<String>, kind: &At<String>, tree: &Node, reader: &mut Reader<'_>) -> Option<Kind> {
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", api_version));
    if let Some(found) = Kind::ALL.into_iter().find(|found| found.as_str() == kind.value && found.group() == group) {
        let versions: &[&str] = match group {
            "networking.istio.io" => &["v1", "v1beta1", "v1alpha3"],
            "mesh.istio.io" => &["v1", "v1alpha1"],
            "security.istio.io" => &["v1", "v1beta1"],
            "gateway.networking.k8s.io" => match found {
                Kind::GrpcRoute => &["v1", "v1alpha2"],
                Kind::TlsRoute => &["v1", "v1alpha3", "v1alpha2"],
                Kind::TcpRoute => &["v1", "v1alpha2"],
                _ => &["v1", "v1beta1"],
            },
            _ => &["v1"],
        };
        if versions.contains(&version) {
            // Of this kind there is no other version.
            let is_old = version.contains("alpha") && group != "mesh.istio.io" && found != Kind::EnvoyFilter;
            if is_old {
                let message = format!("{} is an old version", api_version.value);
                let help = format!("write {group}/v1; it says the same");
                reader.report(codes::DEPRECATED, Level::Warning, api_version.at, message).help = Some(help);
            }
            return Some(found);
        }
        let message = format!("{} has no version {version:?}", kind.value);
        let diagnostic = reader.report(codes::UNKNOWN_KIND, Level::Error, api_version.at, message);
        diagnostic.help = Some(format!("it is one of {}", versions.join(", ")));
        return None;
    }
    let name = tree.get("metadata").and_then(|metadata| metadata.get("name"));
    let name = match name.map(|node| &node.value) {
        Some(Value::Text(name)) => format!(" {name:?}"),
        _ => String::new(),
    };
    if let Some(reason) = refused::reason(group, &kind.value) {
        let message = format!("{} of {api}{name} is not supported", kind.value, api = api_version.value);
        let diagnostic = reader.report(codes::UNSUPPORTED_KIND, Level::Error, kind.at, message);
        diagnostic.help = Some(reason.to_owned());
        return None;
    }
    if let Some(found) = Kind::ALL.into_iter().find(|found| found.as_str() == kind.value) {
        let message = format!("{} is not a kind of {:?}", kind.value, api_version.value);
        let diagnostic = reader.report(codes::UNKNOWN_KIND, Level::Error, api_version.at, message);
        let group = found.group();
        let api = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
        diagnostic.label = Some(format!("did you mean {api:?}?"));
        return None;
    }
    let names = Kind::ALL.map(Kind::as_str);
    let near = nearest(&kind.value, names);
    let diagnostic =
        reader.report(codes::UNKNOWN_KIND, Level::Error, kind.at, format!("unknown kind {:?}", kind.value));
    diagnostic.label = near.map(|near| format!("did you mean {near:?}?"));
    diagnostic.help = Some(format!("taken are {}", names.join(", ")));
    None
}

struct Metadata {
    name: String,
    namespace: String,
    labels: BTreeMap<String, String>,
}

fn metadata(kind: Kind, fields: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<Metadata> {
    let Some((node, path)) = fields.take("metadata") else {
        reader.object = kind.to_string();
        reader.missing(fields, "metadata");
        return None;
    };
    let mut meta = reader.fields(node, &path)?;
    let name = meta.read("name", |node, path| reader.text(node, path));
    let namespace = meta.read("namespace", |node, path| reader.text(node, path));
    let labels = meta.read("labels", |node, path| Some(reader.labels(node, path))).unwrap_or_default();
    // What the Kubernetes API server and its tools write for themselves.
    meta.skip(&[
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "managedFields",
        "ownerReferences",
        "resourceVersion",
        "selfLink",
        "uid",
    ]);
    if name.is_none() && !meta.seen("name") {
        reader.object = kind.to_string();
        reader.missing(&meta, "name");
    }
    for (value, field, longest) in [(&name, "name", 253), (&namespace, "namespace", 63)] {
        let Some(value) = value else { continue };
        if !is_dns_name(value, longest) {
            let message = format!("metadata.{field} {:?} is no DNS name", value.value);
            reader.invalid(value.at, message).help = Some(
                "it has lower-case letters, digits, - and ., and begins and ends with a letter or digit".to_owned(),
            );
        }
    }
    meta.close(reader);
    let namespace = namespace.map_or_else(|| NAMESPACE.to_owned(), |at| at.value);
    Some(Metadata { name: name?.value, namespace, labels })
}

pub(super) fn is_dns_name(name: &str, longest: usize) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    !name.is_empty()
        && name.len() <= longest
        && name.chars().all(|c| plain(c) || c == '-' || c == '.')
        && name.starts_with(plain)
        && name.ends_with(plain)
}

fn spec(kind: Kind, meta: &Metadata, tree: &Node, object: &mut Fields<'_>, reader: &mut Reader<'_>) -> Option<Spec> {
    if kind == Kind::ServiceAccount {
        object.skip(&["secrets", "imagePullSecrets", "automountServiceAccountToken"]);
        return Some(Spec::ServiceAccount);
    }
    if kind == Kind::Secret {
        return Some(Spec::Secret(Secret::read(object, reader)));
    }
    let Some((node, path)) = object.take("spec") else {
        // `spec: {}` may be left out where nothing is required.
        match kind {
            Kind::PeerAuthentication => return Some(Spec::PeerAuthentication(PeerAuthentication::default())),
            Kind::AuthorizationPolicy => {
                return Some(Spec::AuthorizationPolicy(AuthorizationPolicy::default()));
            }
            Kind::Sidecar => return Some(Spec::Sidecar(Sidecar::default())),
            Kind::Telemetry => return Some(Spec::Telemetry(Telemetry::default())),
            Kind::RequestAuthentication => {
                return Some(Spec::RequestAuthentication(RequestAuthentication::default()));
            }
            _ => {}
        }
        reader.report(codes::MISSING_FIELD, Level::Error, tree.at, "spec is missing".to_owned());
        return None;
    };
    let mut fields = reader.fields(node, &path)?;
    let spec = match kind {
        Kind::Service => Spec::Service(Service::read(&mut fields, reader)),
        Kind::ServiceAccount => Spec::ServiceAccount,
        Kind::Deployment => Spec::Deployment(Deployment::read(&mut fields, reader)),
        Kind::ServiceEntry => Spec::ServiceEntry(ServiceEntry::read(&mut fields, reader)),
        Kind::WorkloadEntry => Spec::WorkloadEntry(WorkloadEntry::read(&mut fields, reader)),
        Kind::DestinationRule => Spec::DestinationRule(DestinationRule::read(&mut fields, reader)),
        Kind::VirtualService => Spec::VirtualService(VirtualService::read(&mut fields, reader)),
        Kind::Gateway => Spec::Gateway(Gateway::read(&mut fields, reader)),
        Kind::PeerAuthentication => {
            let root = meta.namespace == ROOT_NAMESPACE;
            Spec::PeerAuthentication(PeerAuthentication::read(&mut fields, root, reader))
        }
        Kind::RequestAuthentication => Spec::RequestAuthentication(RequestAuthentication::read(&mut fields, reader)),
        Kind::AuthorizationPolicy => Spec::AuthorizationPolicy(AuthorizationPolicy::read(&mut fields, reader)),
        Kind::WorkloadGroup => Spec::WorkloadGroup(WorkloadGroup::read(&mut fields, reader)),
        Kind::Sidecar => Spec::Sidecar(Sidecar::read(&mut fields, reader)),
        Kind::Telemetry => Spec::Telemetry(Telemetry::read(&mut fields, reader)),
        Kind::GatewayClass => {
            fields.skip(&["controllerName", "description"]);
            fields.ignored(reader, &["parametersRef"], "gateways are started by whoever runs them");
            Spec::GatewayClass
        }
        Kind::KubeGateway => Spec::KubeGateway(ApiGateway::read(&mut fields, reader)),
        Kind::HttpRoute => Spec::ApiRoute(ApiRoute::read(&mut fields, &meta.namespace, false, reader)),
        Kind::GrpcRoute => Spec::ApiRoute(ApiRoute::read(&mut fields, &meta.namespace, true, reader)),
        Kind::ReferenceGrant => Spec::ReferenceGrant(Grant::read(&mut fields, reader)),
        Kind::Secret => Spec::Secret(Secret::default()),
        Kind::TlsRoute => Spec::ApiByteRoute(ApiByteRoute::read(&mut fields, &meta.namespace, true, reader)),
        Kind::TcpRoute => Spec::ApiByteRoute(ApiByteRoute::read(&mut fields, &meta.namespace, false, reader)),
        Kind::MeshConfig => Spec::MeshConfig(MeshConfig::read(&mut fields, reader)),
        Kind::EnvoyFilter => Spec::EnvoyFilter(EnvoyFilter::read(&mut fields, reader)),
    };
    fields.close(reader);
    Some(spec)
}

/// That a Deployment starts nothing is said once a file, not once an object.
fn hints_once(parsed: &mut Parsed) {
    let deployments = || parsed.objects.iter().filter(|object| object.key.kind == Kind::Deployment);
    let Some(first) = deployments().next() else { return };
    let count = deployments().count();
    let line = first.source.text.lines().position(|line| line.starts_with("kind:")).unwrap_or_default() as u32;
    let at = super::Spot { line: first.source.first_line + line, column: 1, length: "kind: Deployment".len() as u32 };
    let message = match count {
        1 => "a Deployment starts nothing here; it is read as a hint of who will run".to_owned(),
        _ => format!("Deployments ({count} in this file) start nothing here; they are read as hints of who will run"),
    };
    let mut hint = first.source.diagnostic(codes::IGNORED_FIELD, Level::Info, at, message);
    hint.note =
        Some("read are the labels, service account and ports of the pods; everything else is ignored".to_owned());
    parsed.diagnostics.push(hint);
}
