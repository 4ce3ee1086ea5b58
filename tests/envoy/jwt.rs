//! Tokens of every kind at two servers that demand them, an Envoy's and ours: the same pass, the same are refused with the same
//! words, and what arrives behind both is the same.
//!
//! Both have the same `JwtAuthentication`, byte for byte. Every rule is asked with every request, over HTTP/1.1 and HTTP/2; a
//! difference that is meant has a name and a reason in [`EXPLAINED`].

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Instant};

use bytes::Bytes;
use http::header;
use mesh_core::config::{Config, Inbound, MtlsMode};
use mesh_tower::Mesh;
use mesh_xds::translate;
use prost::Message;
use serde_json::{Value, json};
use tokio::net::TcpListener;

#[path = "jwt/cases.rs"]
mod cases;

use crate::{
    both::{at_will, cluster},
    knock::{Callers, Heard, Knock, Pki, Who},
    process::{Envoy, Options},
    rbac::{any, encode},
    upstream::{Arrived, Upstream, echo},
};
use cases::{Keys, cases};

const WHO: &[Who] = &[Who { from: 1, tls: None, http2: false }, Who { from: 1, tls: None, http2: true }];

/// Headers of requests that are compared as they arrive; the rest is how proxies speak.
const COMPARED: [&str; 14] = [
    "authorization",
    "cookie",
    "x-user",
    "x-n",
    "x-deep",
    "x-list",
    "x-flag",
    "x-payload",
    "x-user-b",
    "x-payload-e",
    "x-b",
    "x-any",
    "x-d",
    "x-e",
];

/// What became of one.
#[derive(Clone, Debug, PartialEq)]
struct Said {
    status: u16,
    /// Of refusals: the words, and the challenge.
    refusal: Option<(String, Option<String>)>,
    /// What arrived: path and headers.
    arrived: Option<(String, Vec<(String, String)>)>,
}

/// A difference that is meant, and of whom.
struct Explained {
    name: &'static str,
    is: fn(rule: &str, case: &str, envoy: &Said, ours: &Said) -> bool,
}

const EXPLAINED: &[Explained] = &[
    Explained {
        // Where a token need not be there, those that are there must be good: the application might believe another one.
        name: "a bad token beside a good one",
        is: |rule, case, envoy, ours| {
            let both = matches!(case, "A good, B bad" | "A's parameter bad, header good");
            both && rule == "missing" && envoy.status == 200 && ours.status == 401
        },
    },
    Explained {
        // Where bad ones are passed over, those that are good count.
        name: "a good token beside one that is passed over",
        is: |rule, case, envoy, ours| {
            case == "A's parameter bad, header good" && rule == "anyfailed" && (envoy.status, ours.status) == (200, 200)
        },
    },
    Explained {
        // What it decoded Envoy writes back, and a blank in a path is none.
        name: "a query is written anew",
        is: |_, case, envoy, ours| case == "A's parameter" && (envoy.status, ours.status) == (400, 200),
    },
    Explained {
        // Of the same token at several places Envoy tells the claims as often.
        name: "a claim told several times",
        is: |_, case, envoy, ours| case == "B three times" && envoy.once() == ours.once(),
    },
    Explained {
        name: "how a token without a signature is called",
        is: |_, case, envoy, ours| {
            matches!(case, "alg none" | "alg None" | "no signature")
                && envoy.status == 401
                && matches!(ours.status, 401 | 403)
        },
    },
    Explained {
        // Envoy takes 0 for no end at all; RFC 7519 4.1.4 knows no such exception.
        name: "an end in 1970",
        is: |_, case, envoy, ours| {
            case == "exp 0" && (ours.status == 401 || envoy.status == 200 && ours.is_untouched())
        },
    },
    Explained {
        // RFC 7515 4.1.11: what a signer calls critical must be understood; Envoy does not look.
        name: "something critical",
        is: |_, case, envoy, ours| {
            case.contains("crit") && (ours.status == 401 || envoy.status == 200 && ours.is_untouched())
        },
    },
    Explained {
        // Lines of one header arrive joined or apart, and blanks at their end or not: the same to whoever reads them.
        name: "how a header is written",
        is: |_, case, envoy, ours| {
            matches!(case, "nothing" | "two lines, good first" | "two lines, good last")
                && envoy.joined() == ours.joined()
        },
    },
];

/// Rules by the first part of the path.
fn rules() -> Vec<(&'static str, Value)> {
    let one = |name: &str| json!({"provider_name": name});
    let or_none =
        |name: &str| json!({"requires_any": {"requirements": [{"provider_name": name}, {"allow_missing": {}}]}});
    let any = |list: Vec<Value>| json!({"requires_any": {"requirements": list}});
    let all = |list: Vec<Value>| json!({"requires_all": {"requirements": list}});
    vec![
        ("p1", one("p1")),
        ("p2", one("p2")),
        ("p3", one("p3")),
        ("p4", one("p4")),
        ("p5", one("p5")),
        ("aud", json!({"provider_and_audiences": {"provider_name": "p1", "audiences": ["other"]}})),
        ("or1", or_none("p1")),
        ("or2", or_none("p2")),
        ("any", any(vec![one("p1"), one("p2")])),
        ("all", all(vec![one("p1"), one("p2")])),
        ("istio", any(vec![one("p1"), one("p2"), all(vec![or_none("p1"), or_none("p2")])])),
        ("missing", json!({"allow_missing": {}})),
        ("failed", json!({"allow_missing_or_failed": {}})),
        ("anyfailed", any(vec![one("p1"), json!({"allow_missing_or_failed": {}})])),
    ]
}

fn providers(set: &str) -> Value {
    let claims = json!([
        {"header_name": "x-user", "claim_name": "sub"}, {"header_name": "x-n", "claim_name": "n"},
        {"header_name": "x-deep", "claim_name": "deep.er"}, {"header_name": "x-list", "claim_name": "list"},
        {"header_name": "x-flag", "claim_name": "flag"},
    ]);
    let keys = json!({"inline_string": set});
    json!({
        "p1": {"issuer": "A", "audiences": ["shop"], "local_jwks": keys, "payload_in_metadata": "payload",
            "claim_to_headers": claims, "forward_payload_header": "x-payload"},
        "p2": {"issuer": "B", "local_jwks": keys, "forward": true, "from_headers": [{"name": "x-b", "value_prefix": "T "}],
            "from_cookies": ["c"], "from_params": ["t"],
            "claim_to_headers": [{"header_name": "x-user-b", "claim_name": "sub"}]},
        "p3": {"local_jwks": keys, "from_headers": [{"name": "x-any"}]},
        "p4": {"issuer": "D", "local_jwks": keys, "from_headers": [{"name": "x-d"}], "require_expiration": true,
            "max_lifetime": "100s", "clock_skew_seconds": 5, "subjects": {"prefix": "ok"}},
        "p5": {"issuer": "E", "audiences": ["https://shop.example/"], "local_jwks": keys, "from_headers": [{"name": "x-e"}],
            "forward_payload_header": "x-payload-e", "pad_forward_payload_header": true},
    })
}

impl Said {
    /// It passed, and nothing was believed of its token, which arrives as it came.
    fn is_untouched(&self) -> bool {
        let arrived = self.arrived.iter().flat_map(|(_, headers)| headers);
        self.status == 200 && arrived.into_iter().all(|(name, _)| name == "authorization")
    }

    /// With each header line once.
    fn once(&self) -> Self {
        let mut said = self.clone();
        said.arrived.iter_mut().for_each(|(_, headers)| headers.dedup());
        said
    }

    /// With the lines of a header in one, without blanks at the ends.
    fn joined(&self) -> Self {
        let mut said = self.clone();
        if let Some((_, headers)) = &mut said.arrived {
            let mut joined: BTreeMap<String, Vec<String>> = BTreeMap::new();
            for (name, value) in headers.drain(..) {
                joined.entry(name).or_default().push(value.trim().to_owned());
            }
            headers.extend(joined.into_iter().map(|(name, values)| (name, values.join(","))));
        }
        said
    }

    fn of(heard: Heard) -> Self {
        let status = heard.status.as_u16();
        match serde_json::from_slice::<Arrived>(&heard.body) {
            Ok(arrived) => {
                let compared = |(name, _): &(String, String)| COMPARED.contains(&name.as_str());
                let headers = arrived.headers.into_iter().filter(compared).collect();
                Self { status, refusal: None, arrived: Some((arrived.path, headers)) }
            }
            Err(_) => {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let challenge = heard.headers.get(header::WWW_AUTHENTICATE).map(|value| text(value.as_bytes()));
                Self { status, refusal: Some((text(&heard.body), challenge)), arrived: None }
            }
        }
    }
}

/// AN13, AN14: tokens say the same here as in Envoy, and what arrives is the same, by experiment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_open_the_same_doors() {
    let keys = Keys::new();
    let demands = rules();
    let rules: Vec<Value> = demands
        .iter()
        .map(|(name, requires)| json!({"match": {"prefix": format!("/{name}/")}, "requires": requires}))
        .collect();
    let jwt = any(
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        json!({"providers": providers(&keys.set), "rules": rules, "bypass_cors_preflight": true}),
    );
    let filter = json!({"name": "envoy.filters.http.jwt_authn", "typed_config": jwt});
    let options = Options { filters: vec![filter.clone()], ..Options::default() };
    let Some(envoy) = Envoy::start(&options).await else { return };
    let upstream = Upstream::echo("up").await;
    envoy.clusters([at_will(cluster("up", [upstream.address()])).encode_to_vec()]).await;
    let table = json!({"name": "slot-0", "virtual_hosts": [{"name": "all", "domains": ["*"],
        "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "up"}}]}]});
    let table = encode("envoy.config.route.v3.RouteConfiguration", &table).unwrap();
    assert_eq!(envoy.routes(&[(0, table)]).await, [Ok(())]);
    let (ours, _mesh) = ours(filter).await;

    let pki = Pki::new();
    let callers = Callers::new(&pki, WHO);
    let begin = Instant::now();
    let cases = cases(&keys);
    let (mut pairs, mut passed) = (0, 0);
    let mut explained: BTreeMap<&str, usize> = BTreeMap::new();
    let mut differing: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (rule, _) in &demands {
        for case in &cases {
            for who in 0..WHO.len() {
                let path = format!("/{rule}/x{}", case.path);
                let (method, headers) = (case.method.clone(), case.headers.clone());
                let knock = Knock { who, method, authority: "shop".to_owned(), path, headers };
                let (of_envoy, of_ours) =
                    tokio::join!(callers.ask(envoy.address(0), &knock), callers.ask(ours, &knock));
                let said = |heard: Result<Heard, String>| {
                    heard.map(Said::of).unwrap_or_else(|error| Said {
                        status: 0,
                        refusal: Some((error, None)),
                        arrived: None,
                    })
                };
                let (of_envoy, of_ours) = (said(of_envoy), said(of_ours));
                pairs += 1;
                passed += usize::from(of_envoy.status == 200);
                if of_envoy == of_ours {
                    continue;
                }
                match EXPLAINED.iter().find(|why| (why.is)(rule, &case.name, &of_envoy, &of_ours)) {
                    Some(why) => *explained.entry(why.name).or_default() += 1,
                    None => differing
                        .entry(format!("{}\n    Envoy {of_envoy:?}\n    ours  {of_ours:?}", case.name))
                        .or_default()
                        .push(format!("{rule} {who}")),
                }
            }
        }
    }
    println!("{pairs} pairs in {:?}, {passed} passed Envoy, explained: {explained:?}", begin.elapsed());
    let told: Vec<String> = differing.iter().map(|(what, of)| format!("{what}\n    under {}", of.join(", "))).collect();
    assert!(told.is_empty(), "{} differences\n{}", told.len(), told.join("\n"));
    assert!(passed * 10 > pairs && passed * 10 < pairs * 9, "{passed} of {pairs} pass, which shows little");
    let unused: Vec<&str> = EXPLAINED.iter().map(|why| why.name).filter(|name| !explained.contains_key(name)).collect();
    assert!(unused.is_empty(), "nothing needs these explanations: {unused:?}");
}

/// A server of ours with this filter, which answers with what arrived.
async fn ours(filter: Value) -> (SocketAddr, Mesh) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = any("envoy.extensions.filters.http.router.v3.Router", json!({}));
    let kind = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager";
    let manager = any(
        kind,
        json!({"stat_prefix": "x", "http_filters": [filter, {"name": "envoy.filters.http.router", "typed_config": router}],
            "route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}]}]}}),
    );
    let decoded = encode(
        "envoy.config.listener.v3.Listener",
        &json!({"name": "virtualInbound", "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
            "filter_chains": [{
                "filter_chain_match": {"destination_port": address.port(), "transport_protocol": "raw_buffer"},
                "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}]}),
    );
    let decoded = translate::listener(&Bytes::from(decoded.unwrap())).unwrap();
    assert!(decoded.ignored.is_empty(), "{:?}", decoded.ignored);
    let translate::Listener::Inbound(ports) = decoded.value else { panic!("not inbound") };
    let inbound = |inbound: Arc<Inbound>| Inbound { mtls: MtlsMode::Disable, ..Arc::unwrap_or_clone(inbound) };
    let config = Config {
        inbound: ports.into_iter().map(|(port, it)| (port, Arc::new(inbound(it)))).collect(),
        ..Config::default()
    };
    let mesh = Mesh::builder().config(config).build().await.unwrap();
    let handler = tower::service_fn(|request: http::Request<mesh_tower::server::RequestBody>| async move {
        let (parts, _) = request.into_parts();
        let text = |value: &http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let mut headers: Vec<(String, String)> =
            parts.headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect();
        headers.sort_by(|(a, _), (b, _)| a.cmp(b));
        let path = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        let arrived = Arrived {
            upstream: String::new(),
            version: String::new(),
            method: parts.method.to_string(),
            path,
            authority: String::new(),
            headers,
            body: String::new(),
        };
        Ok::<_, std::convert::Infallible>(echo(&arrived))
    });
    let serving = mesh.clone();
    tokio::spawn(async move { drop(serving.serve_listener(listener, handler).await) });
    (address, mesh)
}
