//! Rules as people read them: the routes of a `VirtualService`, the subsets of a `DestinationRule`. What they do, and for whom policies hold, is
//! decided by the control plane; this only tells what they say.

use mesh_control::{api::Item, kinds::Kind};
use mesh_core::config::Labels;
use serde_json::Value;

use super::values;

/// One HTTP route of a rule.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Route {
    /// May be empty.
    pub(super) name: String,
    /// `headers end-user=jason`, or `any`.
    pub(super) matches: String,
    /// Host, subset (may be empty) and weight.
    pub(super) to: Vec<(String, String, u64)>,
    /// `timeout 3s`, `2 retries`, ...
    pub(super) besides: Vec<String>,
}

pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

pub(super) fn list<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The routes of a `VirtualService`, in their order.
pub(super) fn routes(object: &Value) -> Vec<Route> {
    list(object, "/spec/http").iter().map(route).collect()
}

fn route(route: &Value) -> Route {
    let matches: Vec<String> = list(route, "/match").iter().map(one_match).collect();
    let destinations = list(route, "/route");
    let weight = |to: &Value| match to.get("weight").and_then(Value::as_u64) {
        Some(weight) => weight,
        None if destinations.len() == 1 => 100,
        None => 0,
    };
    let to = destinations
        .iter()
        .map(|to| (text(to, "/destination/host").to_owned(), text(to, "/destination/subset").to_owned(), weight(to)));
    let mut besides = Vec::new();
    for (pointer, words) in
        [("/timeout", "timeout"), ("/redirect/uri", "redirect to"), ("/redirect/authority", "redirect to")]
    {
        if let Some(value) = route.pointer(pointer).and_then(Value::as_str) {
            besides.push(format!("{words} {value}"));
        }
    }
    if let Some(attempts) = route.pointer("/retries/attempts") {
        besides.push(format!("{attempts} retries"));
    }
    let of = |fault: &str| {
        let share = route
            .pointer(&format!("/fault/{fault}/percentage/value"))
            .or_else(|| route.pointer(&format!("/fault/{fault}/percent")));
        share.map_or_else(String::new, |share| format!(" of {} %", share.as_f64().unwrap_or_default()))
    };
    if let Some(delay) = route.pointer("/fault/delay/fixedDelay").and_then(Value::as_str) {
        besides.push(format!("fault: delay {delay}{}", of("delay")));
    }
    for status in ["httpStatus", "grpcStatus"] {
        if let Some(status) = route.pointer(&format!("/fault/abort/{status}")) {
            besides.push(format!("fault: status {}{}", plain(status), of("abort")));
        }
    }
    for (field, words) in
        [("mirror", "mirrored"), ("mirrors", "mirrored"), ("rewrite", "rewritten"), ("corsPolicy", "CORS")]
    {
        if route.get(field).is_some() {
            besides.push(words.to_owned());
        }
    }
    if let Some(status) = route.pointer("/directResponse/status") {
        besides.push(format!("answered with {status}"));
    }
    Route {
        name: text(route, "/name").to_owned(),
        matches: if matches.is_empty() { "any".to_owned() } else { matches.join(" or ") },
        to: to.collect(),
        besides,
    }
}

/// `uri /a*, headers end-user=jason`.
fn one_match(of: &Value) -> String {
    let mut parts = Vec::new();
    for (name, value) in of.as_object().into_iter().flatten() {
        match (name.as_str(), value) {
            ("name", _) => {}
            (_, Value::Object(fields)) if is_pattern(value) => parts.push(format!("{name} {}", pattern(fields))),
            (_, Value::Object(fields)) => {
                let inner = fields.iter().map(|(key, value)| match value.as_object() {
                    Some(fields) if !fields.is_empty() => format!("{key}={}", pattern(fields)),
                    Some(_) => key.clone(),
                    None => format!("{key}={}", plain(value)),
                });
                parts.push(format!("{name} {}", inner.collect::<Vec<_>>().join(" and ")));
            }
            _ => parts.push(format!("{name} {}", plain(value))),
        }
    }
    if parts.is_empty() { "any".to_owned() } else { parts.join(", ") }
}

fn is_pattern(value: &Value) -> bool {
    ["exact", "prefix", "regex"].iter().any(|name| value.get(*name).is_some_and(Value::is_string))
}

/// `jason`, `/a*`, `~a.*`.
fn pattern(fields: &serde_json::Map<String, Value>) -> String {
    let text = |name: &str| fields.get(name).map(plain);
    match (text("exact"), text("prefix"), text("regex")) {
        (Some(exact), _, _) => exact,
        (_, Some(prefix), _) => format!("{prefix}*"),
        (_, _, Some(regex)) => format!("~{regex}"),
        _ => Value::Object(fields.clone()).to_string(),
    }
}

pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

impl Route {
    /// `v1 90 %, v3 10 %`.
    pub(super) fn targets(&self) -> String {
        let target = |(host, subset, weight): &(String, String, u64)| {
            let name = if subset.is_empty() { host.clone() } else { format!("{host} {subset}") };
            if self.to.len() == 1 { name } else { format!("{name} {weight} %") }
        };
        if self.to.is_empty() { "-".to_owned() } else { self.to.iter().map(target).collect::<Vec<_>>().join(", ") }
    }

    /// A line.
    pub(super) fn line(&self) -> String {
        let mut line = format!("{} -> {}", self.matches, self.targets());
        for besides in &self.besides {
            line += &format!("; {besides}");
        }
        line
    }
}

/// Objects of a kind.
pub(super) fn of_kind(items: &[Item], kind: Kind) -> impl Iterator<Item = &Item> {
    items.iter().filter(move |item| item.key.kind == kind)
}

/// Rules of a kind whose host or hosts are this one, the oldest first: it is the one that counts.
pub(super) fn about<'a>(items: &'a [Item], kind: Kind, host: &str) -> Vec<&'a Item> {
    let mut found: Vec<&Item> = of_kind(items, kind)
        .filter(|item| {
            let one = std::iter::once(text(&item.object, "/spec/host"));
            let hosts = list(&item.object, "/spec/hosts").iter().filter_map(Value::as_str).chain(one);
            hosts.filter(|of| !of.is_empty()).any(|of| values::full_host(of, &item.key.namespace) == host)
        })
        .collect();
    found.sort_by_key(|item| item.created);
    found
}

/// Name, labels and whole object of the subsets of a `DestinationRule`.
pub(super) fn subsets(object: &Value) -> Vec<(String, Labels)> {
    let subset = |of: &Value| (text(of, "/name").to_owned(), labels(of.get("labels")));
    list(object, "/spec/subsets").iter().map(subset).collect()
}

pub(super) fn labels(value: Option<&Value>) -> Labels {
    let fields = value.and_then(Value::as_object).into_iter().flatten();
    let mut out = Labels::new();
    out.extend(fields.map(|(name, value)| (name.clone(), plain(value))));
    out
}

/// Whether all of `wanted` are among `labels`.
pub(super) fn selects(wanted: &Labels, labels: &Labels) -> bool {
    wanted.iter().all(|(name, value)| labels.get(name) == Some(value))
}

/// `app=reviews,version=v1`.
pub(super) fn labels_text(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if pairs.is_empty() { "<none>".to_owned() } else { pairs.join(",") }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

    use serde_json::json;

    use super::*;

    #[test]
    fn routes_are_sentences() {
        let object = json!({"spec": {"http": [
            {"match": [{"headers": {"end-user": {"exact": "jason"}}, "uri": {"prefix": "/a"}}, {"port": 80}],
             "fault": {"delay": {"fixedDelay": "7s", "percentage": {"value": 100.0}}, "abort": {"httpStatus": 500, "percentage": {"value": 1}}},
             "route": [{"destination": {"host": "reviews", "subset": "v2"}}]},
            {"route": [{"destination": {"host": "reviews", "subset": "v1"}, "weight": 90}, {"destination": {"host": "reviews", "subset": "v3"}, "weight": 10}],
             "timeout": "3s", "retries": {"attempts": 2}},
            {"redirect": {"uri": "/b"}},
        ]}});
        let lines: Vec<String> = routes(&object).iter().map(Route::line).collect();
        assert_eq!(
            lines,
            [
                "headers end-user=jason, uri /a* or port 80 -> reviews v2; fault: delay 7s of 100 %; fault: status 500 of 1 %",
                "any -> reviews v1 90 %, reviews v3 10 %; timeout 3s; 2 retries",
                "any -> -; redirect to /b",
            ]
        );
    }
}
