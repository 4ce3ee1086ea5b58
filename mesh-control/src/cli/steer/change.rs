//! Changes to the tree of a `VirtualService`. Pure: what is there in, what is to be applied out.

use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::cli::values::in_yaml;

/// Says that the rule was made by steering, and may go with it.
const MADE: &str = "meshctl/made";
/// What a shift replaced: the destinations before it, as JSON.
const BEFORE: &str = "meshctl/before-shift";
/// Routes that were added for a fault have names that begin so.
const FAULTY: &str = "meshctl-fault-";

/// What is to go wrong.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Fault {
    /// How long requests are held.
    pub(crate) delay: Option<Duration>,
    /// Which status answers them.
    pub(crate) abort: Option<u16>,
    /// Which gRPC status answers them, as `UNAVAILABLE`.
    pub(crate) grpc: Option<String>,
    /// Of how many, in percent.
    pub(crate) percent: f64,
    /// Only of requests with these headers.
    pub(crate) headers: Vec<(String, String)>,
}

/// How often a request is tried again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Retries {
    /// Beyond the first try; 0 is never.
    pub(crate) attempts: u32,
    /// How long each try may take.
    pub(crate) per_try: Option<Duration>,
    /// After what, as Envoy names it.
    pub(crate) on: Option<String>,
}

/// A rule that changes nothing: requests to the host go to the host.
pub(crate) fn plain(name: &str, namespace: &str, host: &str) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": namespace, "annotations": {MADE: "true"}},
        "spec": {"hosts": [host], "http": [{"route": [{"destination": {"host": host}}]}]},
    })
}

/// Whether it was made by steering and steers nothing now.
pub(crate) fn says_nothing(object: &Value) -> bool {
    let made = annotation(object, MADE).is_some();
    let [route] = routes(object) else { return false };
    let only_route = route.as_object().is_some_and(|fields| fields.keys().all(|name| name == "route"));
    let [only] = destinations(route) else { return false };
    made && only_route && only.pointer("/destination/subset").is_none()
}

/// The subsets and weights of the route that a shift would change.
pub(crate) fn weights(object: &Value, name: Option<&str>) -> Result<Vec<(String, u32)>, String> {
    let routes = routes(object);
    let Some(route) = open_route(routes, name)?.and_then(|index| routes.get(index)) else { return Ok(Vec::new()) };
    let destinations = destinations(route);
    let alone = destinations.len() == 1;
    Ok(destinations
        .iter()
        .map(|to| {
            let subset = to.pointer("/destination/subset").and_then(Value::as_str).unwrap_or_default();
            let weight = to.get("weight").and_then(Value::as_u64).and_then(|weight| u32::try_from(weight).ok());
            (subset.to_owned(), weight.unwrap_or(if alone { 100 } else { 0 }))
        })
        .collect())
}

/// Gives each subset its share. `keep` remembers what was before.
pub(crate) fn shift(
    object: &mut Value,
    name: Option<&str>,
    shares: &[(String, u32)],
    keep: bool,
) -> Result<(), String> {
    let index = match open_route(routes(object), name)? {
        Some(index) => index,
        None => {
            let host = object.pointer("/spec/hosts/0").cloned().unwrap_or_default();
            let routes = routes_mut(object)?;
            routes.push(json!({"route": [{"destination": {"host": host}}]}));
            routes.len() - 1
        }
    };
    let route = routes(object).get(index).cloned().unwrap_or_default();
    if route.get("redirect").is_some() || route.get("directResponse").is_some() || route.get("delegate").is_some() {
        return Err("that route answers or sends elsewhere by itself; there is nothing to shift".to_owned());
    }
    let before = destinations(&route);
    let first = before.first().and_then(|to| to.get("destination")).cloned().unwrap_or_default();
    let shares: Vec<&(String, u32)> = shares.iter().filter(|(_, weight)| *weight > 0).collect();
    let after: Vec<Value> = shares
        .iter()
        .map(|(subset, weight)| {
            let is_it = |to: &&Value| to.pointer("/destination/subset").and_then(Value::as_str) == Some(subset);
            let mut to = before.iter().find(is_it).cloned().unwrap_or_else(|| {
                let mut to = json!({"destination": {"host": first.get("host"), "subset": subset}});
                if let Some(port) = first.get("port") {
                    to["destination"]["port"] = port.clone();
                }
                to
            });
            if let Some(fields) = to.as_object_mut() {
                match shares.len() {
                    1 => fields.remove("weight"),
                    _ => fields.insert("weight".to_owned(), json!(weight)),
                };
            }
            to
        })
        .collect();
    let kept = Value::from(before.to_vec()).to_string();
    if let Some(fields) = routes_mut(object)?.get_mut(index).and_then(Value::as_object_mut) {
        fields.insert("route".to_owned(), after.into());
    }
    if keep {
        annotate(object, BEFORE, Some(kept));
    }
    Ok(())
}

/// Puts back what the last shift replaced.
pub(crate) fn unshift(object: &mut Value, name: Option<&str>) -> Result<(), String> {
    let kept = annotation(object, BEFORE).ok_or("no shift is there to take back")?;
    let kept: Value = serde_json::from_str(kept).map_err(|_| format!("the annotation {BEFORE} was changed by hand"))?;
    let index = open_route(routes(object), name)?.ok_or("the route that was shifted is gone")?;
    if let Some(fields) = routes_mut(object)?.get_mut(index).and_then(Value::as_object_mut) {
        fields.insert("route".to_owned(), kept);
    }
    annotate(object, BEFORE, None);
    Ok(())
}

/// Lets requests fail. Those with certain headers get routes of their own, ahead of all others, that go the same way.
pub(crate) fn fault(object: &mut Value, name: Option<&str>, fault: &Fault) -> Result<(), String> {
    unfault(object, name)?;
    let value = fault.value();
    if fault.headers.is_empty() {
        return each(object, name, |route| {
            route.insert("fault".to_owned(), value.clone());
        });
    }
    let mut added = Vec::new();
    for route in routes(object) {
        if name.is_some_and(|name| name_of(route) != Some(name)) {
            continue;
        }
        let Some(fields) = route.as_object() else { continue };
        let matches = narrowed(fields.get("match"), &fault.headers);
        if matches.is_empty() {
            continue;
        }
        let mut own = fields.clone();
        own.insert("name".to_owned(), json!(format!("{FAULTY}{}", added.len() + 1)));
        own.insert("match".to_owned(), matches.into());
        own.insert("fault".to_owned(), value.clone());
        added.push(Value::Object(own));
    }
    if added.is_empty() {
        return Err("no route of the rule takes requests with these headers".to_owned());
    }
    routes_mut(object)?.splice(0..0, added);
    Ok(())
}

/// Takes all faults back.
pub(crate) fn unfault(object: &mut Value, name: Option<&str>) -> Result<(), String> {
    routes_mut(object)?.retain(|route| !name_of(route).is_some_and(|name| name.starts_with(FAULTY)));
    each(object, name, |route| {
        route.remove("fault");
    })
}

/// How long requests may take; `None` takes it back.
pub(crate) fn timeout(object: &mut Value, name: Option<&str>, timeout: Option<Duration>) -> Result<(), String> {
    each(object, name, |route| set(route, "timeout", timeout.map(|timeout| json!(in_yaml(timeout)))))
}

/// How often they are tried again; `None` takes it back.
pub(crate) fn retry(object: &mut Value, name: Option<&str>, retries: Option<&Retries>) -> Result<(), String> {
    let value = retries.map(|retries| {
        let mut value = json!({"attempts": retries.attempts});
        if let Some(per_try) = retries.per_try {
            value["perTryTimeout"] = json!(in_yaml(per_try));
        }
        if let Some(on) = &retries.on {
            value["retryOn"] = json!(on);
        }
        value
    });
    each(object, name, |route| set(route, "retries", value.clone()))
}

impl Fault {
    fn value(&self) -> Value {
        let percentage = json!({"value": self.percent});
        let mut value = Map::new();
        if let Some(delay) = self.delay {
            value.insert("delay".to_owned(), json!({"fixedDelay": in_yaml(delay), "percentage": percentage}));
        }
        let status = match (&self.grpc, self.abort) {
            (Some(status), _) => Some(("grpcStatus", json!(status))),
            (None, Some(status)) => Some(("httpStatus", json!(status))),
            (None, None) => None,
        };
        if let Some((field, status)) = status {
            value.insert("abort".to_owned(), json!({field: status, "percentage": percentage}));
        }
        Value::Object(value)
    }
}

/// The matches of a route with these headers besides; what demands another value of one never matches, and goes.
fn narrowed(matches: Option<&Value>, headers: &[(String, String)]) -> Vec<Value> {
    let matches = matches.and_then(Value::as_array).filter(|matches| !matches.is_empty()).cloned();
    let mut out = Vec::new();
    'matches: for mut one in matches.unwrap_or_else(|| vec![json!({})]) {
        let Some(fields) = one.as_object_mut() else { continue };
        let of = fields.entry("headers").or_insert_with(|| json!({}));
        let Some(of) = of.as_object_mut() else { continue };
        for (name, value) in headers {
            let wanted = of.iter().find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, wanted)| wanted);
            match wanted.and_then(|wanted| wanted.get("exact")) {
                Some(exact) if exact != value => continue 'matches,
                _ => of.insert(name.clone(), json!({"exact": value})),
            };
        }
        out.push(one);
    }
    out
}

/// The route that everybody takes whom nothing singles out, or the one of that name.
fn open_route(routes: &[Value], name: Option<&str>) -> Result<Option<usize>, String> {
    let Some(name) = name else {
        let is_open = |route: &Value| route.get("match").is_none_or(|of| of.as_array().is_some_and(Vec::is_empty));
        return Ok(routes.iter().position(is_open));
    };
    routes.iter().position(|route| name_of(route) == Some(name)).map(Some).ok_or_else(|| unknown_route(routes, name))
}

fn unknown_route(routes: &[Value], name: &str) -> String {
    let names: Vec<&str> = routes.iter().filter_map(name_of).collect();
    match names.is_empty() {
        true => format!("there is no route {name:?}; none of the rule has a name"),
        false => format!("there is no route {name:?}; there are {}", names.join(", ")),
    }
}

/// Changes every route that leads somewhere, or the one of that name.
fn each(object: &mut Value, name: Option<&str>, mut change: impl FnMut(&mut Map<String, Value>)) -> Result<(), String> {
    if let Some(name) = name
        && !routes(object).iter().any(|route| name_of(route) == Some(name))
    {
        return Err(unknown_route(routes(object), name));
    }
    for route in routes_mut(object)? {
        if name.is_none_or(|name| name_of(route) == Some(name))
            && let Some(fields) = route.as_object_mut()
            && fields.contains_key("route")
        {
            change(fields);
        }
    }
    Ok(())
}

fn set(route: &mut Map<String, Value>, field: &str, value: Option<Value>) {
    match value {
        Some(value) => route.insert(field.to_owned(), value),
        None => route.remove(field),
    };
}

fn name_of(route: &Value) -> Option<&str> {
    route.get("name").and_then(Value::as_str)
}

fn routes(object: &Value) -> &[Value] {
    object.pointer("/spec/http").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn routes_mut(object: &mut Value) -> Result<&mut Vec<Value>, String> {
    object
        .pointer_mut("/spec/http")
        .and_then(Value::as_array_mut)
        .ok_or_else(|| "the rule has no HTTP routes".to_owned())
}

fn destinations(route: &Value) -> &[Value] {
    route.get("route").and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn annotation<'a>(object: &'a Value, name: &str) -> Option<&'a str> {
    object.get("metadata")?.get("annotations")?.get(name)?.as_str()
}

fn annotate(object: &mut Value, name: &str, value: Option<String>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let annotations = metadata.entry("annotations").or_insert_with(|| json!({}));
    let Some(fields) = annotations.as_object_mut() else { return };
    match value {
        Some(value) => fields.insert(name.to_owned(), json!(value)),
        None => fields.remove(name),
    };
    if fields.is_empty() {
        metadata.remove("annotations");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use super::*;

    /// Jason to v2, everybody else to v1, as Bookinfo has it.
    fn reviews() -> Value {
        json!({"metadata": {"name": "reviews"}, "spec": {"hosts": ["reviews"], "http": [
            {"match": [{"headers": {"end-user": {"exact": "jason"}}}],
             "route": [{"destination": {"host": "reviews", "subset": "v2"}}]},
            {"name": "everybody", "route": [{"destination": {"host": "reviews", "subset": "v1", "port": {"number": 9080}}}]},
        ]}})
    }

    fn shares(of: &[(&str, u32)]) -> Vec<(String, u32)> {
        of.iter().map(|(subset, weight)| ((*subset).to_owned(), *weight)).collect()
    }

    /// A shift changes the weights of the open route alone, keeps what it does not name of destinations, and can be taken back.
    #[test]
    fn shifts_change_the_open_route_and_go_back() {
        let mut object = reviews();
        shift(&mut object, None, &shares(&[("v1", 90), ("v3", 10)]), true).unwrap();
        assert_eq!(object["spec"]["http"][0], reviews()["spec"]["http"][0]);
        let expected = json!([
            {"destination": {"host": "reviews", "subset": "v1", "port": {"number": 9080}}, "weight": 90},
            {"destination": {"host": "reviews", "subset": "v3", "port": {"number": 9080}}, "weight": 10},
        ]);
        assert_eq!(object["spec"]["http"][1]["route"], expected);
        assert_eq!(weights(&object, None).unwrap(), shares(&[("v1", 90), ("v3", 10)]));
        // Steps on the way remember nothing: what comes back is what was before the first.
        shift(&mut object, None, &shares(&[("v1", 0), ("v3", 100)]), false).unwrap();
        assert_eq!(weights(&object, Some("everybody")).unwrap(), shares(&[("v3", 100)]));
        unshift(&mut object, None).unwrap();
        assert_eq!(object, reviews());
        assert!(unshift(&mut object, None).is_err(), "once");
        let error = shift(&mut object, Some("nobody"), &shares(&[("v1", 100)]), true).unwrap_err();
        assert_eq!(error, "there is no route \"nobody\"; there are everybody");
    }

    /// A rule made by steering goes when nothing of it is left.
    #[test]
    fn a_rule_made_here_goes_with_its_last_change() {
        let mut object = plain("ratings", "default", "ratings");
        assert!(says_nothing(&object));
        shift(&mut object, None, &shares(&[("v1", 100)]), true).unwrap();
        assert!(!says_nothing(&object));
        timeout(&mut object, None, Some(Duration::from_millis(500))).unwrap();
        assert_eq!(object["spec"]["http"][0]["timeout"], "500ms");
        unshift(&mut object, None).unwrap();
        assert!(!says_nothing(&object), "the timeout is left");
        timeout(&mut object, None, None).unwrap();
        assert!(says_nothing(&object));
        assert!(!says_nothing(&reviews()), "somebody else's");
    }

    /// A fault of one user has routes of its own that go the way that user goes, and leaves no trace when taken back.
    #[test]
    fn faults_of_a_user_follow_the_routes_of_that_user() {
        let fault_of = |user: &str| Fault {
            delay: Some(Duration::from_secs(7)),
            percent: 100.0,
            headers: vec![("end-user".to_owned(), user.to_owned())],
            ..Fault::default()
        };
        let mut object = reviews();
        fault(&mut object, None, &fault_of("jason")).unwrap();
        let http = object["spec"]["http"].as_array().unwrap();
        assert_eq!(http.len(), 4);
        for (index, subset) in [(0, "v2"), (1, "v1")] {
            assert_eq!(http[index]["match"], json!([{"headers": {"end-user": {"exact": "jason"}}}]));
            assert_eq!(http[index]["route"][0]["destination"]["subset"], subset);
            assert_eq!(http[index]["fault"], json!({"delay": {"fixedDelay": "7s", "percentage": {"value": 100.0}}}));
        }
        // What only jason takes is nobody else's.
        fault(&mut object, None, &fault_of("martha")).unwrap();
        let http = object["spec"]["http"].as_array().unwrap();
        assert_eq!((http.len(), &http[0]["route"][0]["destination"]["subset"]), (3, &json!("v1")));
        unfault(&mut object, None).unwrap();
        assert_eq!(object, reviews());
    }

    #[test]
    fn faults_timeouts_and_retries_are_of_every_route() {
        let mut object = reviews();
        let abort = Fault { abort: Some(503), percent: 12.5, ..Fault::default() };
        fault(&mut object, None, &abort).unwrap();
        let retries = Retries { attempts: 3, per_try: Some(Duration::from_secs(2)), on: Some("5xx".to_owned()) };
        retry(&mut object, None, Some(&retries)).unwrap();
        timeout(&mut object, Some("everybody"), Some(Duration::from_secs(3))).unwrap();
        for index in [0, 1] {
            let route = &object["spec"]["http"][index];
            assert_eq!(route["fault"], json!({"abort": {"httpStatus": 503, "percentage": {"value": 12.5}}}));
            assert_eq!(route["retries"], json!({"attempts": 3, "perTryTimeout": "2s", "retryOn": "5xx"}));
            assert_eq!(route.get("timeout").is_some(), index == 1);
        }
        unfault(&mut object, None).unwrap();
        retry(&mut object, None, None).unwrap();
        timeout(&mut object, None, None).unwrap();
        assert_eq!(object, reviews());
        let grpc = Fault { grpc: Some("UNAVAILABLE".to_owned()), percent: 100.0, ..Fault::default() };
        fault(&mut object, None, &grpc).unwrap();
        assert_eq!(object["spec"]["http"][1]["fault"]["abort"]["grpcStatus"], "UNAVAILABLE");
    }
}
