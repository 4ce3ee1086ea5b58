//! Rows out of a `config_dump`. Names of fields are taken in either of protobuf's JSON spellings, since Envoy writes one and those
//! who pass its dumps on write the other.

use serde_json::Value;

use super::{Filter, Part};

/// What stands for nothing, as istioctl prints it.
const NONE: &str = "-";

/// How many domains are printed before the rest is counted.
const DOMAINS: usize = 2;

/// A field, `snake_case` or `camelCase`.
pub(super) fn field<'v>(value: &'v Value, name: &str) -> &'v Value {
    static NULL: Value = Value::Null;
    if let Some(found) = value.get(name) {
        return found;
    }
    let mut camel = String::new();
    let mut upper = false;
    for c in name.chars() {
        match (c, upper) {
            ('_', _) => upper = true,
            (c, true) => {
                camel.push(c.to_ascii_uppercase());
                upper = false;
            }
            (c, false) => camel.push(c),
        }
    }
    value.get(&camel).unwrap_or(&NULL)
}

/// A field of a field of a field.
pub(super) fn path<'v>(value: &'v Value, names: &[&str]) -> &'v Value {
    names.iter().fold(value, |value, name| field(value, name))
}

pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    }
}

pub(super) fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// The resources of a section that pass the filter, sorted by name.
pub(super) fn select(dump: &Value, part: Part, filter: &Filter) -> Vec<Value> {
    // Section, its lists, and what each item wraps.
    let (section, lists, inner): (&str, &[&str], &[&str]) = match part {
        Part::Cluster => ("ClustersConfigDump", &["static_clusters", "dynamic_active_clusters"], &["cluster"]),
        Part::Listener => {
            ("ListenersConfigDump", &["static_listeners", "dynamic_listeners"], &["active_state", "listener"])
        }
        Part::Route => ("RoutesConfigDump", &["static_route_configs", "dynamic_route_configs"], &["route_config"]),
        Part::Endpoint => {
            ("EndpointsConfigDump", &["static_endpoint_configs", "dynamic_endpoint_configs"], &["endpoint_config"])
        }
        Part::Secret => ("SecretsConfigDump", &["static_secrets", "dynamic_active_secrets"], &[]),
    };
    let sections = list(field(dump, "configs"))
        .iter()
        .filter(|config| config.get("@type").and_then(Value::as_str).is_some_and(|kind| kind.ends_with(section)));
    let mut found: Vec<Value> = Vec::new();
    for config in sections {
        for name in lists {
            for item in list(field(config, name)) {
                let resource = match path(item, inner) {
                    // A static listener stands in its item directly.
                    Value::Null => field(item, inner.last().copied().unwrap_or_default()),
                    resource => resource,
                };
                let resource = if resource.is_null() { item } else { resource };
                found.extend(narrowed(resource, part, filter));
            }
        }
    }
    match part {
        // By service rather than by direction.
        Part::Cluster => found.sort_by_cached_key(|cluster| {
            let [direction, port, subset, fqdn] = split(&name_of(cluster));
            (fqdn, port.parse::<u16>().unwrap_or_default(), subset, direction)
        }),
        _ => found.sort_by_cached_key(name_of),
    }
    found
}

fn name_of(resource: &Value) -> String {
    match text(field(resource, "name")) {
        name if name.is_empty() => text(field(resource, "cluster_name")),
        name => name,
    }
}

/// A resource, or the rest of it, if it is to be seen.
fn narrowed(resource: &Value, part: Part, filter: &Filter) -> Option<Value> {
    let name = name_of(resource);
    let named = filter.name.as_ref().is_none_or(|wanted| *wanted == name);
    let keep = match part {
        Part::Cluster => {
            let [direction, port, subset, fqdn] = split(&name);
            let is = |wanted: &Option<String>, own: &str| wanted.as_ref().is_none_or(|wanted| wanted == own);
            named
                && is(&filter.fqdn, &fqdn)
                && is(&filter.subset, &subset)
                && is(&filter.direction, &direction)
                && filter.port.is_none_or(|wanted| wanted.to_string() == port)
        }
        Part::Listener => {
            let at = path(resource, &["address", "socket_address"]);
            named
                && filter.port.is_none_or(|wanted| text(field(at, "port_value")) == wanted.to_string())
                && filter.address.as_ref().is_none_or(|wanted| text(field(at, "address")) == *wanted)
        }
        Part::Route | Part::Secret => named,
        Part::Endpoint => return endpoints_of(resource, &name, filter),
    };
    keep.then(|| resource.clone())
}

/// An assignment with those of its endpoints that are to be seen.
fn endpoints_of(resource: &Value, name: &str, filter: &Filter) -> Option<Value> {
    if filter.cluster.as_ref().is_some_and(|wanted| wanted != name) {
        return None;
    }
    let mut resource = resource.clone();
    let mut any = false;
    for group in resource.get_mut("endpoints").and_then(Value::as_array_mut).into_iter().flatten() {
        let endpoints = if group.get("lb_endpoints").is_some() { "lb_endpoints" } else { "lbEndpoints" };
        let Some(endpoints) = group.get_mut(endpoints).and_then(Value::as_array_mut) else { continue };
        endpoints.retain(|endpoint| {
            let (address, port) = address(endpoint);
            filter.address.as_ref().is_none_or(|wanted| *wanted == address)
                && filter.port.is_none_or(|wanted| wanted.to_string() == port)
                && filter.status.as_ref().is_none_or(|wanted| health(endpoint).eq_ignore_ascii_case(wanted))
        });
        any |= !endpoints.is_empty();
    }
    let narrow = filter.address.is_some() || filter.port.is_some() || filter.status.is_some();
    (any || !narrow).then_some(resource)
}

/// `outbound|9080|v1|reviews.default.svc.cluster.local` in its parts; of another name the host is all of it.
fn split(name: &str) -> [String; 4] {
    let parts: Vec<&str> = name.split('|').collect();
    match parts.as_slice() {
        [direction, port, subset, fqdn] => [*direction, *port, *subset, *fqdn].map(str::to_owned),
        _ => [String::new(), String::new(), String::new(), name.to_owned()],
    }
}

fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// `reviews.default`, out of the path of the object a resource comes from.
fn origin(metadata: &Value) -> String {
    let config = text(path(metadata, &["filter_metadata", "istio", "config"]));
    let mut parts = config.rsplit('/');
    let (Some(name), Some(_), Some(namespace)) = (parts.next(), parts.next(), parts.next()) else {
        return String::new();
    };
    format!("{name}.{namespace}")
}

pub(super) fn cluster(resource: &Value) -> Vec<String> {
    let [direction, port, subset, fqdn] = split(&name_of(resource));
    let kind = match text(path(resource, &["cluster_type", "name"])) {
        named if !named.is_empty() => named.rsplit('.').next().unwrap_or_default().to_uppercase(),
        _ => match text(field(resource, "type")) {
            kind if kind.is_empty() => "STATIC".to_owned(),
            kind => kind,
        },
    };
    vec![fqdn, or_none(port), or_none(subset), or_none(direction), kind, origin(field(resource, "metadata"))]
}

pub(super) fn routes(table: &Value) -> Vec<Vec<String>> {
    let name = name_of(table);
    let mut rows = Vec::new();
    for host in list(field(table, "virtual_hosts")) {
        let mut domains: Vec<String> = list(field(host, "domains")).iter().map(text).collect();
        let more = domains.len().saturating_sub(DOMAINS);
        domains.truncate(DOMAINS);
        let mut shown = domains.join(", ");
        if more > 0 {
            shown += &format!(" + {more} more...");
        }
        let row =
            |condition: String, object: String| vec![name.clone(), name_of(host), shown.clone(), condition, object];
        let routes = list(field(host, "routes"));
        if routes.is_empty() {
            rows.push(row("/*".to_owned(), "404".to_owned()));
        }
        for route in routes {
            rows.push(row(condition(field(route, "match")), origin(field(route, "metadata"))));
        }
    }
    rows
}

fn condition(of: &Value) -> String {
    let mut out = Vec::new();
    let prefix = [field(of, "prefix"), field(of, "path_separated_prefix")].into_iter().find(|value| !value.is_null());
    if let Some(prefix) = prefix {
        out.push(format!("{}*", text(prefix)));
    } else if let Value::String(exact) = field(of, "path") {
        out.push(exact.clone());
    } else if let Value::String(regex) = path(of, &["safe_regex", "regex"]) {
        out.push(format!("regex {regex}"));
    }
    for header in list(field(of, "headers")) {
        out.push(name_of(header));
    }
    for query in list(field(of, "query_parameters")) {
        out.push(format!("?{}", name_of(query)));
    }
    out.join(" ")
}

/// Address and port; a path has none.
fn address(endpoint: &Value) -> (String, String) {
    let at = path(endpoint, &["endpoint", "address"]);
    match path(at, &["pipe", "path"]) {
        Value::String(path) => (format!("unix://{path}"), String::new()),
        _ => {
            let at = field(at, "socket_address");
            (text(field(at, "address")), text(field(at, "port_value")))
        }
    }
}

fn health(endpoint: &Value) -> String {
    match text(field(endpoint, "health_status")) {
        unknown if unknown.is_empty() || unknown == "UNKNOWN" => "HEALTHY".to_owned(),
        status => status,
    }
}

pub(super) fn endpoints(assignment: &Value) -> Vec<Vec<String>> {
    let groups = list(field(assignment, "endpoints")).iter();
    let row = |endpoint: &Value| {
        let (host, port) = address(endpoint);
        let at = match (port.is_empty(), host.contains(':') && !host.contains('/')) {
            (true, _) => host,
            (false, true) => format!("[{host}]:{port}"),
            (false, false) => format!("{host}:{port}"),
        };
        // A dump says what was sent; who is ejected only the process itself knows.
        vec![at, health(endpoint), "OK".to_owned(), name_of(assignment)]
    };
    groups.flat_map(|group| list(field(group, "lb_endpoints")).iter().map(row)).collect()
}

pub(super) fn listener(listener: &Value) -> Vec<Vec<String>> {
    let at = path(listener, &["address", "socket_address"]);
    let (host, port) = (or_none(text(field(at, "address"))), text(field(at, "port_value")));
    let port = if port.is_empty() { "0".to_owned() } else { port };
    let chains = list(field(listener, "filter_chains")).iter();
    let default = field(listener, "default_filter_chain");
    let chains = chains.chain((!default.is_null()).then_some(default));
    let mut rows: Vec<Vec<String>> = Vec::new();
    for chain in chains {
        let row = vec![host.clone(), port.clone(), chain_match(field(chain, "filter_chain_match")), destination(chain)];
        if !rows.contains(&row) {
            rows.push(row);
        }
    }
    let api = path(listener, &["api_listener", "api_listener"]);
    if !api.is_null() {
        rows.push(vec![NONE.to_owned(), port, "API".to_owned(), connection_manager(api)]);
    }
    rows
}

fn chain_match(of: &Value) -> String {
    let mut out = Vec::new();
    let names: Vec<String> = list(field(of, "server_names")).iter().map(text).collect();
    if !names.is_empty() {
        out.push(format!("SNI: {}", names.join(",")));
    }
    match text(field(of, "transport_protocol")) {
        protocol if protocol.is_empty() => {}
        protocol => out.push(format!("Trans: {protocol}")),
    }
    let protocols: Vec<String> = list(field(of, "application_protocols")).iter().map(text).collect();
    if !protocols.is_empty() {
        out.push(format!("App: {}", protocols.join(",")));
    }
    let port = text(field(of, "destination_port"));
    if !port.is_empty() {
        out.push(format!("Addr: *:{port}"));
    }
    if out.is_empty() { "ALL".to_owned() } else { out.join("; ") }
}

fn destination(chain: &Value) -> String {
    for filter in list(field(chain, "filters")) {
        let config = field(filter, "typed_config");
        let cluster = text(field(config, "cluster"));
        if !cluster.is_empty() {
            return format!("Cluster: {cluster}");
        }
        let routes = connection_manager(config);
        if routes != NONE {
            return routes;
        }
    }
    NONE.to_owned()
}

fn connection_manager(config: &Value) -> String {
    let rds = text(path(config, &["rds", "route_config_name"]));
    if !rds.is_empty() {
        return format!("Route: {rds}");
    }
    match field(config, "route_config") {
        Value::Null => NONE.to_owned(),
        table => format!("Inline Route: {}", name_of(table)),
    }
}
