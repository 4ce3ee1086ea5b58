//! Which policies are about a workload, and what they say of a made-up request: what the workload's servers would decide, by the
//! configuration it is sent and the code that decides there.

use std::{collections::BTreeMap, net::IpAddr};

use axum::http::{self, StatusCode};
use mesh_core::{
    admit::InboundView,
    authz::{self, Heard, NoteKind, Verdict},
    claims::{Claim, Claims, PAYLOAD},
    config::{AuthzService, EVERY_PORT, Guard, Inbound, JwtAuthn, MtlsMode, RbacAction},
    identity::{SpiffeId, names_match},
    path::{Normal, normalize},
    request::RequestView,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Refusal, explain};
use crate::{
    compile::{NodeInfo, World, authz as compiled, compile, inbound},
    kinds::{AuthzAction, Key, Kind, Object, Spec},
    push::Push,
    state::State,
};

/// A question about a workload.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct AuthzRequest {
    /// An instance, a workload or its label `app`.
    pub workload: String,
    /// Its port; without, the only one it has.
    #[serde(default)]
    pub port: Option<u16>,
    /// The request to be judged; without, policies are listed only.
    #[serde(default)]
    pub request: Option<MadeUp>,
}

/// A made-up request.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct MadeUp {
    /// `GET`.
    pub method: String,
    /// With its query.
    pub path: String,
    /// What `:authority` says; empty is the workload's name.
    pub host: String,
    /// Names and values.
    pub headers: Vec<(String, String)>,
    /// Who asks: `spiffe://cluster.local/ns/default/sa/x`, the same without `spiffe://`, `NAMESPACE/ACCOUNT`, or a namespace alone,
    /// whose account `default` is meant; `None` shows no certificate.
    pub from: Option<String>,
    /// What a verified token says; `None` brings no token.
    pub claims: Option<BTreeMap<String, Value>>,
    /// The other end of the connection.
    pub ip: Option<IpAddr>,
    /// The caller's address as trusted proxies tell it; `None` is `ip`.
    pub remote_ip: Option<IpAddr>,
    /// The name asked for in the TLS handshake.
    pub server_name: String,
}

/// What a question is answered with.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AuthzChecked {
    /// `NAME.NAMESPACE`.
    pub workload: String,
    /// The port meant; `None` where it has several and none was named.
    pub port: Option<u16>,
    /// What that port, or every port alike, demands of callers; `None` where ports differ.
    pub mtls: Option<MtlsMode>,
    /// In the order in which they are asked.
    pub policies: Vec<PolicyRow>,
    /// What they say of the request, if there was one.
    pub verdict: Option<AuthzVerdict>,
}

/// A policy that is about the workload.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct PolicyRow {
    /// `AuthorizationPolicy default/viewers`.
    pub object: Key,
    /// `CUSTOM`, `AUDIT`, `DENY`, `ALLOW`; of a RequestAuthentication `JWT`, of a PeerAuthentication `mTLS`.
    pub action: String,
    /// It is tried out only.
    pub dry_run: bool,
    /// How many rules it has.
    pub rules: usize,
    /// Where it was written.
    pub file: String,
    /// The line there.
    pub line: u32,
}

/// The decision, and how it came about.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuthzVerdict {
    /// The application gets the request, unless a provider that is asked says no.
    pub allowed: bool,
    /// What the caller gets: 200 stands for the application's own answer.
    pub status: u16,
    /// The rule that decided, if one did.
    pub rule: Option<RuleAt>,
    /// In a sentence.
    pub reason: String,
    /// Everything that was asked, in order; the last one decided.
    pub steps: Vec<AuthzStep>,
}

/// One thing that was asked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct AuthzStep {
    /// As [`PolicyRow::action`].
    pub action: String,
    /// What it says.
    pub says: String,
    /// The rule that matched, if one did.
    pub rule: Option<RuleAt>,
}

/// A rule of a policy.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct RuleAt {
    /// `default/viewers`.
    pub policy: String,
    /// Its place in `spec.rules`, from 0.
    pub rule: usize,
    /// Where it was written.
    pub file: String,
    /// Its line there.
    pub line: u32,
}

impl std::fmt::Display for RuleAt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} rules[{}] ({}:{})", self.policy, self.rule, self.file, self.line)
    }
}

pub(super) fn check(state: &State, push: &Push, question: &AuthzRequest) -> Result<AuthzChecked, Refusal> {
    let bad = |message: String| Refusal::new(StatusCode::BAD_REQUEST, message);
    let node = explain::find(state, push, &question.workload)?;
    if node.gateway {
        return Err(bad(format!(
            "{}.{} is a gateway: it lets everybody in, and leaves authorization to the workloads behind",
            node.name, node.namespace
        )));
    }
    let world = state.world().1;
    let config = compile(&world, &node);
    let ports: Vec<u16> = config.inbound.keys().copied().filter(|port| *port != EVERY_PORT).collect();
    let port = question.port.or(match ports.as_slice() {
        [only] => Some(*only),
        _ => None,
    });
    let modes: Vec<MtlsMode> = match port {
        Some(port) => vec![inbound::mode(&world, &node.namespace, &node.labels, port)],
        None => ports.iter().map(|port| inbound::mode(&world, &node.namespace, &node.labels, *port)).collect(),
    };
    let mtls = modes.first().copied().filter(|first| modes.iter().all(|mode| mode == first));
    let verdict = match &question.request {
        None => None,
        Some(request) => {
            let known = ports.iter().map(u16::to_string).collect::<Vec<_>>().join(", ");
            let port = port.ok_or_else(|| bad(format!("say which port; the workload has {known}")))?;
            let inbound = config.inbound.get(&port).or_else(|| config.inbound.get(&EVERY_PORT));
            let inbound = inbound.ok_or_else(|| bad(format!("the workload has no port {port}; it has {known}")))?;
            Some(judge(&world, &node, port, inbound, request).map_err(bad)?)
        }
    };
    let workload = format!("{}.{}", node.name, node.namespace);
    Ok(AuthzChecked { workload, port, mtls, policies: rows(&world, &node), verdict })
}

pub(super) fn rows(world: &World, node: &NodeInfo) -> Vec<PolicyRow> {
    let row = |object: &Object, action: &str, dry_run: bool, rules: usize| {
        let (file, line) = place(object, object.source.first_line);
        PolicyRow { object: object.key.clone(), action: action.to_owned(), dry_run, rules, file, line }
    };
    let mut rows = Vec::new();
    for (object, policy) in compiled::policies(world, node) {
        rows.push(row(object, action(policy.action), compiled::is_dry_run(object), policy.rules.len()));
    }
    for object in world.token_policies(node) {
        if let Spec::RequestAuthentication(policy) = &object.spec {
            rows.push(row(object, "JWT", false, policy.rules.len()));
        }
    }
    let order = ["CUSTOM", "JWT", "AUDIT", "DENY", "ALLOW"];
    rows.sort_by_key(|row| (order.iter().position(|action| row.action == *action), row.object.clone()));
    rows
}

fn action(action: AuthzAction) -> &'static str {
    match action {
        AuthzAction::Allow => "ALLOW",
        AuthzAction::Deny => "DENY",
        AuthzAction::Audit => "AUDIT",
        AuthzAction::Custom => "CUSTOM",
    }
}

/// Where an object stands: the line of its `kind`, or of what is asked for.
fn place(object: &Object, line: u32) -> (String, u32) {
    if line != object.source.first_line {
        return (object.source.file.to_string(), line);
    }
    let within = object.source.text.lines().position(|line| line.starts_with("kind:")).unwrap_or_default();
    (object.source.file.to_string(), line + u32::try_from(within).unwrap_or_default())
}

fn judge(
    world: &World,
    node: &NodeInfo,
    port: u16,
    inbound: &Inbound,
    request: &MadeUp,
) -> Result<AuthzVerdict, String> {
    // What is no request is no question either, whoever asks.
    parts(node, &request.path, request)?;
    let peer = request.from.as_deref().map(|from| principal(world, from)).transpose()?;
    let mut judge = Judge { world, steps: Vec::new() };
    if let Some(refused) = judge.peer(inbound, peer.as_ref()) {
        return Ok(refused);
    }
    let path = match normalize(&request.path, inbound.path) {
        Normal::Same => request.path.clone(),
        Normal::Changed(path) => {
            judge.step("path", format!("{} is taken for {path}", request.path), None);
            path
        }
        Normal::Redirect(path) => return Ok(judge.done(307, format!("the caller is sent to {path}"), None)),
        Normal::Refused(why) => return Ok(judge.done(400, format!("the path is refused: {why}"), None)),
    };
    let parts = parts(node, &path, request)?;
    let mut view = InboundView::of(port, RequestView::of(&parts, Some(port)));
    view.peer = peer.as_ref();
    view.local = node.address;
    view.request.source = request.ip;
    view.remote = request.remote_ip.or(request.ip);
    view.server_name = &request.server_name;
    let mut claims = Claims::default();
    let mut heard = Heard::default();
    for guard in &inbound.guards {
        match guard {
            Guard::Jwt(jwt) => match token(jwt, request.claims.as_ref())? {
                Ok(None) => judge.step("JWT", "no token: nothing is demanded of it".to_owned(), None),
                Ok(Some((issuer, claim))) => {
                    judge.step("JWT", format!("the token is {issuer}'s"), None);
                    claims.insert(PAYLOAD, claim);
                }
                Err(why) => return Ok(judge.done(401, why, None)),
            },
            Guard::ExtAuthz(service) => {
                if service.when.as_ref().is_none_or(|when| heard.found(when)) {
                    let (AuthzService::Grpc { cluster, .. } | AuthzService::Http { cluster, .. }) = &service.service;
                    judge.step(
                        "CUSTOM",
                        format!("{cluster} is asked, and may refuse; what follows holds if not"),
                        None,
                    );
                }
            }
            Guard::Rbac(rbac) => {
                let engine = authz::compile(rbac).map_err(|error| error.to_string())?;
                let view = InboundView { claims: (!claims.is_empty()).then_some(&claims), ..view };
                let before = heard.notes.len();
                let verdict = engine.decide(&view, &mut heard);
                for note in heard.notes.iter().skip(before).filter(|note| note.kind == NoteKind::Shadow) {
                    judge.shadow(&note.prefix, &note.verdict);
                }
                let Some(rules) = &rbac.rules else { continue };
                if let Some(refused) = judge.rules(rules.action, &verdict) {
                    return Ok(refused);
                }
            }
        }
    }
    if request.claims.is_some() && !inbound.guards.iter().any(|guard| matches!(guard, Guard::Jwt(_))) {
        judge.step("JWT", "no RequestAuthentication means this workload: tokens are not looked at".to_owned(), None);
    }
    let rule = judge.steps.iter().rev().find(|step| step.action == "ALLOW").and_then(|step| step.rule.clone());
    let reason = match &rule {
        Some(rule) => format!("ALLOW {rule} matches"),
        None => "no policy refuses it, and there is no policy of the action ALLOW".to_owned(),
    };
    Ok(judge.done(200, reason, rule))
}

struct Judge<'w> {
    world: &'w World,
    steps: Vec<AuthzStep>,
}

impl Judge<'_> {
    fn step(&mut self, action: &str, says: String, rule: Option<RuleAt>) {
        self.steps.push(AuthzStep { action: action.to_owned(), says, rule });
    }

    fn done(&mut self, status: u16, reason: String, rule: Option<RuleAt>) -> AuthzVerdict {
        AuthzVerdict { allowed: status == 200, status, rule, reason, steps: std::mem::take(&mut self.steps) }
    }

    fn peer(&mut self, inbound: &Inbound, peer: Option<&SpiffeId>) -> Option<AuthzVerdict> {
        let refused = match (inbound.mtls, peer) {
            (MtlsMode::Strict, None) => "the port takes mutual TLS only, and no --from says who asks".to_owned(),
            (MtlsMode::Disable, Some(_)) => {
                self.step("mTLS", "the port speaks plaintext: nobody can prove who it is".to_owned(), None);
                return None;
            }
            (_, None) => {
                self.step("mTLS", "plaintext is taken; nobody is known to ask".to_owned(), None);
                return None;
            }
            (_, Some(peer)) if inbound.callers.is_empty() || names_match(&inbound.callers, [peer.as_str()]) => {
                self.step("mTLS", format!("{peer} is known by its certificate"), None);
                return None;
            }
            (_, Some(peer)) => format!("{peer} is none of this mesh's identities"),
        };
        self.step("mTLS", refused.clone(), None);
        Some(self.done(403, refused, None))
    }

    fn shadow(&mut self, prefix: &str, verdict: &Verdict) {
        let rule = verdict.policy.as_deref().and_then(|name| self.rule(name));
        match prefix {
            "istio_ext_authz_" => match &rule {
                Some(rule) => self.step("CUSTOM", format!("{rule} matches"), Some(rule.clone())),
                None => self.step("CUSTOM", "no rule matches: nobody is asked".to_owned(), None),
            },
            _ => {
                let would = if verdict.allowed { "would let it pass" } else { "would refuse it" };
                self.step("dry run", would.to_owned(), rule);
            }
        }
    }

    fn rules(&mut self, action: RbacAction, verdict: &Verdict) -> Option<AuthzVerdict> {
        let rule = verdict.policy.as_deref().and_then(|name| self.rule(name));
        let told = || rule.as_ref().map(RuleAt::to_string).or_else(|| verdict.policy.as_deref().map(str::to_owned));
        let unknown = if verdict.unknown {
            "; whether it matches cannot be told from what is known of the request, so it counts against it"
        } else {
            ""
        };
        let (name, says) = match (action, told()) {
            (RbacAction::Log, Some(told)) => ("AUDIT", format!("{told} matches: it is told of")),
            (RbacAction::Log, None) => ("AUDIT", "no rule matches".to_owned()),
            (RbacAction::Deny, Some(told)) => ("DENY", format!("{told} matches{unknown}")),
            (RbacAction::Deny, None) => ("DENY", "no rule matches".to_owned()),
            (RbacAction::Allow, Some(told)) if verdict.allowed => ("ALLOW", format!("{told} matches")),
            (RbacAction::Allow, Some(told)) => ("ALLOW", format!("no rule matches for certain: {told}{unknown}")),
            (RbacAction::Allow, None) => ("ALLOW", "no rule matches".to_owned()),
        };
        self.step(name, says.clone(), rule.clone());
        (!verdict.allowed).then(|| self.done(403, format!("{name}: {says}"), rule))
    }

    /// The rule that a policy of the compiled configuration stands for.
    fn rule(&self, name: &str) -> Option<RuleAt> {
        let within = |from: &str| name.split_once(from)?.1.split_once(']').map(|(inner, _)| inner);
        let (namespace, policy, n) = (within("ns[")?, within("policy[")?, within("rule[")?.parse::<usize>().ok()?);
        let key = Key::new(Kind::AuthorizationPolicy, namespace, policy);
        let object = self.world.object(&key)?;
        let Spec::AuthorizationPolicy(spec) = &object.spec else { return None };
        let (file, line) = place(object, spec.rules.get(n).map_or(object.source.first_line, |rule| rule.line));
        Some(RuleAt { policy: format!("{namespace}/{policy}"), rule: n, file, line })
    }
}

/// Who is meant by `--from`.
fn principal(world: &World, from: &str) -> Result<SpiffeId, String> {
    let domain = world.trust_domain();
    let id = match from.split('/').collect::<Vec<_>>().as_slice() {
        _ if from.starts_with("spiffe://") => from.to_owned(),
        [namespace] => format!("spiffe://{domain}/ns/{namespace}/sa/default"),
        [namespace, account] => format!("spiffe://{domain}/ns/{namespace}/sa/{account}"),
        _ => format!("spiffe://{from}"),
    };
    id.parse().map_err(|error| format!("{from:?} is no identity: {error}"))
}

fn parts(node: &NodeInfo, path: &str, request: &MadeUp) -> Result<http::request::Parts, String> {
    let host = if request.host.is_empty() { &node.name } else { &request.host };
    let uri: http::Uri =
        format!("http://{host}{path}").parse().map_err(|error| format!("{path:?} is no path: {error}"))?;
    let mut builder = http::Request::builder().method(request.method.as_str()).uri(uri);
    for (name, value) in &request.headers {
        builder = builder.header(name, value);
    }
    builder.body(()).map(|request| request.into_parts().0).map_err(|error| error.to_string())
}

/// Whose a token is and what rules see of it, if there is one; or why it is refused.
type Believed = Result<Option<(String, Claim)>, String>;

/// What a verified token with such claims comes to: whose it is, and what rules see.
fn token(jwt: &JwtAuthn, claims: Option<&BTreeMap<String, Value>>) -> Result<Believed, String> {
    let Some(claims) = claims else { return Ok(Ok(None)) };
    let issuer = claims.get("iss").and_then(Value::as_str).unwrap_or_default();
    let Some(provider) = jwt.providers.values().find(|provider| provider.issuer == issuer) else {
        let known: Vec<&str> = jwt.providers.values().map(|provider| provider.issuer.as_str()).collect();
        let help = format!("say --claim iss=..., one of {}", known.join(", "));
        return Ok(Err(format!("JWT: nobody believes tokens of the issuer {issuer:?}; {help}")));
    };
    let mut claims = claims.clone();
    for name in &provider.space_delimited {
        if let Some(Value::String(text)) = claims.get(name) {
            let words = text.split(' ').filter(|word| !word.is_empty()).map(Value::from).collect();
            claims.insert(name.clone(), words);
        }
    }
    let json = serde_json::to_string(&claims).map_err(|error| error.to_string())?;
    let claim = serde_json::from_str(&json).map_err(|error| format!("the claims are none: {error}"))?;
    Ok(Ok(Some((issuer.to_owned(), claim))))
}
