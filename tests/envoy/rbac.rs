//! Generated rules, and generated requests to servers that have them, an Envoy's and ours: both let the same requests pass,
//! and refuse the others with the same words.
//!
//! The same bytes are Envoy's `RBACPerRoute` and the filter of a port of ours, but for the numbers of ports, which are relative
//! to each server's own. Callers come in plaintext and with certificates, from two addresses, over HTTP/1.1 and HTTP/2, some
//! with tokens. The same seed gives the same rules and requests (`MESH_SEED`, `MESH_PAIRS` as for routes); what differs is
//! shown as small as it can be made.
//!
//! Certificates of callers have a SPIFFE id and no other name, as all have in the mesh: here the id alone is who somebody is, while
//! Envoy goes on to DNS names and to the subject.

use std::{
    collections::BTreeMap,
    fmt::Write,
    net::SocketAddr,
    sync::{Arc, LazyLock},
    time::Instant,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use jsonwebtoken::{Algorithm, EncodingKey, crypto, jwk::Jwk};
use mesh_core::config::{Config, Inbound, MtlsMode};
use mesh_tower::Mesh;
use mesh_xds::{
    proto::{Any, DESCRIPTORS, envoy::config::route::v3::RouteConfiguration},
    translate,
};
use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage};
use rcgen::KeyPair;
use serde_json::{Value, json};
use tokio::{net::TcpListener, task::JoinHandle};

#[path = "rbac/generate.rs"]
mod generate;

use crate::{
    both::{at_will, cluster, seed},
    knock::{Callers, Heard, Knock, Pki},
    process::{Envoy, Options, slot_name},
    routes::without_one,
    upstream::Upstream,
};
use generate::{CLAIMS, Dice, WHO, knock, rules};

/// Listeners of Envoy, each with as many rules as this.
const SLOTS: usize = 12;
const EACH: usize = 12;
/// Requests for each.
const REQUESTS: usize = 16;
/// Pairs of a run, unless `MESH_PAIRS` says otherwise.
const PAIRS: usize = 11_000;
const SEED: u64 = 43;
/// Steps in making a failure smaller, and failures after which a run ends.
const SHRINKING: usize = 40;
const ENOUGH: usize = 40;

/// Every kind of condition; each occurs in the rules of at least one of a hundred pairs.
const KINDS: &[&str] = &[
    "ALLOW",
    "DENY",
    "LOG",
    "shadow_rules",
    "and_rules",
    "or_rules",
    "not_rule",
    "and_ids",
    "or_ids",
    "not_id",
    "any",
    "header",
    "url_path",
    "destination_ip",
    "destination_port",
    "destination_port_range",
    "requested_server_name",
    "uri_template",
    "metadata",
    "sourced_metadata",
    "direct_remote_ip",
    "remote_ip",
    "source_ip",
    "authenticated",
    "principal_name",
    "string_match",
    "exact_match",
    "prefix_match",
    "suffix_match",
    "range_match",
    "present_match",
    "safe_regex_match",
    "safe_regex",
    "ignore_case",
    "invert_match",
    "treat_missing_header_as_empty",
    "list_match",
    "or_match",
    "double_match",
    "bool_match",
    "null_match",
    "invert",
];

/// Rules and requests that try them.
#[derive(Clone, Debug)]
struct Trial {
    rules: Value,
    knocks: Vec<Knock>,
}

/// A request of which the two say different things.
#[derive(Clone, Debug)]
struct Failure {
    rules: Value,
    knock: Knock,
    envoy: Said,
    ours: Said,
}

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Said {
    status: u16,
    grpc: Option<String>,
    /// Of refusals: the words.
    body: String,
}

impl Said {
    fn of(heard: Heard) -> Self {
        let grpc = heard.headers.get("grpc-status").map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
        let passed = heard.status == 200 && grpc.as_deref().is_none_or(|status| status == "0");
        let body = if passed { String::new() } else { String::from_utf8_lossy(&heard.body).into_owned() };
        let grpc = grpc.filter(|status| status != "0");
        Self { status: heard.status.as_u16(), grpc, body }
    }

    fn is_refusal(&self) -> bool {
        self.status == 403 || self.grpc.as_deref() == Some("7")
    }
}

fn mentions(value: &Value, wanted: &str) -> bool {
    match value {
        Value::Object(fields) => fields.iter().any(|(name, inner)| name == wanted || mentions(inner, wanted)),
        Value::Array(items) => items.iter().any(|inner| mentions(inner, wanted)),
        Value::String(text) => text == wanted,
        _ => false,
    }
}

/// Both servers, and who calls them.
struct Bench {
    envoy: Envoy,
    mesh: Mesh,
    ours: Vec<SocketAddr>,
    callers: Callers,
    filter: Value,
    tasks: Vec<JoinHandle<()>>,
    _upstream: Upstream,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// AZ1, AZ2, AZ3, AZ4: rules say the same here as in Envoy, by experiment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generated_rules_let_the_same_requests_pass() {
    let Some((bench, tokens)) = Bench::start().await else { return };
    let seed = seed(SEED);
    let pairs = std::env::var("MESH_PAIRS").map_or(PAIRS, |pairs| pairs.parse().expect("a number"));
    println!("MESH_SEED={seed}");
    let begin = Instant::now();
    let (mut done, mut refused) = (0, 0);
    let mut kinds = BTreeMap::new();
    let mut failures = Vec::new();
    let mut batch = 0;
    while done < pairs && failures.len() < ENOUGH {
        let trials: Vec<Trial> = (0..SLOTS * EACH).map(|n| trial(seed, batch, n, &tokens)).collect();
        for trial in &trials {
            for kind in KINDS.iter().filter(|kind| mentions(&trial.rules, kind)) {
                *kinds.entry(*kind).or_insert(0) += trial.knocks.len();
            }
        }
        for (at, knock, envoy, ours) in bench.run(&trials, EACH).await.expect("both take the rules") {
            done += 1;
            refused += usize::from(envoy.is_refusal());
            if envoy != ours {
                failures.push(Failure { rules: trials[at].rules.clone(), knock, envoy, ours });
            }
        }
        batch += 1;
    }
    println!("{done} pairs in {:?}, {refused} refused by Envoy", begin.elapsed());
    if !failures.is_empty() {
        panic!("MESH_SEED={seed}, {batch} batches: {}", bench.tell(failures).await);
    }
    let rare: Vec<_> = KINDS.iter().filter(|kind| kinds.get(*kind).copied().unwrap_or(0) * 100 < done).collect();
    assert!(rare.is_empty(), "{rare:?} are in the rules of too few pairs");
    assert!(refused * 5 > done && refused * 5 < done * 4, "{refused} of {done} are refused, which shows little");
}

/// The trial that a seed, a batch and a place mean.
fn trial(seed: u64, batch: u64, place: usize, tokens: &[String]) -> Trial {
    let mut dice = Dice::new([seed, batch, place as u64]);
    let rules = rules(&mut dice);
    let knocks = (0..REQUESTS).map(|_| {
        let (mut knock, token) = knock(&mut dice);
        if let Some(token) = token {
            knock.headers.push(("authorization".to_owned(), format!("Bearer {}", tokens[token]).into_bytes()));
        }
        knock
    });
    Trial { knocks: knocks.collect(), rules }
}

/// Tokens of what is claimed, and the keys they are known by.
fn tokens() -> (Vec<String>, String) {
    let key = EncodingKey::from_ec_der(KeyPair::generate().unwrap().serialized_der());
    let mut jwk = serde_json::to_value(Jwk::from_encoding_key(&key, Algorithm::ES256).unwrap()).unwrap();
    jwk["kid"] = json!("k");
    let b64 = |text: &str| {
        use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
        URL_SAFE_NO_PAD.encode(text)
    };
    let token = |claims: &&str| {
        let text = format!("{}.{}", b64(r#"{"alg":"ES256","kid":"k"}"#), b64(claims));
        let signature = crypto::sign(text.as_bytes(), &key, Algorithm::ES256).unwrap();
        format!("{text}.{signature}")
    };
    (CLAIMS.iter().map(token).collect(), json!({"keys": [jwk]}).to_string())
}

/// A message as the JSON of an `Any`.
pub(crate) fn any(kind: &str, mut fields: Value) -> Value {
    fields["@type"] = json!(format!("type.googleapis.com/{kind}"));
    fields
}

/// Everything the `HttpConnectionManager`s of both have in common.
fn manager() -> Value {
    json!({"normalize_path": true, "xff_num_trusted_hops": 1})
}

impl Bench {
    async fn start() -> Option<(Self, Vec<String>)> {
        let pki = Pki::new();
        let (tokens, keys) = tokens();
        let optional = json!({"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}});
        let provider = json!({"issuer": "issuer", "local_jwks": {"inline_string": keys},
            "payload_in_metadata": "payload", "forward": true});
        let jwt = any(
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            json!({"providers": {"p": provider}, "rules": [{"match": {"prefix": "/"}, "requires": optional}]}),
        );
        let filter = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": jwt});
        let rbac = any("envoy.extensions.filters.http.rbac.v3.RBAC", json!({}));
        let [chain, key, root] = pki.pem("spiffe://cluster.local/ns/default/sa/envoy");
        let options = Options {
            slots: SLOTS,
            filters: vec![filter.clone(), json!({"name": "envoy.filters.http.rbac", "typed_config": rbac})],
            manager: manager(),
            tls: Some(json!({
                "require_client_certificate": true,
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [
                        {"certificate_chain": {"inline_string": chain}, "private_key": {"inline_string": key}}],
                    "validation_context": {"trusted_ca": {"inline_string": root}},
                },
            })),
            ..Options::default()
        };
        let envoy = Envoy::start(&options).await?;
        let upstream = Upstream::echo("up").await;
        envoy.clusters([at_will(cluster("up", [upstream.address()])).encode_to_vec()]).await;
        let id = "spiffe://cluster.local/ns/default/sa/ours";
        let mesh = Mesh::builder().config(Config::default()).identity(pki.identity(id)).build().await.unwrap();
        let (mut ours, mut tasks) = (Vec::new(), Vec::new());
        for _ in 0..SLOTS * EACH {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            ours.push(listener.local_addr().unwrap());
            let serving = mesh.clone();
            let handler = axum::Router::new().fallback(|| async { [("grpc-status", "0")] });
            tasks.push(tokio::spawn(async move { drop(serving.serve_listener(listener, handler).await) }));
        }
        let callers = Callers::new(&pki, WHO);
        Some((Self { envoy, mesh, ours, callers, filter, tasks, _upstream: upstream }, tokens))
    }

    /// Runs trials, so many in each of Envoy's listeners: the place of the trial, what was asked, and what both said. An error
    /// says who refuses which rules.
    async fn run(&self, trials: &[Trial], each: usize) -> Result<Vec<(usize, Knock, Said, Said)>, String> {
        let tables = trials.chunks(each).enumerate().map(|(slot, trials)| {
            let port = self.envoy.address(slot).port();
            (slot, table(slot, trials, port).encode_to_vec())
        });
        let verdicts = self.envoy.routes(&tables.collect::<Vec<_>>()).await;
        let mut config = Config::default();
        for (at, trial) in trials.iter().enumerate() {
            let inbound = self.inbound(at, &trial.rules)?;
            config.inbound.insert(self.ours[at].port(), Arc::new(inbound));
        }
        self.mesh.live().update(&config).map_err(|error| format!("ours: {error}"))?;
        let taken = |slot: usize| verdicts.get(slot).is_some_and(Result::is_ok);
        if each > 1
            && let Some(Err(error)) = verdicts.iter().find(|verdict| verdict.is_err())
        {
            return Err(format!("Envoy: {error}"));
        }
        let (envoy, ours, callers) = (&self.envoy, &self.ours, &self.callers);
        let asked = trials.iter().enumerate().filter(|(at, _)| taken(at / each)).map(|(at, trial)| async move {
            let mut said = Vec::new();
            for knock in &trial.knocks {
                let mut of_case = knock.clone();
                of_case.headers.push(("x-case".to_owned(), format!("{}", at % each).into_bytes()));
                let slot = envoy.address(at / each);
                let (envoy, ours) = tokio::join!(callers.ask(slot, &of_case), callers.ask(ours[at], &of_case));
                let said_of = |heard: Result<Heard, String>| {
                    heard.map(Said::of).unwrap_or_else(|error| Said { status: 0, grpc: None, body: error })
                };
                said.push((at, knock.clone(), said_of(envoy), said_of(ours)));
            }
            said
        });
        Ok(stream::iter(asked).buffer_unordered(16).collect::<Vec<_>>().await.into_iter().flatten().collect())
    }

    /// A port of ours with such rules.
    fn inbound(&self, at: usize, rules: &Value) -> Result<Inbound, String> {
        let port = self.ours[at].port();
        let rbac = any("envoy.extensions.filters.http.rbac.v3.RBAC", at_port(rules, port));
        let router = any("envoy.extensions.filters.http.router.v3.Router", json!({}));
        let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
        let mut manager = any(kind, manager());
        manager["stat_prefix"] = json!("x");
        manager["http_filters"] = json!([self.filter,
            {"name": "envoy.filters.http.rbac", "typed_config": rbac},
            {"name": "envoy.filters.http.router", "typed_config": router}]);
        manager["route_config"] = json!({"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}]}]});
        let listener = json!({
            "name": "virtualInbound",
            "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
            "filter_chains": [{
                "filter_chain_match": {"destination_port": port, "transport_protocol": "raw_buffer"},
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
            }],
        });
        let bytes = encode("envoy.config.listener.v3.Listener", &listener)?;
        let decoded = translate::listener(&Bytes::from(bytes)).map_err(|error| format!("ours: {error}"))?;
        let translate::Listener::Inbound(ports) = decoded.value else { return Err("not inbound".to_owned()) };
        let (_, inbound) = ports.into_iter().next().ok_or("no port")?;
        if let Some(why) = &inbound.refused {
            return Err(format!("ours: {why}"));
        }
        Ok(Inbound { mtls: MtlsMode::Permissive, ..Arc::unwrap_or_clone(inbound) })
    }

    /// Failures by kind, with one of each as small as could be found.
    async fn tell(&self, failures: Vec<Failure>) -> String {
        let mut kinds: BTreeMap<String, Vec<Failure>> = BTreeMap::new();
        let mut text = format!("{} pairs differ", failures.len());
        for failure in failures {
            let kind = format!("Envoy {:?}, ours {:?}", failure.envoy, failure.ours);
            kinds.entry(kind).or_default().push(failure);
        }
        for (kind, failures) in kinds {
            let _ = writeln!(text, "\n== {kind}, {} times", failures.len());
            for failure in failures.into_iter().step_by(6).take(4) {
                let small = self.shrink(failure).await;
                let _ = writeln!(text, "{:#}\n{:?}", small.rules, Small(&small.knock));
            }
        }
        text
    }

    async fn shrink(&self, mut best: Failure) -> Failure {
        for _ in 0..SHRINKING {
            let mut smaller: Vec<Trial> = without_one(&best.rules)
                .into_iter()
                .map(|rules| Trial { rules, knocks: vec![best.knock.clone()] })
                .collect();
            smaller.sort_by_key(|trial| trial.rules.to_string().len());
            for i in 0..best.knock.headers.len() {
                let mut knock = best.knock.clone();
                knock.headers.remove(i);
                smaller.push(Trial { rules: best.rules.clone(), knocks: vec![knock] });
            }
            // What ours does not read is no rule.
            smaller.retain(|trial| self.inbound(0, &trial.rules).is_ok());
            let mut found = None;
            for trials in smaller.chunks(SLOTS) {
                let said = self.run(trials, 1).await.unwrap_or_default();
                let same = |said: &&(usize, Knock, Said, Said)| said.2 == best.envoy && said.3 == best.ours;
                found = said.iter().find(same).map(|(at, knock, ..)| (trials[*at].rules.clone(), knock.clone()));
                if found.is_some() {
                    break;
                }
            }
            match found {
                Some((rules, knock)) => best = Failure { rules, knock, ..best },
                None => break,
            }
        }
        best
    }
}

/// A request, shown with values that can be read.
struct Small<'a>(&'a Knock);

impl std::fmt::Debug for Small<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Knock { who, method, authority, path, headers } = self.0;
        write!(f, "{method} {authority}{path} of {:?}", WHO[*who])?;
        for (name, value) in headers {
            write!(f, "\n    {name}: {}", value.escape_ascii())?;
        }
        Ok(())
    }
}

/// The routes of one of Envoy's listeners: one for each trial, chosen by the header `x-case`.
fn table(slot: usize, trials: &[Trial], port: u16) -> RouteConfiguration {
    let route = |n: usize| {
        json!({"name": format!("{n}"), "route": {"cluster": "up"},
            "match": {"prefix": "/", "headers": [{"name": "x-case", "string_match": {"exact": format!("{n}")}}]}})
    };
    let routes: Vec<Value> = (0..trials.len()).map(route).collect();
    let table =
        json!({"name": slot_name(slot), "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": routes}]});
    let bytes = encode("envoy.config.route.v3.RouteConfiguration", &table).expect("routes");
    let mut table = RouteConfiguration::decode(&*bytes).expect("routes");
    for (route, trial) in table.virtual_hosts.iter_mut().flat_map(|host| &mut host.routes).zip(trials) {
        let rules = at_port(&trial.rules, port);
        let rules = encode("envoy.extensions.filters.http.rbac.v3.RBAC", &rules).unwrap_or_default();
        // `RBACPerRoute`, whose only field is `rbac`, number 2.
        let mut per_route = vec![0x12];
        prost::encoding::encode_varint(rules.len() as u64, &mut per_route);
        per_route.extend(rules);
        let type_url = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBACPerRoute".to_owned();
        let any = Any { type_url, value: per_route.into() };
        route.typed_per_filter_config.insert("envoy.filters.http.rbac".to_owned(), any);
    }
    table
}

/// The same rules with ports that are relative made those of a server.
fn at_port(rules: &Value, own: u16) -> Value {
    let real = |value: &Value| json!(u64::from(own) - 1 + value.as_u64().unwrap_or(0));
    match rules {
        Value::Object(fields) => fields
            .iter()
            .map(|(name, inner)| match name.as_str() {
                "destination_port" => (name.clone(), real(inner)),
                "destination_port_range" => {
                    (name.clone(), json!({"start": real(&inner["start"]), "end": real(&inner["end"])}))
                }
                _ => (name.clone(), at_port(inner, own)),
            })
            .collect(),
        Value::Array(items) => items.iter().map(|inner| at_port(inner, own)).collect(),
        other => other.clone(),
    }
}

/// The bytes of a message in JSON.
pub(crate) fn encode(kind: &str, message: &Value) -> Result<Vec<u8>, String> {
    static POOL: LazyLock<DescriptorPool> =
        LazyLock::new(|| DescriptorPool::decode(DESCRIPTORS).expect("the descriptors"));
    let kind = POOL.get_message_by_name(kind).expect("known");
    let message = DynamicMessage::deserialize(kind, message).map_err(|error| error.to_string())?;
    Ok(message.encode_to_vec())
}
