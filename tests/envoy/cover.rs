//! Which kinds of conditions and actions the pairs had to do with: a comparison that never meets a kind shows nothing of it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

/// Every kind of condition and action; each occurs in at least one of a hundred pairs.
pub(crate) const KINDS: &[&str] = &[
    "domain any",
    "domain exact",
    "domain prefix",
    "domain suffix",
    "ignore_port_in_host_matching",
    "most_specific_header_mutations_wins",
    "ignore_path_parameters_in_path_matching",
    "path template",
    "cookies string_match exact",
    "cookies invert_match",
    "query_parameters present_match false",
    "header operator",
    "append_action ADD_IF_ABSENT",
    "append_action OVERWRITE_IF_EXISTS",
    "route cluster_header",
    "route request_mirror_policies",
    "route retry_policy",
    "host retry_policy",
    "host include_request_attempt_count",
    "route timeout",
    "route idle_timeout",
    "route max_stream_duration",
    "max_stream_duration max_stream_duration",
    "max_stream_duration grpc_timeout_header_max",
    "route priority",
    "route max_grpc_timeout",
    "route auto_host_rewrite",
    "route path_rewrite_policy",
    "mirror runtime_fraction",
    "mirror disable_shadow_host_suffix_append",
    "mirror host_rewrite_literal",
    "mirror request_headers_mutations",
    "cluster host_rewrite_literal",
    "fault disabled",
    "headers :scheme",
    "cookies string_match ignore_case",
    "direct_response status",
    "direct_response body",
    "route upgrade_configs",
    "retry_policy per_try_timeout",
    "retry_policy per_try_idle_timeout",
    "retry_policy num_retries",
    "retry_policy retriable_status_codes",
    "retry_policy retriable_headers",
    "fault abort http_status",
    "fault abort grpc_status",
    "fault abort header_abort",
    "fault delay fixed_delay",
    "fault delay header_delay",
    "fault headers",
    "cookies string_match prefix",
    "cookies string_match suffix",
    "cookies string_match contains",
    "cookies string_match safe_regex",
    "route hash_policy",
    "split use_hash_policy",
    "mirrored",
    "tried again",
    "timed out",
    "asked timeout",
    "asked retries",
    "route cluster_not_found_response_code",
    "route append_x_forwarded_host",
    "route host_rewrite_header",
    "route host_rewrite_path_regex",
    "split header_name",
    "no route",
    "match prefix",
    "match path",
    "match safe_regex",
    "match path_separated_prefix",
    "path ignoring case",
    "match grpc",
    "match runtime_fraction",
    "headers string_match exact",
    "headers string_match prefix",
    "headers string_match suffix",
    "headers string_match contains",
    "headers string_match safe_regex",
    "headers string_match ignore_case",
    "headers exact_match",
    "headers prefix_match",
    "headers suffix_match",
    "headers contains_match",
    "headers safe_regex_match",
    "headers range_match",
    "headers present_match true",
    "headers present_match false",
    "headers there",
    "headers invert_match",
    "headers treat_missing_header_as_empty",
    "headers :method",
    "headers :authority",
    "headers :path",
    "query_parameters string_match exact",
    "query_parameters string_match prefix",
    "query_parameters string_match suffix",
    "query_parameters string_match contains",
    "query_parameters string_match safe_regex",
    "query_parameters string_match ignore_case",
    "query_parameters present_match true",
    "query_parameters there",
    "route cluster",
    "route weighted_clusters",
    "route prefix_rewrite",
    "route regex_rewrite",
    "route host_rewrite_literal",
    "redirect",
    "redirect path_redirect",
    "redirect prefix_rewrite",
    "redirect regex_rewrite",
    "redirect https_redirect",
    "redirect scheme_redirect",
    "redirect host_redirect",
    "redirect port_redirect",
    "redirect strip_query",
    "redirect response_code",
    "direct_response",
    "filter envoy.filters.http.fault",
    "table request_headers_to_add",
    "table request_headers_to_remove",
    "table response_headers_to_add",
    "table response_headers_to_remove",
    "host request_headers_to_add",
    "host request_headers_to_remove",
    "host response_headers_to_add",
    "host response_headers_to_remove",
    "route request_headers_to_add",
    "route request_headers_to_remove",
    "route response_headers_to_add",
    "route response_headers_to_remove",
    "cluster request_headers_to_add",
    "cluster request_headers_to_remove",
    "cluster response_headers_to_add",
    "cluster response_headers_to_remove",
    "append_action absent",
    "append_action APPEND_IF_EXISTS_OR_ADD",
    "append_action OVERWRITE_IF_EXISTS_OR_ADD",
];

/// How it was asked; each in at least one of twenty pairs.
pub(crate) const ASKED_BY: &[&str; 3] = &["asked by HTTP/1.1", "asked by HTTP/2", "asked by gRPC"];

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
        let extras = ["retry_policy", "include_request_attempt_count"].into_iter();
        kinds.extend(extras.filter(|extra| host.get(extra).is_some()).map(|extra| format!("host {extra}")));
        let rules = host["routes"].as_array().map_or(&[][..], Vec::as_slice);
        // Those before the one that took it were looked at.
        for route in rules.iter().take(rule.map_or(rules.len(), |rule| rule + 1)) {
            conditions(&route["match"], &mut kinds);
        }
        if let Some(route) = rule.and_then(|rule| rules.get(rule)) {
            changes("route", route, &mut kinds);
            action(route, &mut kinds);
            if route.get("typed_per_filter_config").is_none() {
                filters(host, &mut kinds);
            }
        }
        self.add(kinds);
    }

    /// The kinds of this list that fewer than so many of a hundred pairs had to do with.
    pub(crate) fn rare(&self, wanted: &[&str], percent: usize) -> Vec<String> {
        let count = |kind: &str| self.kinds.get(kind).copied().unwrap_or(0);
        let rare = wanted.iter().filter(|kind| count(kind) * 100 < self.pairs * percent);
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
                filters(entry, kinds);
                if entry.get("host_rewrite_literal").is_some() {
                    kinds.insert("cluster host_rewrite_literal".to_owned());
                }
            }
            if field == "request_mirror_policies" {
                let copies = value.as_array().into_iter().flatten().filter_map(Value::as_object).flatten();
                kinds.extend(copies.map(|(inner, _)| format!("mirror {inner}")));
            }
            if matches!(field.as_str(), "retry_policy" | "max_stream_duration") {
                kinds.extend(value.as_object().into_iter().flatten().map(|(inner, _)| format!("{field} {inner}")));
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
    filters(route, kinds);
}

/// What a level says of filters.
fn filters(level: &Value, kinds: &mut BTreeSet<String>) {
    let Some(filters) = level["typed_per_filter_config"].as_object() else { return };
    kinds.extend(filters.keys().map(|filter| format!("filter {filter}")));
    for (field, value) in filters.values().filter_map(Value::as_object).flatten() {
        kinds.insert(format!("fault {field}"));
        let ways = value.as_object().into_iter().flat_map(|way| way.keys());
        kinds.extend(ways.filter(|way| *way != "percentage").map(|way| format!("fault {field} {way}")));
    }
}
