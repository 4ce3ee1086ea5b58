//! Which kinds of conditions and actions the pairs had to do with: a comparison that never meets a kind shows nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// How often each kind occurred.
#[derive(Debug, Default)]
pub(crate) struct Coverage {
    /// How many pairs were counted.
    pub(crate) pairs: usize,
    kinds: BTreeMap<String, usize>,
}

impl Coverage {
    /// Counts one pair: the host it was for and which of its rules took it, if a rule did; and what else it had to do with.
    pub(crate) fn count(
        &mut self,
        configuration: &Value,
        host: Option<&Value>,
        rule: Option<usize>,
        more: impl IntoIterator<Item = &'static str>,
    ) {
        self.pairs += 1;
        let mut kinds: BTreeSet<String> = more.into_iter().map(str::to_owned).collect();
        for flag in [
            "ignore_port_in_host_matching",
            "most_specific_header_mutations_wins",
            "ignore_path_parameters_in_path_matching",
        ] {
            if configuration[flag] == true {
                kinds.insert(flag.to_owned());
            }
        }
        changes("table", configuration, &mut kinds);
        let Some(host) = host else {
            kinds.insert("no route".to_owned());
            return self.add(kinds);
        };
        for domain in host["domains"].as_array().into_iter().flatten() {
            kinds.insert(domain_kind(domain.as_str().unwrap_or_default()).to_owned());
        }
        changes("host", host, &mut kinds);
        if host.get("retry_policy").is_some() {
            kinds.insert("host retry_policy".to_owned());
        }
        let rules = host["routes"].as_array().map_or(&[][..], Vec::as_slice);
        // Those before the one that took it were looked at.
        for route in rules.iter().take(rule.map_or(rules.len(), |rule| rule + 1)) {
            conditions(&route["match"], &mut kinds);
        }
        if let Some(route) = rule.and_then(|rule| rules.get(rule)) {
            changes("route", route, &mut kinds);
            action(route, &mut kinds);
        }
        self.add(kinds);
    }

    /// The kinds of this list that fewer than one in a hundred pairs had to do with.
    pub(crate) fn rare(&self, wanted: &[&str]) -> Vec<String> {
        let count = |kind: &str| self.kinds.get(kind).copied().unwrap_or(0);
        let rare = wanted.iter().filter(|kind| count(kind) * 100 < self.pairs);
        rare.map(|kind| format!("{kind}: {} of {}", count(kind), self.pairs)).collect()
    }

    /// A table of all kinds.
    pub(crate) fn table(&self) -> String {
        let share = |count: usize| 100.0 * count as f64 / self.pairs.max(1) as f64;
        let line = |(kind, count): (&String, &usize)| format!("{:5.1} %  {kind}", share(*count));
        self.kinds.iter().map(line).collect::<Vec<_>>().join("\n")
    }

    fn add(&mut self, kinds: BTreeSet<String>) {
        for kind in kinds {
            *self.kinds.entry(kind).or_default() += 1;
        }
    }
}

fn domain_kind(domain: &str) -> &'static str {
    match domain {
        "*" => "domain any",
        _ if domain.starts_with('*') => "domain suffix",
        _ if domain.ends_with('*') => "domain prefix",
        _ => "domain exact",
    }
}

fn changes(level: &str, of: &Value, kinds: &mut BTreeSet<String>) {
    for list in
        ["request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove"]
    {
        if of.get(list).is_some() {
            kinds.insert(format!("{level} {list}"));
        }
        for add in of[list].as_array().into_iter().flatten().filter(|add| add.is_object()) {
            kinds.insert(format!("append_action {}", add["append_action"].as_str().unwrap_or("absent")));
            let value = add["header"]["value"].as_str().unwrap_or_default();
            if value.replace("%%", "").contains('%') {
                kinds.insert("header operator".to_owned());
            }
        }
    }
}

fn conditions(matches: &Value, kinds: &mut BTreeSet<String>) {
    let Some(fields) = matches.as_object() else { return };
    for (field, value) in fields {
        match field.as_str() {
            "headers" | "query_parameters" | "cookies" => {
                for one in value.as_array().into_iter().flatten() {
                    condition(field, one, kinds);
                }
            }
            "case_sensitive" => drop(kinds.insert("path ignoring case".to_owned())),
            "path_match_policy" => drop(kinds.insert("path template".to_owned())),
            other => drop(kinds.insert(format!("match {other}"))),
        }
    }
}

fn condition(of: &str, one: &Value, kinds: &mut BTreeSet<String>) {
    let Some(fields) = one.as_object() else { return };
    if fields.keys().all(|key| matches!(key.as_str(), "name" | "invert_match" | "treat_missing_header_as_empty")) {
        kinds.insert(format!("{of} there"));
    }
    if one["name"].as_str().is_some_and(|name| name.starts_with(':')) {
        kinds.insert(format!("{of} {}", one["name"].as_str().unwrap_or_default()));
    }
    for (field, value) in fields {
        match field.as_str() {
            "name" => {}
            "string_match" => {
                for kind in value.as_object().into_iter().flat_map(|matcher| matcher.keys()) {
                    kinds.insert(format!("{of} string_match {kind}"));
                }
            }
            "present_match" => drop(kinds.insert(format!("{of} present_match {value}"))),
            other => drop(kinds.insert(format!("{of} {other}"))),
        }
    }
}

fn action(route: &Value, kinds: &mut BTreeSet<String>) {
    if let Some(fields) = route["route"].as_object() {
        for (field, value) in fields {
            kinds.insert(format!("route {field}"));
            for entry in value["clusters"].as_array().into_iter().flatten().filter(|entry| entry["weight"] != 0) {
                changes("cluster", entry, kinds);
            }
            for more in ["header_name", "use_hash_policy"].iter().filter(|more| value.get(**more).is_some()) {
                kinds.insert(format!("split {more}"));
            }
        }
    }
    if let Some(fields) = route["redirect"].as_object() {
        kinds.insert("redirect".to_owned());
        kinds.extend(fields.keys().map(|field| format!("redirect {field}")));
    }
    if let Some(fields) = route["direct_response"].as_object() {
        kinds.insert("direct_response".to_owned());
        kinds.extend(fields.keys().map(|field| format!("direct_response {field}")));
    }
    if let Some(filters) = route["typed_per_filter_config"].as_object() {
        kinds.extend(filters.keys().map(|filter| format!("filter {filter}")));
    }
}
