//! One case: a request, what is expected of the routes, and the verdict. The fields are those of Envoy's `ValidationItem`.

use std::{fmt, net::Ipv4Addr, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Request, request::Parts};
use mesh_core::{
    plan::{Plan, Target},
    rewrite,
    route::header_matches,
};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::{
    Failure,
    table::{Chance, Rule, Table, view},
};

/// A case, as the file has it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Case {
    #[serde(alias = "testName")]
    test_name: String,
    pub(super) input: Input,
    validate: Expected,
}

/// What goes in.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Input {
    authority: String,
    path: String,
    method: String,
    #[serde(default, alias = "randomValue", deserialize_with = "number")]
    random_value: u64,
    #[serde(default)]
    ssl: bool,
    #[serde(default)]
    internal: bool,
    #[serde(default)]
    runtime: String,
    #[serde(default, alias = "additionalRequestHeaders")]
    additional_request_headers: Vec<Header>,
    #[serde(default, alias = "additionalResponseHeaders")]
    additional_response_headers: Vec<Header>,
    #[serde(default, alias = "dynamicMetadata")]
    pub(super) dynamic_metadata: Option<Value>,
}

/// A header by name and value.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    key: String,
    #[serde(default)]
    value: String,
}

/// What should come out; what is not said is not looked at.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expected {
    #[serde(alias = "clusterName")]
    cluster_name: Option<String>,
    #[serde(alias = "virtualClusterName")]
    virtual_cluster_name: Option<String>,
    #[serde(alias = "virtualHostName")]
    virtual_host_name: Option<String>,
    #[serde(alias = "hostRewrite")]
    host_rewrite: Option<String>,
    #[serde(alias = "pathRewrite")]
    path_rewrite: Option<String>,
    #[serde(alias = "pathRedirect")]
    path_redirect: Option<String>,
    #[serde(alias = "codeRedirect")]
    code_redirect: Option<u16>,
    timeout: Option<String>,
    #[serde(default, alias = "routeMetadata")]
    route_metadata: Vec<Metadata>,
    #[serde(default, alias = "requestHeaderFields")]
    request_header_fields: Vec<Header>,
    #[serde(default, alias = "responseHeaderFields")]
    response_header_fields: Vec<Header>,
    #[serde(default, alias = "requestHeaderMatches")]
    request_header_matches: Vec<Value>,
    #[serde(default, alias = "responseHeaderMatches")]
    response_header_matches: Vec<Value>,
}

/// A text in the metadata of a route.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    namespace: String,
    key: String,
    value: Value,
}

/// How a case went.
#[derive(Debug, Serialize)]
pub(super) struct Verdict {
    name: String,
    pub(super) passed: bool,
    /// The route that took the request.
    #[serde(skip)]
    pub(super) rule: Option<Rule>,
    checks: Vec<Check>,
}

/// One thing looked at.
#[derive(Debug, Serialize)]
struct Check {
    what: String,
    expected: String,
    actual: String,
    passed: bool,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}  {}", if self.passed { "pass" } else { "FAIL" }, self.name)?;
        for Check { what, expected, actual, .. } in self.checks.iter().filter(|check| !check.passed) {
            writeln!(f, "      {what}: expected {expected:?}, actual {actual:?}")?;
        }
        Ok(())
    }
}

impl Case {
    /// What the format asks of every case.
    pub(super) fn check(&self) -> Result<(), String> {
        let Input { authority, path, method, .. } = &self.input;
        for (field, text, least) in [
            ("test_name", &self.test_name, 1),
            ("input.authority", authority, 1),
            ("input.path", path, 1),
            ("input.method", method, 3),
        ] {
            if text.len() < least {
                return Err(format!("{field} is missing"));
            }
        }
        self.input.request().map(drop)
    }

    /// Sends the request through the routes and looks at what is expected.
    pub(super) fn judge(&self, table: &mut Table) -> Result<Verdict, Failure> {
        let request = self.input.request().map_err(|error| Failure::new(crate::cli::BAD_INPUT, error))?;
        let chance = Chance { number: self.input.random_value, runtime: &self.input.runtime };
        let planned = table.plan(&request, chance)?;
        let rule = planned.as_ref().map(|(_, rule)| *rule);
        let outcome = Outcome::of(request, planned, &self.input.additional_response_headers);
        let checks = self.validate.checks(table, &outcome)?;
        let passed = checks.iter().all(|check| check.passed);
        Ok(Verdict { name: self.test_name.clone(), passed, rule, checks })
    }
}

impl Input {
    fn request(&self) -> Result<Parts, String> {
        let scheme = if self.ssl { "https" } else { "http" };
        let slash = if self.path.starts_with('/') { "" } else { "/" };
        let uri = format!("{scheme}://{}{slash}{}", self.authority, self.path);
        let mut builder = Request::builder().method(self.method.as_str()).uri(uri).header("x-forwarded-proto", scheme);
        if self.internal {
            builder = builder.header("x-envoy-internal", "true");
        }
        for Header { key, value } in &self.additional_request_headers {
            builder = builder.header(key, value);
        }
        match builder.body(()) {
            Ok(request) => Ok(request.into_parts().0),
            Err(error) => Err(format!("input is no request: {error}")),
        }
    }
}

/// What became of a request. A route that forwards has names and rewrites, one that answers has a redirect.
struct Outcome {
    request: Parts,
    rule: Option<Rule>,
    plan: Option<Plan>,
    forwards: bool,
    cluster: String,
    redirect: String,
    status: u16,
    response: HeaderMap,
}

impl Outcome {
    fn of(mut request: Parts, planned: Option<(Plan, Rule)>, response: &[Header]) -> Self {
        let mut headers = HeaderMap::new();
        for Header { key, value } in response {
            if let (Ok(name), Ok(value)) = (HeaderName::try_from(key), HeaderValue::try_from(value)) {
                headers.append(name, value);
            }
        }
        let (plan, rule) = planned.unzip();
        let mut outcome = Self {
            rule,
            forwards: false,
            cluster: String::new(),
            redirect: String::new(),
            status: 0,
            response: HeaderMap::new(),
            request: request.clone(),
            plan: None,
        };
        let Some(plan) = plan else {
            outcome.response = headers;
            return outcome;
        };
        match &plan.target {
            Target::Cluster(cluster) => outcome.cluster = cluster.name().to_string(),
            Target::NoCluster(name) => outcome.cluster = name.to_string(),
            Target::Redirect => {
                outcome.redirect = rewrite::location(&plan, &view(&request));
                outcome.status = plan.route.redirect.as_ref().map_or(0, |redirect| redirect.status);
            }
            Target::Respond => {
                let seen = view(&request);
                outcome.redirect = format!("{}://{}{}", seen.scheme, seen.authority, seen.path);
                if let Some(answer) = &plan.route.respond {
                    outcome.status = answer.status;
                    if !answer.body.is_empty() {
                        headers.insert(http::header::CONTENT_LENGTH, answer.body.len().into());
                        headers.insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
                    }
                }
            }
            _ => {}
        }
        outcome.forwards = matches!(plan.target, Target::Cluster(_) | Target::NoCluster(_));
        if outcome.forwards {
            // Whom Envoy's tool means by the caller.
            rewrite::apply(&plan, Some(Ipv4Addr::LOCALHOST.into()), &mut request);
        }
        let status = if outcome.status == 0 { 200 } else { outcome.status };
        rewrite::on_response(&plan, Some(&request), status, &mut headers);
        outcome.response = headers;
        outcome.request = request;
        outcome.plan = Some(plan);
        outcome
    }

    /// Something that only a route that forwards has.
    fn forwarded(&self, value: impl FnOnce(&Self, Rule) -> String) -> String {
        match self.rule {
            Some(rule) if self.forwards => value(self, rule),
            _ => String::new(),
        }
    }
}

impl Expected {
    fn checks(&self, table: &Table, outcome: &Outcome) -> Result<Vec<Check>, Failure> {
        let mut checks = Vec::new();
        let mut same = |what: &str, expected: &Option<String>, actual: String| {
            if let Some(expected) = expected {
                let passed = *expected == actual;
                checks.push(Check { what: what.to_owned(), expected: expected.clone(), actual, passed });
            }
        };
        same("cluster_name", &self.cluster_name, outcome.cluster.clone());
        let virtual_cluster = outcome.forwarded(|outcome, rule| table.virtual_cluster(rule, &outcome.request));
        same("virtual_cluster_name", &self.virtual_cluster_name, virtual_cluster);
        let host = outcome.forwarded(|_, rule| table.host_name(rule).to_owned());
        same("virtual_host_name", &self.virtual_host_name, host);
        let authority = outcome.forwarded(|outcome, _| view(&outcome.request).authority.to_owned());
        same("host_rewrite", &self.host_rewrite, authority);
        let path = outcome.forwarded(|outcome, _| view(&outcome.request).path.to_owned());
        same("path_rewrite", &self.path_rewrite, path);
        same("path_redirect", &self.path_redirect, outcome.redirect.clone());
        same("code_redirect", &self.code_redirect.map(|code| code.to_string()), outcome.status.to_string());
        let timeout = outcome.plan.as_ref().filter(|_| outcome.forwards).and_then(|plan| plan.route.timeout);
        if let Some(expected) = &self.timeout {
            let actual = format!("{}s", timeout.unwrap_or_default().as_secs_f64());
            let passed = seconds(expected) == Some(timeout.unwrap_or_default());
            checks.push(Check { what: "timeout".to_owned(), expected: expected.clone(), actual, passed });
        }
        for Metadata { namespace, key, value } in &self.route_metadata {
            let actual = outcome.rule.and_then(|rule| table.metadata(rule, namespace, key)).unwrap_or_default();
            let expected = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let passed = expected == actual;
            checks.push(Check { what: format!("route_metadata {namespace} {key}"), expected, actual, passed });
        }
        for Header { key, value } in &self.request_header_fields {
            let actual = request_value(&outcome.request, key).unwrap_or_default();
            let passed = *value == actual;
            checks.push(Check { what: format!("request header {key}"), expected: value.clone(), actual, passed });
        }
        for Header { key, value } in &self.response_header_fields {
            let actual = joined(&outcome.response, key).unwrap_or_default();
            let passed = *value == actual;
            checks.push(Check { what: format!("response header {key}"), expected: value.clone(), actual, passed });
        }
        for matcher in &self.request_header_matches {
            let name = matcher["name"].as_str().unwrap_or_default();
            let actual = request_value(&outcome.request, name).unwrap_or_else(|| "(not there)".to_owned());
            let passed = table.request_meets(matcher, &outcome.request)?;
            let what = format!("request header {name}");
            checks.push(Check { what, expected: matcher.to_string(), actual, passed });
        }
        for matcher in &self.response_header_matches {
            let name = matcher["name"].as_str().unwrap_or_default();
            let actual = joined(&outcome.response, name).unwrap_or_else(|| "(not there)".to_owned());
            let wanted = table.condition(matcher)?;
            let passed = wanted.is_some_and(|wanted| header_matches(&wanted, &outcome.response));
            let what = format!("response header {name}");
            checks.push(Check { what, expected: matcher.to_string(), actual, passed });
        }
        Ok(checks)
    }
}

/// A header or pseudo-header of a request.
fn request_value(request: &Parts, name: &str) -> Option<String> {
    let seen = view(request);
    match name.to_ascii_lowercase().as_str() {
        ":authority" | "host" => Some(seen.authority.to_owned()),
        ":path" => Some(seen.path.to_owned()),
        ":method" => Some(seen.method.to_string()),
        ":scheme" => Some(seen.scheme.to_owned()),
        other => joined(&request.headers, other),
    }
}

fn joined(headers: &HeaderMap, name: &str) -> Option<String> {
    let name = HeaderName::try_from(name.to_ascii_lowercase()).ok()?;
    let values: Vec<_> =
        headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect();
    (!values.is_empty()).then(|| values.join(","))
}

/// `1.5s`, as JSON has durations.
fn seconds(text: &str) -> Option<Duration> {
    Duration::try_from_secs_f64(text.strip_suffix('s')?.parse().ok()?).ok()
}

/// A number; JSON writes large ones as text.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<u64, D::Error> {
    match Value::deserialize(from)? {
        Value::Number(number) => {
            number.as_u64().ok_or_else(|| serde::de::Error::custom("random_value is no natural number"))
        }
        Value::String(text) => text.parse().map_err(serde::de::Error::custom),
        other => Err(serde::de::Error::custom(format!("random_value is {other}, no number"))),
    }
}
