//! `meshctl get`: objects as tables, YAML, JSON or names, with kubectl's words for kinds.

use std::{collections::BTreeMap, time::Duration};

use mesh_control::{
    api::{Item, Objects},
    kinds::{Key, Kind},
};
use serde_json::{Value, json};
use tokio::time;

use crate::cli::{
    FAILURE, Failure, USAGE,
    client::{Server, escape},
    output::{self, Format, Printing},
};

/// Between two looks of `--watch`.
const INTERVAL: Duration = Duration::from_millis(250);

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Get {
    /// What, such as vs, virtualservice or virtualservices; several as vs,dr; all is every kind.
    kind: String,
    /// Which; all of them without.
    name: Option<String>,
    /// Of all namespaces.
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    #[command(flatten)]
    printing: Printing,
    /// Go on, and print what changes, until interrupted.
    #[arg(short, long)]
    watch: bool,
}

impl Get {
    pub(in crate::cli) async fn run(mut self, server: &Server) -> Result<(), Failure> {
        let kinds = match self.kind.as_str() {
            "all" => Kind::ALL.to_vec(),
            words => words.split(',').map(kind).collect::<Result<Vec<_>, _>>()?,
        };
        let namespace = match self.all_namespaces {
            true => String::new(),
            false => format!("?namespace={}", escape(server.namespace())),
        };
        let path = format!("/objects{namespace}");
        let mut items = server.get::<Objects>(&path).await?.items;
        items.retain(|item| kinds.contains(&item.key.kind));
        if self.watch {
            items.retain(|item| self.name.as_ref().is_none_or(|name| item.key.name == *name));
            output::data(&self.print(&items)?)?;
            self.printing.no_headers = !items.is_empty();
            return self.follow(server, &path, &kinds, items).await;
        }
        if let Some(name) = &self.name {
            let &[kind] = kinds.as_slice() else {
                return Err(Failure::new(USAGE, "a name needs one kind"));
            };
            items.retain(|item| item.key.name == *name);
            if items.is_empty() {
                return Err(Failure::new(FAILURE, not_found(&Key::new(kind, server.namespace(), name))));
            }
        }
        if items.is_empty() && !matches!(self.printing.output, Format::Json | Format::Yaml) {
            let place =
                if self.all_namespaces { String::new() } else { format!(" in namespace {}", server.namespace()) };
            output::note(&format!("No resources found{place}."));
            return Ok(());
        }
        output::data(&self.print(&items)?)
    }

    /// Prints what is new or other than before, and notes what is gone.
    async fn follow(mut self, server: &Server, path: &str, kinds: &[Kind], items: Vec<Item>) -> Result<(), Failure> {
        let mut known: BTreeMap<Key, Item> = items.into_iter().map(|item| (item.key.clone(), item)).collect();
        loop {
            time::sleep(INTERVAL).await;
            let mut now: BTreeMap<Key, Item> = BTreeMap::new();
            for item in server.get::<Objects>(path).await?.items {
                let named = self.name.as_ref().is_none_or(|name| item.key.name == *name);
                if named && kinds.contains(&item.key.kind) {
                    now.insert(item.key.clone(), item);
                }
            }
            let differs = |item: &&Item| known.get(&item.key).is_none_or(|before| before.object != item.object);
            let changed: Vec<Item> = now.values().filter(differs).cloned().collect();
            if !changed.is_empty() {
                output::data(&self.print(&changed)?)?;
                self.printing.no_headers = true;
            }
            for key in known.keys().filter(|key| !now.contains_key(key)) {
                output::note(&format!("{} {:?} deleted", output::resource(key), key.name));
            }
            known = now;
        }
    }

    fn print(&self, items: &[Item]) -> Result<String, Failure> {
        match self.printing.output {
            Format::Table | Format::Wide => Ok(self.tables(items)),
            Format::Name => {
                Ok(items.iter().map(|item| format!("{}/{}\n", output::resource(&item.key), item.key.name)).collect())
            }
            Format::Json => match (items, &self.name) {
                ([item], Some(_)) => output::json(&item.object),
                _ => {
                    let objects: Vec<&Value> = items.iter().map(|item| &item.object).collect();
                    output::json(&json!({"apiVersion": "v1", "kind": "List", "items": objects}))
                }
            },
            // Documents rather than a list, so that the output can be applied again.
            Format::Yaml => {
                let documents: Result<Vec<_>, _> = items.iter().map(|item| output::yaml(&item.object)).collect();
                Ok(documents?.join("---\n"))
            }
        }
    }

    fn tables(&self, items: &[Item]) -> String {
        let mut tables = Vec::new();
        for kind in Kind::ALL {
            let items: Vec<&Item> = items.iter().filter(|item| item.key.kind == kind).collect();
            if items.is_empty() {
                continue;
            }
            let columns = columns(kind);
            let mut header = Vec::new();
            header.extend(self.all_namespaces.then_some("NAMESPACE"));
            header.push("NAME");
            header.extend(columns.iter().map(|(title, _)| *title));
            header.push("AGE");
            let rows: Vec<Vec<String>> = items.iter().map(|item| self.row(item, columns)).collect();
            let table = output::table(&header, &rows);
            let shown =
                if self.printing.no_headers { table.split_once('\n').map_or("", |(_, rest)| rest) } else { &table };
            tables.push(shown.to_owned());
        }
        tables.join("\n")
    }

    fn row(&self, item: &Item, columns: &[(&str, &str)]) -> Vec<String> {
        let mut row = Vec::new();
        row.extend(self.all_namespaces.then(|| item.key.namespace.clone()));
        // With several kinds in one answer a name alone does not say which.
        row.push(match self.kind == "all" || self.kind.contains(',') {
            true => format!("{}/{}", output::resource(&item.key), item.key.name),
            false => item.key.name.clone(),
        });
        row.extend(columns.iter().map(|(_, pointer)| cell(item.object.pointer(pointer))));
        row.push(output::age(item.created));
        row
    }
}

/// The columns between name and age: title, and place in the object. Source: `additionalPrinterColumns` of Istio's CRDs.
fn columns(kind: Kind) -> &'static [(&'static str, &'static str)] {
    match kind {
        Kind::VirtualService => &[("GATEWAYS", "/spec/gateways"), ("HOSTS", "/spec/hosts")],
        Kind::DestinationRule => &[("HOST", "/spec/host")],
        Kind::ServiceEntry => {
            &[("HOSTS", "/spec/hosts"), ("LOCATION", "/spec/location"), ("RESOLUTION", "/spec/resolution")]
        }
        Kind::WorkloadEntry => &[("ADDRESS", "/spec/address")],
        Kind::WorkloadGroup => &[("LABELS", "/spec/metadata/labels")],
        Kind::KubeGateway => &[("CLASS", "/spec/gatewayClassName")],
        Kind::GatewayClass => &[("CONTROLLER", "/spec/controllerName")],
        Kind::HttpRoute | Kind::GrpcRoute => &[("HOSTNAMES", "/spec/hostnames")],
        Kind::PeerAuthentication => &[("MODE", "/spec/mtls/mode")],
        Kind::AuthorizationPolicy => &[("ACTION", "/spec/action")],
        Kind::Service => &[("PORT(S)", "/spec/ports")],
        _ => &[],
    }
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => "<none>".to_owned(),
        Some(Value::String(text)) => text.clone(),
        // `9080/TCP`, as kubectl writes ports.
        Some(Value::Array(ports)) if ports.iter().any(|port| port.get("port").is_some()) => {
            let port = |port: &Value| {
                let protocol = port.get("protocol").and_then(Value::as_str).unwrap_or("TCP");
                format!("{}/{protocol}", port.get("port").unwrap_or(&Value::Null))
            };
            ports.iter().map(port).collect::<Vec<_>>().join(",")
        }
        Some(other) => other.to_string(),
    }
}

/// The kind a word means.
pub(in crate::cli) fn kind(word: &str) -> Result<Kind, Failure> {
    Kind::from_word(word).ok_or_else(|| {
        let known: Vec<String> = Kind::ALL.iter().map(|kind| format!("{} ({})", kind.plural(), kind.short())).collect();
        Failure::new(USAGE, format!("there is no kind {word:?}; there are {}", known.join(", ")))
    })
}

/// As kubectl says it, with the namespace looked in.
pub(in crate::cli) fn not_found(key: &Key) -> String {
    let group = key.kind.group();
    let dot = if group.is_empty() { "" } else { "." };
    format!("{}{dot}{group} {:?} not found in namespace {}", key.kind.plural(), key.name, key.namespace)
}
