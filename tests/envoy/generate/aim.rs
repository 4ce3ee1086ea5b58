//! Requests that aim at a rule of a configuration: they do what its conditions ask, or nearly.

use http::{Method, Version};
use proptest::{collection::vec, prelude::*, sample::select};
use serde_json::Value;

use super::{
    Flavour,
    action::SHORT,
    matches::{COOKIES, HEADERS, KEYS, PATH_REGEXES, PATHS, TEMPLATES, VALUE_REGEXES, VALUES},
};
use crate::ask::Ask;

const AUTHORITIES: [&str; 14] = [
    "a.example.com",
    "A.EXAMPLE.com",
    "b.example.com",
    "a.example.com:8080",
    "b.example.com:80",
    "x.a.example.com",
    "x-b.example.com",
    "shop",
    "shop:80",
    "shop:8080",
    "example.org",
    "a.b",
    "other",
    "127.0.0.1:8080",
];

const PATH_ENDS: [&str; 7] = ["", "", "x", "/", "/x", "/x/y", "//"];
const QUERIES: [&str; 6] = ["k=42", "q=jason", "k", "k=", "q=a&q=b", "=v&Q=%41"];

/// What a request is to be like.
#[derive(Clone, Debug)]
pub(crate) struct Aim {
    /// The rule aimed at, counted through all hosts; otherwise everything is by chance.
    rule: Option<usize>,
    /// Which of a domain's hosts, which end of a prefix.
    variant: usize,
    /// Bit i: condition i is not met.
    miss: u8,
    authority: &'static str,
    path: &'static str,
    headers: Vec<(&'static str, &'static str)>,
    query: Option<&'static str>,
    method: Option<&'static str>,
    version: Version,
    grpc: bool,
    body: Option<&'static str>,
}

pub(super) fn aim(clusters: Flavour) -> impl Strategy<Value = Aim> {
    let grpc = if clusters == Flavour::Http2 { 0.12 } else { 0.0 };
    let what = (
        prop::option::weighted(0.85, 0..15_usize),
        0..60_usize,
        prop_oneof![3 => Just(0_u8), 1 => any::<u8>()],
        select(&AUTHORITIES[..]),
        select(&PATHS[..]),
    );
    let how = (
        vec((select(&HEADERS[..]), select(&VALUES[..])), 0..4),
        prop::option::weighted(0.25, select(&QUERIES[..])),
        prop::option::weighted(0.4, select(&["GET", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH"][..])),
        select(&[Version::HTTP_11, Version::HTTP_2][..]),
        prop::bool::weighted(grpc),
        prop::option::weighted(0.3, select(&["body", "{}"][..])),
    );
    (what, how).prop_map(|((rule, variant, miss, authority, path), (headers, query, method, version, grpc, body))| {
        Aim { rule, variant, miss, authority, path, headers, query, method, version, grpc, body }
    })
}

impl Aim {
    /// The request, at a configuration.
    pub(crate) fn at(&self, configuration: &Value) -> Ask {
        let mut ask =
            if self.grpc { Ask::grpc(self.authority, self.path) } else { Ask::get(self.authority, self.path) };
        if !self.grpc {
            ask.version = self.version;
            ask.method = self.method.and_then(|method| method.parse().ok()).unwrap_or(Method::GET);
        }
        for (name, value) in &self.headers {
            // Several values are one text in a gRPC call, by gRPC's own rule; Envoy makes no difference.
            if self.grpc && ask.headers.iter().any(|(there, _)| there == name) {
                continue;
            }
            // Of a header that is one by definition Envoy makes one line, others stay as many as they are.
            if *name == "user-agent" && ask.headers.iter().any(|(there, _)| there == name) {
                continue;
            }
            ask.headers.push(((*name).to_owned(), (*value).to_owned()));
        }
        self.direct(configuration, &mut ask);
        let mut query: Vec<String> = self.query.map(str::to_owned).into_iter().collect();
        if let Some((host, route)) = self.rule(configuration) {
            ask.authority = self.host(host);
            self.meet(&route["match"], &mut ask, &mut query);
        }
        if !query.is_empty() {
            ask.path = format!("{}?{}", ask.path, query.join("&"));
        }
        if let (Some(body), true) = (self.body, ask.method != Method::HEAD && ask.method != Method::GET) {
            ask.body = body.into();
        }
        ask
    }

    /// Headers by which requests choose clusters and hosts.
    fn direct(&self, configuration: &Value, ask: &mut Ask) {
        // Without it chance would decide.
        ask.headers.push(("x-split".to_owned(), (self.variant * 37).to_string()));
        let Some((host, route)) = self.rule(configuration) else { return };
        self.try_policies(host, &route["route"], ask);
        self.ask_for_faults(route, ask);
        if route["route"].get("cluster_header").is_some() && !self.variant.is_multiple_of(4) {
            let cluster = ["h1-a", "h2-a", "nowhere"][usize::from(self.grpc).max(self.variant % 3)];
            ask.headers.push(("x-cluster".to_owned(), cluster.to_owned()));
        }
        if route["route"]["host_rewrite_header"] == "x-host" && !self.variant.is_multiple_of(3) {
            ask.headers.push(("x-host".to_owned(), "from-header.example.com".to_owned()));
        }
    }

    /// What upstreams are to do with the tries, and what the request asks for itself.
    fn try_policies(&self, host: &Value, action: &Value, ask: &mut Ask) {
        if action.is_null() {
            return;
        }
        let mut say = |name: &str, value: &str| ask.headers.push((name.to_owned(), value.to_owned()));
        let retries = action.get("retry_policy").or_else(|| host.get("retry_policy")).is_some();
        if retries || self.variant.is_multiple_of(19) {
            let scripts = match self.grpc {
                true => ["g14,200", "g13,g14,200", "503,200", "g5,200", "g14"],
                false => ["503,200", "500,502,200", "409,200", "418,503,409,200", "503"],
            };
            say("x-answers", scripts[self.variant % 5]);
        }
        // What a gRPC client is told then is not what Envoy says: seldom.
        let in_short = self.variant == 17 || (!self.grpc && matches!(self.variant, 37 | 59));
        if in_short || self.variant.is_multiple_of(13) || self.variant.is_multiple_of(19) {
            // Envoy listens to callers of the same mesh only: by their address.
            say("x-forwarded-for", "10.0.0.1");
        }
        let retry = action.get("retry_policy").unwrap_or_else(|| &host["retry_policy"]);
        let limits = [
            &action["timeout"],
            &action["idle_timeout"],
            &action["max_stream_duration"]["max_stream_duration"],
            &retry["per_try_timeout"],
            &retry["per_try_idle_timeout"],
        ];
        let short = limits.iter().any(|limit| **limit == SHORT) && self.variant.is_multiple_of(3);
        match self.variant {
            _ if in_short => say("x-envoy-upstream-rq-timeout-ms", "450"),
            n if n.is_multiple_of(13) => say("x-envoy-upstream-rq-timeout-ms", "9000"),
            _ => {}
        }
        if in_short || (short && !self.grpc) {
            say("x-stall", "1");
        }
        if self.grpc && self.variant.is_multiple_of(7) {
            say("grpc-timeout", "19S");
        }
        if self.variant.is_multiple_of(19) {
            say("x-envoy-retry-on", ["5xx", "gateway-error", "retriable-4xx"][self.variant % 3]);
            say("x-envoy-max-retries", ["1", "2", "3"][self.variant / 3 % 3]);
        }
    }

    /// Where a request may say which fault it wants, most do; of a delay it may ask wherever it stands.
    fn ask_for_faults(&self, route: &Value, ask: &mut Ask) {
        let text = route.to_string();
        let mut say = |name: &str, value: &str| ask.headers.push((name.to_owned(), value.to_owned()));
        if text.contains("header_abort") {
            match self.variant % 5 {
                0 => {}
                1 => say("x-envoy-fault-abort-request", "none"),
                2 => say("x-envoy-fault-abort-grpc-request", "8"),
                _ => say("x-envoy-fault-abort-request", ["418", "503", "199"][self.variant % 3]),
            }
            if self.variant.is_multiple_of(4) {
                say("x-envoy-fault-abort-request-percentage", ["0", "100"][self.variant / 4 % 2]);
            }
        }
        if text.contains("header_delay") {
            say("x-envoy-fault-delay-request", ["10", "ten"][self.variant % 2]);
        }
    }

    fn rule<'a>(&self, configuration: &'a Value) -> Option<(&'a Value, &'a Value)> {
        let hosts = configuration["virtual_hosts"].as_array()?;
        let rules: Vec<_> = hosts
            .iter()
            .flat_map(|host| host["routes"].as_array().into_iter().flatten().map(move |route| (host, route)))
            .collect();
        rules.get(self.rule? % rules.len().max(1)).copied()
    }

    /// A host of one of the domains.
    fn host(&self, host: &Value) -> String {
        let domains = host["domains"].as_array().expect("domains");
        let domain = domains[self.variant % domains.len()].as_str().expect("a domain");
        match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
            (Some(""), _) => self.authority.to_owned(),
            (Some(suffix), _) => format!("{}{suffix}", ["x", "a", "x.y"][self.variant % 3]),
            (_, Some(prefix)) => format!("{prefix}{}", ["com", "org", "com:8080"][self.variant % 3]),
            _ if self.variant.is_multiple_of(5) => domain.to_ascii_uppercase(),
            _ => domain.to_owned(),
        }
    }

    fn meet(&self, matches: &Value, ask: &mut Ask, query: &mut Vec<String>) {
        let end = PATH_ENDS[self.variant % PATH_ENDS.len()];
        if let Some(path) = matches["path"].as_str() {
            ask.path = path.to_owned();
        } else if let Some(prefix) = matches["prefix"].as_str() {
            ask.path = format!("{prefix}{end}");
        } else if let Some(prefix) = matches["path_separated_prefix"].as_str() {
            ask.path = format!("{prefix}{end}");
        } else if let Some(template) = matches["path_match_policy"]["typed_config"]["path_template"].as_str() {
            ask.path = example(&TEMPLATES, template).to_owned();
        } else if let Some(regex) = matches["safe_regex"]["regex"].as_str() {
            ask.path = example(&PATH_REGEXES, regex).to_owned();
        }
        if !ask.path.starts_with('/') {
            ask.path.insert(0, '/');
        }
        if matches["case_sensitive"] == false && self.variant.is_multiple_of(2) {
            ask.path = ask.path.to_ascii_uppercase();
        }
        if self.variant.is_multiple_of(11) {
            ask.path.push_str(";v=1");
        }
        self.meet_cookies(matches, ask);
        let headers = matches["headers"].as_array().into_iter().flatten();
        for (i, header) in headers.enumerate() {
            let wanted = (self.miss >> (i % 4)) & 1 == 0;
            self.meet_header(header, wanted != (header["invert_match"] == true), ask);
        }
        for (i, parameter) in matches["query_parameters"].as_array().into_iter().flatten().enumerate() {
            let name = parameter["name"].as_str().expect("a name");
            if (self.miss >> (4 + i % 4)) & 1 == 0 {
                let value = parameter.get("string_match").map_or("any", |matcher| self.value(matcher));
                query.insert(0, format!("{name}={value}").replace([' ', ','], ""));
            } else if self.variant.is_multiple_of(2) {
                query.push(format!("{}=other", KEYS[self.variant % KEYS.len()]));
            }
        }
    }

    /// Cookies in one line or in two, with others beside them.
    fn meet_cookies(&self, matches: &Value, ask: &mut Ask) {
        let mut cookies = Vec::new();
        for (i, cookie) in matches["cookies"].as_array().into_iter().flatten().enumerate() {
            let name = cookie["name"].as_str().expect("a name");
            let wanted = (self.miss >> (i % 3)) & 1 == 0;
            match (wanted != (cookie["invert_match"] == true), self.variant % 3) {
                (true, _) => cookies.push(format!("{name}={}", self.value(&cookie["string_match"]))),
                (false, 0) => {}
                (false, _) => cookies.push(format!("{name}=other")),
            }
        }
        if cookies.is_empty() && self.variant.is_multiple_of(7) {
            cookies.push(format!("{}={}", COOKIES[self.variant % 3], VALUES[self.variant % VALUES.len()]));
        }
        if cookies.is_empty() {
            return;
        }
        match self.variant % 4 {
            0 => cookies.push("user=again".to_owned()),
            1 => cookies.insert(0, "other=1".to_owned()),
            _ => {}
        }
        ask.headers.push(("cookie".to_owned(), cookies.join("; ")));
    }

    /// A value that meets a `StringMatcher`.
    fn value<'a>(&self, matcher: &'a Value) -> &'a str {
        for kind in ["exact", "prefix", "suffix", "contains"] {
            if let Some(value) = matcher[kind].as_str() {
                return value;
            }
        }
        matcher["safe_regex"]["regex"].as_str().map_or("", |regex| example(&VALUE_REGEXES, regex))
    }

    fn meet_header(&self, header: &Value, wanted: bool, ask: &mut Ask) {
        let name = header["name"].as_str().expect("a name");
        let old = ["exact_match", "prefix_match", "suffix_match", "contains_match"];
        let value = if let Some(matcher) = header.get("string_match") {
            self.value(matcher).to_owned()
        } else if let Some(value) = old.iter().find_map(|kind| header[*kind].as_str()) {
            value.to_owned()
        } else if let Some(regex) = header["safe_regex_match"]["regex"].as_str() {
            example(&VALUE_REGEXES, regex).to_owned()
        } else if let Some(range) = header.get("range_match") {
            let (start, end) = (range["start"].as_i64().unwrap_or(0), range["end"].as_i64().unwrap_or(0));
            [start, end.saturating_sub(1), end][self.variant % 3].to_string()
        } else {
            "there".to_owned()
        };
        let absent = header["present_match"] == false;
        match name {
            ":method" if wanted && !self.grpc => ask.method = value.parse().unwrap_or(Method::GET),
            ":authority" if wanted => ask.authority = format!("a{value}x").replace("aa.", "a.").replace("comx", "com"),
            name if name.starts_with(':') || name == "content-type" => {}
            _ => {
                if wanted || self.variant.is_multiple_of(3) || name == "user-agent" || self.grpc {
                    ask.headers.retain(|(key, _)| key != name);
                }
                match (wanted != absent, self.variant % 3) {
                    (true, _) => ask.headers.push((name.to_owned(), value)),
                    // Not met by another value, or by none.
                    (false, 0) => {}
                    (false, _) => ask.headers.push((name.to_owned(), VALUES[self.variant % VALUES.len()].to_owned())),
                }
            }
        }
    }
}

fn example(of: &[(&'static str, &'static str)], regex: &str) -> &'static str {
    of.iter().find(|(known, _)| *known == regex).map_or("/", |(_, example)| example)
}
