//! What requests to a workload must pass: its AuthorizationPolicies as the filters istiod writes for them.
//!
//! In order: providers (`CUSTOM`: rules that only find out whether one is asked, and who), `AUDIT`, `DENY`, `ALLOW`. Each rule is
//! one policy, named by its object and place, so that logs and `meshctl authz check` can say which one decided.
//! Source: istiod `pilot/pkg/security/authz/{builder,model}`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    claims::{JWT_METADATA, PAYLOAD},
    config::{
        AuditCondition, Condition, Guard, HeaderMatch, HeaderMatcher, MetadataMatch, Name, Rbac, RbacAction,
        RbacPolicy, RbacRules, ShadowMatch, StringMatch, ValueMatch,
    },
};

use super::{NodeInfo, World, world::includes};
use crate::kinds::{
    Attribute, AuthorizationPolicy, AuthzAction, AuthzRule, Object, Spec, Term, authz_network, authz_template,
    regex_escape,
};

pub(super) mod bytes;

/// In front of the names of policies that have a provider asked.
const CUSTOM: &str = "istio-ext-authz-";
/// In front of what the rules for providers find.
const CUSTOM_PREFIX: &str = "istio_ext_authz_";

/// What requests to a workload must pass; `tokens` are asked after providers and before rules that look into them.
pub(super) fn guards(world: &World, node: &NodeInfo, tokens: Option<Guard>) -> Vec<Guard> {
    let policies: Vec<_> = policies(world, node).collect();
    let of = |action| policies.iter().filter(move |(_, policy)| policy.action == action).collect::<Vec<_>>();
    let mut guards = custom(world, &of(AuthzAction::Custom));
    guards.extend(tokens);
    for (action, means, prefix) in [
        (AuthzAction::Audit, RbacAction::Log, ""),
        (AuthzAction::Deny, RbacAction::Deny, "istio_dry_run_deny_"),
        (AuthzAction::Allow, RbacAction::Allow, "istio_dry_run_allow_"),
    ] {
        let (tried, enforced): (Vec<_>, Vec<_>) = of(action).into_iter().partition(|(object, _)| is_dry_run(object));
        let rules = |policies: &[&(&Arc<Object>, &AuthorizationPolicy)]| {
            (!policies.is_empty()).then(|| rules(world, policies, means, ""))
        };
        let rbac = Rbac { rules: rules(&enforced), shadow: rules(&tried), shadow_prefix: prefix.into() };
        if rbac.rules.is_some() || rbac.shadow.is_some() {
            let shadow_prefix = if rbac.shadow.is_some() { rbac.shadow_prefix.clone() } else { Name::default() };
            guards.push(Guard::Rbac(Arc::new(Rbac { shadow_prefix, ..rbac })));
        }
    }
    guards
}

/// The policies that are about a workload.
pub(crate) fn policies<'w>(
    world: &'w World,
    node: &'w NodeInfo,
) -> impl Iterator<Item = (&'w Arc<Object>, &'w AuthorizationPolicy)> {
    world.objects.iter().filter_map(|object| match &object.spec {
        Spec::AuthorizationPolicy(policy) => {
            let namespace = &object.key.namespace;
            let near = *namespace == node.namespace || *namespace == world.mesh.root_namespace;
            let meant = match policy.services.as_slice() {
                [] => policy.selector.is_empty() || includes(&node.labels, &policy.selector),
                services => services.iter().any(|service| is_behind(world, node, namespace, service)),
            };
            (near && meant).then_some((object, policy))
        }
        _ => None,
    })
}

/// Is the workload one of those behind a service?
fn is_behind(world: &World, node: &NodeInfo, namespace: &str, service: &str) -> bool {
    node.namespace == namespace
        && world.objects.iter().any(|object| match &object.spec {
            Spec::Service(spec) => {
                object.key.name == service
                    && object.key.namespace == namespace
                    && !spec.selector.is_empty()
                    && includes(&node.labels, &spec.selector)
            }
            _ => false,
        })
}

/// Is it to be tried out only? Annotation `istio.io/dry-run`.
pub(crate) fn is_dry_run(object: &Object) -> bool {
    object.raw.pointer("/metadata/annotations/istio.io~1dry-run").is_some_and(|value| {
        value.as_str().is_some_and(|text| text.eq_ignore_ascii_case("true")) || value.as_bool() == Some(true)
    })
}

fn custom(world: &World, policies: &[&(&Arc<Object>, &AuthorizationPolicy)]) -> Vec<Guard> {
    let Some(first) = policies.first() else { return Vec::new() };
    let provider = first.1.provider.as_deref().unwrap_or_default();
    let same = policies.iter().all(|(_, policy)| policy.provider.as_deref() == Some(provider));
    let Some(service) = world.mesh.extension_providers.get(provider).filter(|_| same) else {
        // Nobody can be asked, so nobody may pass.
        let everything = RbacPolicy { permissions: vec![Condition::Any], principals: vec![Condition::Any] };
        let rules = RbacRules {
            action: RbacAction::Deny,
            policies: [("default-deny-all-due-to-bad-CUSTOM-action".into(), everything)].into(),
            audit: AuditCondition::None,
        };
        return vec![Guard::Rbac(Arc::new(Rbac { rules: Some(rules), ..Rbac::default() }))];
    };
    let shadow = Some(rules(world, policies, RbacAction::Deny, CUSTOM));
    let mut service = service.clone();
    let policy = StringMatch::Prefix { value: CUSTOM.trim_end_matches('-').to_owned(), ignore_case: false };
    service.when = Some(ShadowMatch { prefix: CUSTOM_PREFIX.into(), policy });
    vec![
        Guard::Rbac(Arc::new(Rbac { rules: None, shadow, shadow_prefix: CUSTOM_PREFIX.into() })),
        Guard::ExtAuthz(Arc::new(service)),
    ]
}

fn rules(
    world: &World,
    policies: &[&(&Arc<Object>, &AuthorizationPolicy)],
    action: RbacAction,
    prefix: &str,
) -> RbacRules {
    let mut out = BTreeMap::new();
    for (object, policy) in policies {
        let key = &object.key;
        let name = |rule: usize| Name::from(format!("{prefix}ns[{}]-policy[{}]-rule[{rule}]", key.namespace, key.name));
        for (i, rule) in policy.rules.iter().enumerate() {
            out.insert(name(i), compiled(world, &key.namespace, rule));
        }
        if policy.rules.is_empty() {
            let never = || vec![Condition::Not(Box::new(Condition::Any))];
            out.insert(name(0), RbacPolicy { permissions: never(), principals: never() });
        }
    }
    RbacRules { action, policies: out, audit: AuditCondition::None }
}

fn compiled(world: &World, namespace: &str, rule: &AuthzRule) -> RbacPolicy {
    let (of_what, of_whom): (Vec<&Term>, Vec<&Term>) =
        rule.when.iter().partition(|term| term.attribute.is_permission());
    let alternatives = |lists: &[Vec<Term>], always: &[&Term]| {
        let all = |terms: &[Term]| {
            let terms = terms.iter().chain(always.iter().copied());
            let conditions: Vec<_> = terms.flat_map(|term| conditions(world, namespace, term)).collect();
            Condition::All(if conditions.is_empty() { vec![Condition::Any] } else { conditions })
        };
        if lists.is_empty() { vec![all(&[])] } else { lists.iter().map(|terms| all(terms)).collect() }
    };
    RbacPolicy { permissions: alternatives(&rule.to, &of_what), principals: alternatives(&rule.from, &of_whom) }
}

/// One of the values matches, and none of the others.
fn conditions(world: &World, namespace: &str, term: &Term) -> impl Iterator<Item = Condition> {
    let one = |values: &[String]| {
        let values: Vec<_> =
            values.iter().flat_map(|value| condition(world, namespace, &term.attribute, value)).collect();
        (!values.is_empty()).then_some(Condition::One(values))
    };
    let not = one(&term.not_values).map(|of| Condition::Not(Box::new(of)));
    one(&term.values).into_iter().chain(not)
}

fn condition(world: &World, namespace: &str, attribute: &Attribute, value: &str) -> Vec<Condition> {
    let peer = |matches| vec![Condition::Peer(Some(matches))];
    let claim = |path: &[&str]| {
        let text = || ValueMatch::Text(text(value));
        vec![metadata(path, ValueMatch::Or(vec![text(), ValueMatch::OneOf(Box::new(text()))]))]
    };
    let net = |make: fn(ipnet::IpNet) -> Condition| authz_network(value).map(make).into_iter().collect();
    match attribute {
        Attribute::Principal => principals(world, value).into_iter().map(|it| Condition::Peer(Some(it))).collect(),
        Attribute::Namespace => peer(pattern("spiffe://[^/]+/ns/", value, "/.*")),
        Attribute::ServiceAccount => {
            let (namespace, account) = value.split_once('/').unwrap_or((namespace, value));
            peer(pattern(&format!("spiffe://[^/]+/ns/{}/sa/", regex_escape(namespace)), account, ""))
        }
        Attribute::TrustDomain => peer(pattern("spiffe://", value, "/.*")),
        Attribute::SourceIp => net(Condition::DirectIp),
        Attribute::RemoteIp => net(Condition::RemoteIp),
        Attribute::DestinationIp => net(Condition::DestinationIp),
        Attribute::DestinationPort => value.parse().ok().map(Condition::DestinationPort).into_iter().collect(),
        Attribute::RequestPrincipal => {
            let (issuer, subject) =
                if value == "*" { ("*", "*") } else { value.rsplit_once('/').unwrap_or((value, "")) };
            let of = |name, value| metadata(&[name], ValueMatch::Text(text(value)));
            vec![Condition::All(vec![of("iss", issuer), of("sub", subject)])]
        }
        Attribute::Audience => claim(&["aud"]),
        Attribute::Presenter => vec![metadata(&["azp"], ValueMatch::Text(text(value)))],
        Attribute::Claim(path) => claim(&path.iter().map(String::as_str).collect::<Vec<_>>()),
        Attribute::Header(name) => vec![header(name, value, false)],
        Attribute::Host => vec![header(":authority", value, true)],
        Attribute::Method => vec![header(":method", value, false)],
        Attribute::Path => vec![match authz_template(value).filter(|_| value.contains('{')) {
            Some(template) => Condition::Path(regex(&template)),
            None => Condition::Path(text(value)),
        }],
        Attribute::ServerName => vec![Condition::ServerName(text(value))],
        Attribute::Filter(filter, key) => vec![Condition::Metadata(MetadataMatch {
            filter: filter.as_str().into(),
            path: vec![key.as_str().into()],
            value: ValueMatch::Text(text(value)),
            invert: false,
        })],
    }
}

/// `*` is anything there, `x*` and `*x` the beginning and the end.
fn text(value: &str) -> StringMatch {
    match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => regex(".+"),
        (Some(end), _) => StringMatch::Suffix { value: end.to_owned(), ignore_case: false },
        (_, Some(start)) => StringMatch::Prefix { value: start.to_owned(), ignore_case: false },
        _ => StringMatch::Exact { value: value.to_owned(), ignore_case: false },
    }
}

fn header(name: &str, value: &str, ignore_case: bool) -> Condition {
    let matcher = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => HeaderMatcher::Present(true),
        (Some(end), _) => HeaderMatcher::Value(StringMatch::Suffix { value: end.to_owned(), ignore_case }),
        (_, Some(start)) => HeaderMatcher::Value(StringMatch::Prefix { value: start.to_owned(), ignore_case }),
        _ => HeaderMatcher::Value(StringMatch::Exact { value: value.to_owned(), ignore_case }),
    };
    Condition::Header(HeaderMatch {
        name: name.to_ascii_lowercase().into(),
        matcher,
        invert: false,
        missing_as_empty: false,
    })
}

fn metadata(path: &[&str], value: ValueMatch) -> Condition {
    let path = std::iter::once(PAYLOAD).chain(path.iter().copied()).map(Name::from).collect();
    Condition::Metadata(MetadataMatch { filter: JWT_METADATA.into(), path, value, invert: false })
}

/// Between two expressions a text in which `*` is any part of a segment, and everything else itself.
fn pattern(before: &str, value: &str, after: &str) -> StringMatch {
    let value: Vec<_> = value.split('*').map(regex_escape).collect();
    regex(&format!("{before}{}{after}", value.join("[^/]*")))
}

fn regex(pattern: &str) -> StringMatch {
    match pattern.parse() {
        Ok(regex) => StringMatch::Regex(regex),
        // Escaped, it is one; too long a one matches nothing a certificate can say.
        Err(_) => StringMatch::Exact { value: pattern.to_owned(), ignore_case: false },
    }
}

/// The identities a principal means: of a trust domain that is ours, those of all its names.
fn principals(world: &World, value: &str) -> Vec<StringMatch> {
    let prefixed = |value: &str| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => regex("spiffe://.+"),
        (Some(end), _) => regex(&format!("spiffe://.*{}", regex_escape(end))),
        (_, Some(start)) => StringMatch::Prefix { value: format!("spiffe://{start}"), ignore_case: false },
        _ => StringMatch::Exact { value: format!("spiffe://{value}"), ignore_case: false },
    };
    let mesh = &world.mesh;
    let ours = || std::iter::once(&mesh.trust_domain).chain(&mesh.trust_domain_aliases);
    match value.split_once('/') {
        Some((domain, rest)) if domain == "cluster.local" || ours().any(|own| own == domain) => {
            let mut domains: Vec<&str> = ours().map(String::as_str).collect();
            if !domains.contains(&domain) {
                domains.push(domain);
            }
            domains.into_iter().map(|domain| prefixed(&format!("{domain}/{rest}"))).collect()
        }
        _ => vec![prefixed(value)],
    }
}
