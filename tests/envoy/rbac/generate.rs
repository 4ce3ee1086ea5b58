//! Rules and the requests that try them, made by chance out of few words, so that they often meet.
//!
//! Ports are written relative to the server's own, which differs between the two sides: 1 is the port itself.

use http::Method;
use serde_json::{Value, json};

use crate::knock::{Knock, SERVER_NAMES, Who};

const A: &str = "spiffe://cluster.local/ns/default/sa/a";
const B: &str = "spiffe://cluster.local/ns/shop/sa/b";

/// Who asks.
pub(super) const WHO: &[Who] = &[
    Who { from: 1, tls: None, http2: false },
    Who { from: 2, tls: None, http2: true },
    Who { from: 1, tls: Some((A, SERVER_NAMES[0])), http2: false },
    Who { from: 2, tls: Some((B, SERVER_NAMES[1])), http2: true },
];

/// What tokens say; the last is of nobody known, and such a request is refused before rules are asked.
pub(super) const CLAIMS: [&str; 4] = [
    r#"{"iss":"issuer","sub":"ann","aud":["shop","api"],"n":3,"admin":true,"groups":["dev","ops"],"deep":{"er":"x"}}"#,
    r#"{"iss":"issuer","sub":"bob","aud":"shop","n":1.5,"admin":false,"none":null,"scope":"read write"}"#,
    r#"{"iss":"issuer","sub":"","groups":[],"deep":{"er":{"est":1}}}"#,
    r#"{"iss":"stranger","sub":"ann"}"#,
];

const PATHS: [&str; 14] = [
    "/", "/a", "/a/b", "/a/b/c", "/A/B", "/b", "/a%2Fb", "/a//b", "/a/../b", "/a/./b", "/b?x=/a", "/a?", "/a;p=1",
    "/a/b%20c",
];
const PATH_WORDS: [&str; 9] = ["/a", "/a/b", "/b", "/", "b", "/A/B", "/a%2Fb", "/a/b%20c", "a"];
// None is empty: neither side takes one.
const REGEXES: [&str; 7] = ["/a.*", ".*b", "v[0-9]+", ".+", "(v1|5)?", "(?i)V1", "[^/]*a"];
const TEMPLATES: [&str; 5] = ["/a/*", "/a/**", "/{x}/b", "/**", "/*"];
const HEADERS: [&str; 12] =
    ["x-a", "x-b", "X-A", "x-multi", "x-n", "x-missing", ":method", ":path", ":authority", "host", "x-raw", ":scheme"];
const VALUES: [&str; 12] = ["v1", "v2", "V1", "", "1", "5", "GET", "POST", "shop.example", "/a", "v", "http"];
const RANGES: [&str; 9] = [
    "127.0.0.1/32",
    "127.0.0.0/8",
    "127.0.0.2/32",
    "10.0.0.0/8",
    "192.0.2.0/24",
    "0.0.0.0/0",
    "::/0",
    "127.0.0.3/31",
    "10.1.2.3/32",
];
const PEERS: [&str; 8] =
    [A, B, "spiffe://cluster.local/", "sa/a", "ns/shop", "spiffe://CLUSTER.local/ns/default/sa/a", "server.test", "x"];

/// Chance that is the same for the same seed, on every machine. Source: SplitMix64.
#[derive(Debug)]
pub(super) struct Dice(u64);

impl Dice {
    pub(super) fn new(parts: [u64; 3]) -> Self {
        let mut dice = Self(0);
        for part in parts {
            dice.0 ^= part;
            dice.next();
        }
        dice
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Less than `n`.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }

    fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.below(list.len())]
    }

    fn some<T>(&mut self, most: usize, mut make: impl FnMut(&mut Self) -> T) -> Vec<T> {
        (0..=self.below(most)).map(|_| make(self)).collect()
    }
}

/// The filter's configuration, without its type.
pub(super) fn rules(dice: &mut Dice) -> Value {
    let mut out = json!({});
    if dice.percent(97) {
        out["rules"] = set(dice);
    }
    if dice.percent(20) {
        out["shadow_rules"] = set(dice);
        out["shadow_rules_stat_prefix"] = json!("tried_");
    }
    out
}

fn set(dice: &mut Dice) -> Value {
    let action = *dice.of(&["ALLOW", "ALLOW", "ALLOW", "DENY", "DENY", "DENY", "LOG"]);
    let count = if dice.percent(3) { 0 } else { 1 + dice.below(3) };
    let policies: serde_json::Map<String, Value> = (0..count)
        .map(|i| {
            let permissions = dice.some(2, |dice| condition(dice, 3, true));
            let principals = dice.some(2, |dice| condition(dice, 3, false));
            (format!("p{i}"), json!({"permissions": permissions, "principals": principals}))
        })
        .collect();
    json!({"action": action, "policies": policies})
}

/// A permission or a principal.
fn condition(dice: &mut Dice, depth: usize, permission: bool) -> Value {
    let (list, all, one, not) = if permission {
        ("rules", "and_rules", "or_rules", "not_rule")
    } else {
        ("ids", "and_ids", "or_ids", "not_id")
    };
    if depth > 0 && dice.percent(35) {
        return match dice.below(3) {
            0 => json!({(all): {(list): dice.some(2, |dice| condition(dice, depth - 1, permission))}}),
            1 => json!({(one): {(list): dice.some(2, |dice| condition(dice, depth - 1, permission))}}),
            _ => json!({(not): condition(dice, depth - 1, permission)}),
        };
    }
    let shared = |dice: &mut Dice| match dice.below(5) {
        0 => json!({"any": true}),
        1 | 2 => json!({"header": header(dice)}),
        3 => json!({"url_path": {"path": text(dice, &PATH_WORDS)}}),
        _ => match dice.percent(25) {
            true => json!({"sourced_metadata": {"metadata_matcher": metadata(dice)}}),
            false => json!({"metadata": metadata(dice)}),
        },
    };
    match (dice.below(10), permission) {
        (0..5, _) => shared(dice),
        (5, true) => json!({"destination_ip": range(dice)}),
        (6, true) => json!({"destination_port": dice.below(3)}),
        (7, true) => {
            let start = dice.below(3);
            json!({"destination_port_range": {"start": start, "end": start + 1 + dice.below(2)}})
        }
        (8, true) => {
            json!({"requested_server_name": text(dice, &["server.test", "other.test", "", ".test", "server"])})
        }
        (_, true) => {
            let kind = "type.googleapis.com/envoy.extensions.path.match.uri_template.v3.UriTemplateMatchConfig";
            let name = "envoy.path.match.uri_template.uri_template_matcher";
            let config = json!({"@type": kind, "path_template": dice.of(&TEMPLATES)});
            json!({"uri_template": {"name": name, "typed_config": config}})
        }
        (5, false) => json!({"direct_remote_ip": range(dice)}),
        (6, false) => json!({"remote_ip": range(dice)}),
        (7, false) => json!({"source_ip": range(dice)}),
        (8, false) if dice.percent(30) => json!({"authenticated": {}}),
        _ => json!({"authenticated": {"principal_name": text(dice, &PEERS)}}),
    }
}

fn text(dice: &mut Dice, words: &[&str]) -> Value {
    let kind = *dice.of(&["exact", "exact", "prefix", "suffix", "contains", "safe_regex"]);
    if kind == "safe_regex" {
        return json!({"safe_regex": {"regex": dice.of(&REGEXES[..4])}});
    }
    let mut word = *dice.of(words);
    if word.is_empty() && kind != "exact" {
        word = "a";
    }
    let mut text = json!({(kind): word});
    if dice.percent(20) {
        text["ignore_case"] = json!(true);
    }
    text
}

fn header(dice: &mut Dice) -> Value {
    let name = *dice.of(&HEADERS);
    let mut out = json!({"name": name});
    match dice.below(10) {
        0..4 => out["string_match"] = text(dice, &VALUES),
        4 => out["exact_match"] = json!(*dice.of(&["v1", "1", "GET", "/a"])),
        5 => out["prefix_match"] = json!(*dice.of(&["v", "/a", "G"])),
        6 => out["suffix_match"] = json!(*dice.of(&["1", "b", "T"])),
        7 => out["range_match"] = json!({"start": 1, "end": *dice.of(&[2, 5, 6])}),
        8 => out["present_match"] = json!(dice.percent(60)),
        _ => out["safe_regex_match"] = json!({"regex": dice.of(&REGEXES)}),
    }
    if dice.percent(20) {
        out["invert_match"] = json!(true);
    }
    if dice.percent(12) {
        out["treat_missing_header_as_empty"] = json!(true);
    }
    out
}

fn range(dice: &mut Dice) -> Value {
    let (address, length) = dice.of(&RANGES).split_once('/').unwrap();
    match dice.percent(5) {
        true => json!({"address_prefix": address}),
        false => json!({"address_prefix": address, "prefix_len": length.parse::<u32>().unwrap()}),
    }
}

fn metadata(dice: &mut Dice) -> Value {
    let filter = if dice.percent(90) { "envoy.filters.http.jwt_authn" } else { "envoy.filters.http.other" };
    let paths = [
        &["payload", "sub"][..],
        &["payload", "aud"],
        &["payload", "groups"],
        &["payload", "n"],
        &["payload", "admin"],
        &["payload", "none"],
        &["payload", "deep", "er"],
        &["payload", "missing"],
        &["payload", "scope"],
        &["payload"],
        &["other"],
    ];
    let path: Vec<Value> = dice.of(&paths).iter().map(|key| json!({"key": key})).collect();
    let mut out = json!({"filter": filter, "path": path, "value": value(dice, 2)});
    if dice.percent(15) {
        out["invert"] = json!(true);
    }
    out
}

fn value(dice: &mut Dice, depth: usize) -> Value {
    match dice.below(if depth > 0 { 9 } else { 7 }) {
        0 | 1 => json!({"string_match": text(dice, &["ann", "bob", "shop", "dev", "read write", "x", ""])}),
        2 => json!({"double_match": {"exact": *dice.of(&[3.0, 1.5])}}),
        3 => json!({"double_match": {"range": {"start": 1.0, "end": *dice.of(&[1.5, 3.0, 4.0])}}}),
        4 => json!({"bool_match": dice.percent(50)}),
        5 => json!({"present_match": dice.percent(70)}),
        6 => json!({"null_match": {}}),
        7 => json!({"list_match": {"one_of": value(dice, depth - 1)}}),
        _ => json!({"or_match": {"value_matchers": [value(dice, depth - 1), value(dice, depth - 1)]}}),
    }
}

/// A request; its token, if it has one, is named by its place in [`CLAIMS`].
pub(super) fn knock(dice: &mut Dice) -> (Knock, Option<usize>) {
    let mut headers: Vec<(String, Vec<u8>)> = Vec::new();
    let mut add = |name: &str, value: &[u8]| headers.push((name.to_owned(), value.to_vec()));
    for name in ["x-a", "x-b", "x-n"] {
        if dice.percent(50) {
            add(name, dice.of(&["v1", "v2", "V1", "", "1", "5", "x v1"]).as_bytes());
        }
    }
    if dice.percent(25) {
        add("x-multi", b"v1");
        add("x-multi", dice.of(&["v2", "v1", "5"]).as_bytes());
    }
    if dice.percent(6) {
        add("x-raw", dice.of::<&[u8]>(&[b"v1\xff", b"\xc3\xa9", b"v1"]));
    }
    if dice.percent(35) {
        add(
            "x-forwarded-for",
            dice.of(&["10.1.2.3", "192.0.2.1, 10.1.2.3", "10.9.9.9,192.0.2.7,127.0.0.2"]).as_bytes(),
        );
    }
    if dice.percent(15) {
        add("content-type", b"application/grpc");
    }
    let token = dice.percent(45).then(|| if dice.percent(5) { 3 } else { dice.below(3) });
    let method = dice.of(&[Method::GET, Method::GET, Method::POST, Method::PUT, Method::DELETE]).clone();
    let authority = (*dice.of(&["shop.example", "shop.example:80", "SHOP.example", "other"])).to_owned();
    let path = (*dice.of(&PATHS)).to_owned();
    (Knock { who: dice.below(WHO.len()), method, authority, path, headers }, token)
}
