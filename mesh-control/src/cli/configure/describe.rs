//! `meshctl describe`: a service, a workload or an object with all that is about it: endpoints, routes, subsets, policies, certificate,
//! findings.

use mesh_control::{
    analyze,
    api::{
        AnalyzeRequest, Analyzed, Holding, Holdings, IssuedList, Item, Objects, PortMtls, Proxies, ProxyStatus,
        Workloads,
    },
    diagnostic::Diagnostic,
    kinds::{Key, Kind},
    registry::Registered,
};
use serde_json::{Value, json};

use crate::cli::{FAILURE, Failure, USAGE, client::Server, get, output, output::Printing, rules, values};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl describe service reviews
  meshctl describe workload reviews-v1
  meshctl describe vs/reviews")]
pub(in crate::cli) struct Describe {
    /// What: KIND NAME or KIND/NAME; the kinds of get, and workload.
    #[arg(required = true, num_args = 1..=2, value_name = "KIND NAME")]
    what: Vec<String>,
    #[command(flatten)]
    printing: Printing,
}

/// All that may be about something.
#[derive(Clone, Debug, Default)]
struct World {
    items: Vec<Item>,
    workloads: Vec<Registered>,
    proxies: Vec<ProxyStatus>,
    findings: Vec<Diagnostic>,
    holdings: Vec<Holding>,
    issued: IssuedList,
}

/// Headings with their lines.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told(Vec<(&'static str, Vec<String>)>);

impl Describe {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let namespace = server.namespace();
        let (kind, name) = match self.what.as_slice() {
            [one] => one.split_once('/').unwrap_or((one, "")),
            [kind, name] => (kind.as_str(), name.as_str()),
            _ => ("", ""),
        };
        if name.is_empty() {
            return Err(Failure::new(USAGE, "give a kind and a name, such as service reviews"));
        }
        let mut world = World {
            items: server.get::<Objects>("/objects").await?.items,
            workloads: server.get::<Workloads>("/workloads").await?.items,
            proxies: server.get::<Proxies>("/proxies").await?.items,
            findings: server.post::<_, Analyzed>("/analyze", &AnalyzeRequest::default()).await?.diagnostics,
            // As the control plane compiles it: what objects say of policies is not read here.
            holdings: server.get::<Holdings>("/policies").await?.items,
            issued: IssuedList::default(),
        };
        let (title, told) = if ["workload", "workloads", "wl", "pod"].contains(&kind) {
            world.issued = server.get("/ca/issued").await?;
            let is_it = |it: &&Registered| {
                let of = (it.name == name || it.workload == name) && it.namespace == namespace;
                of || format!("{}.{}", it.name, it.namespace) == name
            };
            let Some(workload) = world.workloads.iter().find(is_it) else {
                let message =
                    format!("no workload is called {name:?} in namespace {namespace}; see `meshctl workload list`");
                return Err(Failure::new(FAILURE, message));
            };
            (format!("workload/{}", workload.name), world.workload(workload))
        } else {
            let key: Key = values::key(&[kind.to_owned(), name.to_owned()], namespace)?;
            let found = world.items.iter().find(|item| item.key == key);
            let item = found.ok_or_else(|| Failure::new(FAILURE, get::not_found(&key)))?;
            let told = match key.kind {
                Kind::Service => world.service(item),
                _ => world.object(item)?,
            };
            (format!("{}/{}", output::resource(&key), key.name), told)
        };
        self.printing.one(&told.value(), &title, || told.text())
    }
}

impl World {
    fn service(&self, item: &Item) -> Told {
        let Key { namespace, name, .. } = &item.key;
        let host = values::full_host(name, namespace);
        let selector = rules::labels(item.object.pointer("/spec/selector"));
        let mut told = Told::default();
        told.add("Name", [name.clone()]);
        told.add("Namespace", [namespace.clone()]);
        told.add("Host", [host.clone()]);
        let ports = rules::list(&item.object, "/spec/ports").iter().map(|port| {
            let number = port.get("port").map(rules::plain).unwrap_or_default();
            let target = port.get("targetPort").map_or_else(|| number.clone(), rules::plain);
            format!("{} {number} -> {target}", rules::text(port, "/name")).trim_start().to_owned()
        });
        told.add("Ports", ports);
        told.add("Selector", [rules::labels_text(&selector)]);
        let is_endpoint = |it: &&Registered| {
            !selector.is_empty() && it.namespace == *namespace && rules::selects(&selector, &it.labels)
        };
        let endpoints: Vec<&Registered> = self.workloads.iter().filter(is_endpoint).collect();
        told.add(
            "Endpoints",
            endpoints.iter().map(|it| {
                let state = match (&it.lost, &it.unhealthy) {
                    (Some(_), _) => "lost",
                    (_, Some(_)) => "unhealthy",
                    _ => "connected",
                };
                format!("{}  {}  {}  {state}", it.name, it.address, rules::labels_text(&it.labels))
            }),
        );
        for (index, rule) in rules::about(&self.items, Kind::DestinationRule, &host).into_iter().enumerate() {
            let by = rule.key.to_string();
            told.add(
                "Destination rule",
                [if index == 0 { by } else { format!("{by} (not used: an older one is there)") }],
            );
            told.add(
                "  Subsets",
                rules::subsets(&rule.object).into_iter().map(|(name, labels)| {
                    let count = endpoints.iter().filter(|it| rules::selects(&labels, &it.labels)).count();
                    let plural = if count == 1 { "" } else { "s" };
                    format!("{name}  {}  {count} endpoint{plural}", rules::labels_text(&labels))
                }),
            );
            told.add("  Traffic policy", policy(&rule.object));
        }
        for (index, rule) in rules::about(&self.items, Kind::VirtualService, &host).into_iter().enumerate() {
            let by = rule.key.to_string();
            let gateways: Vec<String> = rules::list(&rule.object, "/spec/gateways").iter().map(rules::plain).collect();
            let place =
                if gateways.is_empty() { String::new() } else { format!(" (gateways {})", gateways.join(", ")) };
            let unused = if index == 0 || !gateways.is_empty() { "" } else { " (not used: an older one is there)" };
            told.add("Virtual service", [format!("{by}{place}{unused}")]);
            told.add("  Routes", rules::routes(&rule.object).iter().map(rules::Route::line));
        }
        let exposed = rules::of_kind(&self.items, Kind::VirtualService).filter(|rule| {
            let through = rules::list(&rule.object, "/spec/gateways").iter().any(|gateway| gateway != "mesh");
            let leads = rules::routes(&rule.object)
                .iter()
                .flat_map(|route| route.to.clone())
                .any(|(to, _, _)| values::full_host(&to, &rule.key.namespace) == host);
            through && leads
        });
        told.add(
            "Through gateways",
            exposed.map(|rule| {
                let gateways: Vec<String> =
                    rules::list(&rule.object, "/spec/gateways").iter().map(rules::plain).collect();
                format!("{} by {}", gateways.join(", "), rule.key)
            }),
        );
        // Policies are about workloads: those of a service may have different ones.
        for endpoint in &endpoints {
            told.merge(self.policies(endpoint));
        }
        told.add(
            "Findings",
            self.findings_of(|object| {
                [format!("Service {namespace}/{name}")].iter().any(|it| it == object)
                    || rules::about(&self.items, Kind::VirtualService, &host)
                        .iter()
                        .any(|it| it.key.to_string() == object)
                    || rules::about(&self.items, Kind::DestinationRule, &host)
                        .iter()
                        .any(|it| it.key.to_string() == object)
            }),
        );
        told
    }

    fn workload(&self, workload: &Registered) -> Told {
        let mut told = Told::default();
        let Registered { name, namespace, .. } = workload;
        told.add("Name", [name.clone()]);
        told.add("Workload", [workload.workload.clone()]);
        told.add("Namespace", [namespace.clone()]);
        told.add("Address", [workload.address.to_string()]);
        told.add(
            "Ports",
            workload.ports.iter().map(|port| format!("{} {}", port.name, port.number).trim_start().to_owned()),
        );
        told.add("Labels", [rules::labels_text(&workload.labels)]);
        told.add("Service account", [workload.service_account.clone()]);
        let account = format!("/ns/{namespace}/sa/{}", workload.service_account);
        let certificate = self.issued.items.iter().rfind(|it| it.id.ends_with(&account));
        told.add(
            "Certificate",
            certificate.map(|it| {
                format!(
                    "{}, serial {}, until {}",
                    it.id,
                    it.serial,
                    crate::cli::cert::date(i64::try_from(it.not_after).unwrap_or(i64::MAX))
                )
            }),
        );
        let state = match (&workload.lost, &workload.unhealthy) {
            (Some(since), _) => format!("lost {} ago", output::age(*since)),
            (_, Some(reason)) => format!("unhealthy: {reason}"),
            _ => format!("connected for {}", output::age(workload.since)),
        };
        told.add("State", [state]);
        let full = format!("{name}.{namespace}");
        let proxy = self.proxies.iter().find(|proxy| proxy.name == full);
        told.add(
            "Configuration",
            proxy.into_iter().flat_map(|proxy| &proxy.types).map(|(kind, of)| {
                let error = of.error.as_ref().map_or_else(String::new, |error| format!(": {error}"));
                format!("{kind} {}{error}", of.state)
            }),
        );
        let services = rules::of_kind(&self.items, Kind::Service).filter(|item| {
            let selector = rules::labels(item.object.pointer("/spec/selector"));
            item.key.namespace == *namespace && !selector.is_empty() && rules::selects(&selector, &workload.labels)
        });
        told.add("Services", services.map(|item| values::full_host(&item.key.name, namespace)));
        told.merge(self.policies(workload));
        told
    }

    fn object(&self, item: &Item) -> Result<Told, Failure> {
        let mut told = Told::default();
        told.add("Name", [item.key.name.clone()]);
        told.add("Namespace", [item.key.namespace.clone()]);
        told.add("Kind", [item.key.kind.to_string()]);
        told.add("Age", [output::age(item.created)]);
        match item.key.kind {
            Kind::VirtualService => {
                told.add("Hosts", rules::list(&item.object, "/spec/hosts").iter().map(rules::plain));
                told.add("Gateways", rules::list(&item.object, "/spec/gateways").iter().map(rules::plain));
                told.add("Routes", rules::routes(&item.object).iter().map(rules::Route::line));
            }
            Kind::DestinationRule => {
                told.add("Host", [rules::text(&item.object, "/spec/host").to_owned()]);
                told.add(
                    "Subsets",
                    rules::subsets(&item.object)
                        .into_iter()
                        .map(|(name, labels)| format!("{name}  {}", rules::labels_text(&labels))),
                );
                told.add("Traffic policy", policy(&item.object));
            }
            Kind::PeerAuthentication | Kind::AuthorizationPolicy | Kind::RequestAuthentication => {
                let by = |of: &PortMtls| of.by.as_ref() == Some(&item.key);
                let takes = |it: &&Holding| {
                    it.ports.iter().chain(&it.other_ports).any(by)
                        || it.policies.iter().any(|row| row.object == item.key)
                };
                told.add("Workloads", self.holdings.iter().filter(takes).map(|it| it.workload.clone()));
                told.add("Spec", spec(&item.object)?);
            }
            _ => told.add("Spec", spec(&item.object)?),
        }
        let own = item.key.to_string();
        told.add("Findings", self.findings_of(|object| object == own));
        Ok(told)
    }

    /// Whom a workload lets in.
    fn policies(&self, workload: &Registered) -> Told {
        let mut told = Told::default();
        let full = format!("{}.{}", workload.name, workload.namespace);
        let Some(holding) = self.holdings.iter().find(|it| it.workload == full) else { return told };
        told.add("Mutual TLS", mutual_tls(holding));
        let named = |are_tokens: bool| {
            let rows = holding
                .policies
                .iter()
                .filter(move |row| (row.object.kind == Kind::RequestAuthentication) == are_tokens);
            rows.map(move |row| {
                let action = if are_tokens { String::new() } else { format!("{} ", row.action) };
                format!("{action}{}{}", row.object, if row.dry_run { " (dry run)" } else { "" })
            })
        };
        told.add("Authorization", named(false));
        told.add("Tokens", named(true));
        told
    }

    fn findings_of(&self, is_about: impl Fn(&str) -> bool) -> Vec<String> {
        let found =
            self.findings.iter().filter(|it| analyze::object_of(it).is_some_and(|(object, _)| is_about(object)));
        found.map(analyze::line).collect()
    }
}

/// One line where every port is alike, else one for each that is not as the others.
fn mutual_tls(holding: &Holding) -> Vec<String> {
    let says = |of: &PortMtls| {
        let mode = format!("{:?}", of.mode).to_uppercase();
        of.by.as_ref().map_or_else(|| mode.clone(), |by| format!("{mode} by {by}"))
    };
    let Some(other) = &holding.other_ports else { return Vec::new() };
    let mut lines = vec![says(other)];
    lines.extend(
        holding.ports.iter().filter(|of| says(of) != says(other)).map(|of| format!("port {}: {}", of.port, says(of))),
    );
    lines
}

/// What of a `DestinationRule` is neither host nor subsets.
fn policy(object: &Value) -> Vec<String> {
    object.pointer("/spec/trafficPolicy").and_then(|policy| output::yaml(policy).ok()).map(lines).unwrap_or_default()
}

fn spec(object: &Value) -> Result<Vec<String>, Failure> {
    object.get("spec").map_or(Ok(Vec::new()), |spec| output::yaml(spec).map(lines))
}

fn lines(text: String) -> Vec<String> {
    text.lines().map(str::to_owned).collect()
}

impl Told {
    fn add(&mut self, heading: &'static str, lines: impl IntoIterator<Item = String>) {
        let lines: Vec<String> = lines.into_iter().filter(|line| !line.is_empty()).collect();
        if !lines.is_empty() {
            self.0.push((heading, lines));
        }
    }

    /// Lines of headings that are there already, once each.
    fn merge(&mut self, other: Self) {
        for (heading, lines) in other.0 {
            match self.0.iter_mut().find(|(known, _)| *known == heading) {
                Some((_, known)) => {
                    for line in lines {
                        if !known.contains(&line) {
                            known.push(line);
                        }
                    }
                }
                None => self.0.push((heading, lines)),
            }
        }
    }

    fn text(&self) -> String {
        let width = self.0.iter().map(|(heading, _)| heading.len()).max().unwrap_or_default() + 1;
        let mut text = String::new();
        for (heading, lines) in &self.0 {
            for (index, line) in lines.iter().enumerate() {
                let heading = if index == 0 { format!("{heading}:") } else { String::new() };
                text += &format!("{heading:<width$}  {line}\n");
            }
        }
        text
    }

    /// One line is a text, several are a list; a heading that comes again is a list of both.
    fn value(&self) -> Value {
        let mut out = serde_json::Map::new();
        for (heading, lines) in &self.0 {
            let name = heading.trim().to_ascii_lowercase().replace(' ', "_");
            match out.get_mut(&name) {
                Some(Value::Array(known)) => known.extend(lines.iter().map(|line| json!(line))),
                Some(known) => {
                    let mut all = vec![known.take()];
                    all.extend(lines.iter().map(|line| json!(line)));
                    *known = Value::Array(all);
                }
                None => {
                    let value = if let [one] = lines.as_slice() { json!(one) } else { json!(lines) };
                    out.insert(name, value);
                }
            }
        }
        Value::Object(out)
    }
}
