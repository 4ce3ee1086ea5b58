//! Routes as the data plane has them, with chance taken out: a case says which random number is drawn and which runtime key
//! is on.
//!
//! Each route is named by its place, so that the route that took a request is found again in the file. Shares that depend
//! on runtime keys, and splits, are replaced by what the case's number makes of them; the few variants are kept.

use std::{
    collections::{BTreeSet, HashMap},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use http::request::Parts;
use mesh_core::{
    config::{Action, Config, HeaderMatch, RouteTable, SplitBy},
    plan::{Plan, Target},
    request::RequestView,
    rng::RequestRng,
    snapshot::Snapshot,
};
use mesh_xds::translate;
use prost_reflect::{DescriptorPool, DynamicMessage, prost::Message};
use serde_json::{Value, json};

use super::{Failure, file};

/// The one port there is.
const PORT: u16 = 1;
const ROUTE_CONFIGURATION: &str = "envoy.config.route.v3.RouteConfiguration";

/// The place of a route: its virtual host, and where it stands in it.
pub(super) type Rule = (usize, usize);

/// The routes of a file.
pub(super) struct Table {
    pool: DescriptorPool,
    name: String,
    json: Value,
    fractions: Vec<Fraction>,
    /// Of each virtual host, if it has any.
    virtual_clusters: Vec<Option<Snapshot>>,
    variants: HashMap<Vec<bool>, Arc<RouteTable>>,
    snapshots: HashMap<(Vec<bool>, Option<Forced>), Arc<Snapshot>>,
}

/// A rule, and the destination of its split that a case asks for.
type Forced = (Rule, usize);

/// A share of requests that a route takes.
struct Fraction {
    rule: Rule,
    key: String,
    numerator: u64,
    denominator: u64,
}

/// Random number and runtime key of a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chance<'a> {
    pub(super) number: u64,
    pub(super) runtime: &'a str,
}

impl Table {
    /// Reads a `RouteConfiguration`, noting what has no effect.
    pub(super) fn read(path: &Path, ignored: &mut BTreeSet<String>) -> Result<Self, Failure> {
        let pool = file::pool()?;
        let mut json = file::tree(path)?;
        if let Some(fields) = json.as_object_mut() {
            fields.remove("@type");
            // Names are optional in such files, and needed below.
            fields.entry("name").or_insert_with(|| json!("routes"));
        }
        let virtual_clusters = take_virtual_clusters(&mut json);
        let kind = pool.get_message_by_name(ROUTE_CONFIGURATION);
        let kind = kind.ok_or_else(|| file::bad(path, "routes are not known"))?;
        file::keep_known(&mut json, &kind, "", ignored).map_err(|why| file::bad(path, why))?;
        let mut table = Self {
            pool,
            name: path.display().to_string(),
            json,
            fractions: Vec::new(),
            virtual_clusters: Vec::new(),
            variants: HashMap::new(),
            snapshots: HashMap::new(),
        };
        table.prepare();
        table.virtual_clusters = virtual_clusters
            .into_iter()
            .map(|clusters| clusters.map(|clusters| table.virtual_cluster_table(&clusters)).transpose())
            .collect::<Result<_, _>>()?;
        let decoded = table.decode(&table.json)?;
        ignored.extend(decoded.1);
        Ok(table)
    }

    /// How many routes there are.
    pub(super) fn routes(&self) -> usize {
        let hosts = self.json["virtual_hosts"].as_array().into_iter().flatten();
        hosts.map(|host| host["routes"].as_array().map_or(0, Vec::len)).sum()
    }

    /// What is decided for a request, and by which route; `None` when no route takes it.
    pub(super) fn plan(&mut self, parts: &Parts, chance: Chance<'_>) -> Result<Option<(Plan, Rule)>, Failure> {
        let on = |share: &Fraction| {
            let is_on = !chance.runtime.is_empty() && chance.runtime == share.key;
            // A share of nothing is one of the number 0 here, so that it can be tested.
            is_on && chance.number % share.denominator < share.numerator.max(1)
        };
        let taking: Vec<bool> = self.fractions.iter().map(on).collect();
        let Some((plan, rule)) = self.ask(&taking, None, parts)? else { return Ok(None) };
        let Some(chosen) = self.chosen(&taking, rule, &plan, parts, chance.number)? else {
            return Ok(Some((plan, rule)));
        };
        self.ask(&taking, Some((rule, chosen)), parts)
    }

    /// The name of the virtual cluster a request of this route belongs to; empty when its host has none.
    pub(super) fn virtual_cluster(&self, rule: Rule, parts: &Parts) -> String {
        let Some(Some(snapshot)) = self.virtual_clusters.get(rule.0) else { return String::new() };
        match snapshot.plan(&view(parts), &mut RequestRng::new(0, 0)) {
            Ok(plan) => plan.route.name.to_string(),
            Err(_) => "other".to_owned(),
        }
    }

    /// A text in the metadata of a route.
    pub(super) fn metadata(&self, rule: Rule, namespace: &str, key: &str) -> Option<String> {
        let route = self.json["virtual_hosts"].get(rule.0)?["routes"].get(rule.1)?;
        match route["metadata"]["filter_metadata"].get(namespace)?.get(key)? {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// The name of a virtual host.
    pub(super) fn host_name(&self, rule: Rule) -> &str {
        self.json["virtual_hosts"].get(rule.0).and_then(|host| host["name"].as_str()).unwrap_or_default()
    }

    /// Does a request meet a condition on its headers? Pseudo-headers nobody has are not there.
    pub(super) fn request_meets(&self, matcher: &Value, parts: &Parts) -> Result<bool, Failure> {
        let snapshot = self.condition_table(matcher)?;
        Ok(snapshot.plan(&view(parts), &mut RequestRng::new(0, 0)).is_ok())
    }

    /// A condition on headers.
    pub(super) fn condition(&self, matcher: &Value) -> Result<Option<HeaderMatch>, Failure> {
        let table = self.decode(&routes_of([json!({"match": condition(matcher)})]))?.0;
        let route = table.virtual_hosts.first().and_then(|host| host.routes.first());
        Ok(route.and_then(|route| route.matches.headers.first()).cloned())
    }

    fn condition_table(&self, matcher: &Value) -> Result<Snapshot, Failure> {
        let table = self.decode(&routes_of([json!({"match": condition(matcher)})]))?.0;
        self.compile(table)
    }

    fn virtual_cluster_table(&self, clusters: &[Value]) -> Result<Snapshot, Failure> {
        let route =
            |cluster: &Value| json!({"name": cluster["name"], "match": {"prefix": "", "headers": cluster["headers"]}});
        self.compile(self.decode(&routes_of(clusters.iter().map(route)))?.0)
    }

    /// Names routes by their places, and finds the shares that depend on chance.
    fn prepare(&mut self) {
        for (h, host) in self.json["virtual_hosts"].as_array_mut().into_iter().flatten().enumerate() {
            for (r, route) in host["routes"].as_array_mut().into_iter().flatten().enumerate() {
                route["name"] = json!(format!("{h} {r}"));
                let Some(fraction) = route["match"].get("runtime_fraction") else { continue };
                let share = &fraction["default_value"];
                let denominator = match share["denominator"].as_str() {
                    Some("TEN_THOUSAND") => 10_000,
                    Some("MILLION") => 1_000_000,
                    _ => 100,
                };
                self.fractions.push(Fraction {
                    rule: (h, r),
                    key: fraction["runtime_key"].as_str().unwrap_or_default().to_owned(),
                    numerator: share["numerator"].as_u64().unwrap_or(0),
                    denominator,
                });
            }
        }
    }

    fn ask(
        &mut self,
        taking: &[bool],
        chosen: Option<(Rule, usize)>,
        parts: &Parts,
    ) -> Result<Option<(Plan, Rule)>, Failure> {
        let snapshot = self.snapshot(taking, chosen)?;
        let Ok(plan) = snapshot.plan(&view(parts), &mut RequestRng::new(0, 0)) else { return Ok(None) };
        let place = plan.route.name.split_once(' ').and_then(|(h, r)| Some((h.parse().ok()?, r.parse().ok()?)));
        Ok(place.map(|rule| (plan, rule)))
    }

    /// Which destination the number draws from the split of a route, where chance decides.
    fn chosen(
        &mut self,
        taking: &[bool],
        rule: Rule,
        plan: &Plan,
        parts: &Parts,
        number: u64,
    ) -> Result<Option<usize>, Failure> {
        if !matches!(plan.target, Target::Cluster(_) | Target::NoCluster(_)) {
            return Ok(None);
        }
        let table = self.variant(taking)?;
        let route = table.virtual_hosts.get(rule.0).and_then(|host| host.routes.get(rule.1));
        let Some(Action::Forward(forward)) = route.map(|route| &route.action) else { return Ok(None) };
        let decided = match &forward.split_by {
            SplitBy::Random => false,
            SplitBy::Hash => plan.hash.is_some(),
            SplitBy::Header(name) => {
                let mut values = parts.headers.get_all(&**name).iter();
                let value = values.next().and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
                value.is_some() && values.next().is_none()
            }
        };
        let total: u64 = forward.clusters.iter().map(|cluster| u64::from(cluster.weight)).sum();
        if decided || forward.clusters.len() < 2 || total == 0 {
            return Ok(None);
        }
        let mut left = number % total;
        Ok(forward.clusters.iter().position(|cluster| match left.checked_sub(cluster.weight.into()) {
            None => true,
            Some(rest) => {
                left = rest;
                false
            }
        }))
    }

    fn snapshot(&mut self, taking: &[bool], chosen: Option<(Rule, usize)>) -> Result<Arc<Snapshot>, Failure> {
        let key = (taking.to_vec(), chosen);
        if let Some(snapshot) = self.snapshots.get(&key) {
            return Ok(Arc::clone(snapshot));
        }
        let mut table = RouteTable::clone(&*self.variant(taking)?);
        if let Some(((h, r), chosen)) = chosen
            && let Some(host) = table.virtual_hosts.get_mut(h)
            && let Some(route) = Arc::make_mut(host).routes.get_mut(r)
            && let Action::Forward(forward) = &mut route.action
        {
            forward.split_by = SplitBy::Random;
            for (i, cluster) in forward.clusters.iter_mut().enumerate() {
                cluster.weight = u32::from(i == chosen);
            }
        }
        let snapshot = Arc::new(self.compile(table)?);
        self.snapshots.insert(key, Arc::clone(&snapshot));
        Ok(snapshot)
    }

    /// The routes when these shares take every request, and the others none.
    fn variant(&mut self, taking: &[bool]) -> Result<Arc<RouteTable>, Failure> {
        if let Some(table) = self.variants.get(taking) {
            return Ok(Arc::clone(table));
        }
        let mut json = self.json.clone();
        for (share, takes) in self.fractions.iter().zip(taking) {
            let (h, r) = share.rule;
            let numerator = if *takes { 100 } else { 0 };
            if let Some(route) = json["virtual_hosts"].get_mut(h).and_then(|host| host["routes"].get_mut(r)) {
                route["match"]["runtime_fraction"] = json!({"default_value": {"numerator": numerator}});
            }
        }
        let table = Arc::new(self.decode(&json)?.0);
        self.variants.insert(taking.to_vec(), Arc::clone(&table));
        Ok(table)
    }

    /// From JSON over the wire's bytes to configuration, with what has no effect.
    fn decode(&self, json: &Value) -> Result<(RouteTable, Vec<String>), Failure> {
        let wrong = |why: String| file::bad(Path::new(&self.name), why);
        let kind = self.pool.get_message_by_name(ROUTE_CONFIGURATION).ok_or_else(|| wrong("no routes".to_owned()))?;
        let message = DynamicMessage::deserialize(kind, json).map_err(|error| wrong(error.to_string()))?;
        let decoded = translate::route(&Bytes::from(message.encode_to_vec()));
        let decoded = decoded.map_err(|error| wrong(format!("{}: {}", error.field, error.message)))?;
        Ok((RouteTable::clone(&decoded.value), decoded.ignored))
    }

    fn compile(&self, table: RouteTable) -> Result<Snapshot, Failure> {
        let config = Config { outbound: [(PORT, Arc::new(table))].into(), ..Config::default() };
        Snapshot::compile(&config, None).map_err(|error| file::bad(Path::new(&self.name), error))
    }
}

/// A request as routes see it.
pub(super) fn view(parts: &Parts) -> RequestView<'_> {
    RequestView::of(parts, Some(PORT))
}

/// Virtual clusters are statistics of Envoy's and decide nothing; here they are taken out of each host, to be told of.
fn take_virtual_clusters(json: &mut Value) -> Vec<Option<Vec<Value>>> {
    let field = if json.get("virtualHosts").is_some() { "virtualHosts" } else { "virtual_hosts" };
    let hosts = json.get_mut(field).and_then(Value::as_array_mut).into_iter().flatten();
    let take = |host: &mut Value| {
        let fields = host.as_object_mut()?;
        match fields.remove("virtual_clusters").or_else(|| fields.remove("virtualClusters"))? {
            Value::Array(clusters) => Some(clusters),
            _ => None,
        }
    };
    hosts.map(take).collect()
}

/// Routes that take every host and do nothing: conditions to be asked about.
fn routes_of(routes: impl IntoIterator<Item = Value>) -> Value {
    let with_action = |mut route: Value| {
        route["non_forwarding_action"] = json!({});
        route
    };
    let routes: Vec<Value> = routes.into_iter().map(with_action).collect();
    json!({"name": "conditions", "virtual_hosts": [{"name": "any", "domains": ["*"], "routes": routes}]})
}

fn condition(matcher: &Value) -> Value {
    let mut matcher = matcher.clone();
    let known = [":method", ":authority", ":scheme", ":path"];
    if let Some(absent) = matcher["name"].as_str().and_then(|name| name.strip_prefix(':'))
        && !known.iter().any(|name| name.strip_prefix(':') == Some(absent))
    {
        matcher["name"] = json!(format!("x-absent-{absent}"));
    }
    json!({"prefix": "", "headers": [matcher]})
}
