//! Whose tokens a workload believes: every RequestAuthentication that means it, as one filter.
//!
//! Source: Istio `pilot/pkg/security/authn/policy_applier.go`: rules sorted by issuer; a request may have no token, but each it
//! has must be good.

use std::{sync::Arc, time::Duration};

use mesh_core::{
    claims::PAYLOAD,
    config::{JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule, Labels, Name},
};

use super::{World, cluster::cluster_name, world::includes};
use crate::kinds::{Object, Spec, TokenRule};

/// How long keys count. Istio refreshes every 20 minutes.
const REFRESH: Duration = Duration::from_secs(20 * 60);
/// Istio `JWTRule.timeout`.
const TIMEOUT: Duration = Duration::from_secs(5);

/// What a workload's servers demand of tokens; `None` where nobody says anything.
pub(crate) fn authentication(world: &World, namespace: &str, labels: &Labels) -> Option<Arc<JwtAuthn>> {
    let rules = policies(world, namespace, labels).filter_map(|object| match &object.spec {
        Spec::RequestAuthentication(policy) => Some(&policy.rules),
        _ => None,
    });
    let mut rules: Vec<&TokenRule> = rules.flatten().collect();
    rules.sort_by(|a, b| a.issuer.cmp(&b.issuer));
    if rules.is_empty() {
        return None;
    }
    let name = |n: usize| Name::from(format!("origins-{n}"));
    let one = |n| JwtRequirement::Provider { name: name(n), audiences: None };
    let or_none = |n| JwtRequirement::Any(vec![one(n), JwtRequirement::AllowMissing]);
    let requirement = match rules.len() {
        1 => or_none(0),
        // As istiod has it: a good token of any provider is enough, and ends the search, so that another beside it is neither judged
        // nor taken off; without a good one, none that is there may be bad.
        count => {
            let all = JwtRequirement::All((0..count).map(or_none).collect());
            JwtRequirement::Any((0..count).map(one).chain([all]).collect())
        }
    };
    let providers = rules.iter().enumerate().map(|(n, rule)| (name(n), Arc::new(provider(world, namespace, rule))));
    Some(Arc::new(JwtAuthn {
        providers: providers.collect(),
        rules: vec![JwtRule { requirement: Some(requirement), ..JwtRule::default() }],
        bypass_cors_preflight: true,
        hide_reason: false,
    }))
}

/// The policies that are about a workload.
pub(crate) fn policies<'w>(
    world: &'w World,
    namespace: &'w str,
    labels: &'w Labels,
) -> impl Iterator<Item = &'w Arc<Object>> {
    let root = world.mesh.root_namespace.as_str();
    world.by_age.iter().filter(move |object| match &object.spec {
        Spec::RequestAuthentication(policy) => {
            let of = object.key.namespace.as_str();
            // A selector in the root namespace means workloads of every namespace.
            (of == namespace || of == root) && includes(labels, &policy.selector)
        }
        _ => false,
    })
}

fn provider(world: &World, namespace: &str, rule: &TokenRule) -> JwtProvider {
    let mut space_delimited = vec!["scope".to_owned(), "permission".to_owned()];
    for claim in &rule.space_delimited {
        if !space_delimited.contains(claim) {
            space_delimited.push(claim.clone());
        }
    }
    let claim_headers = rule.claim_headers.iter();
    let claim_headers =
        claim_headers.map(|(name, claim)| (Name::from(name.as_str()), claim.split('.').map(str::to_owned).collect()));
    JwtProvider {
        issuer: rule.issuer.clone(),
        audiences: rule.audiences.clone(),
        keys: keys(world, namespace, rule),
        forward: rule.forward,
        from_headers: rule
            .from_headers
            .iter()
            .map(|(name, prefix)| (Name::from(name.as_str()), prefix.clone()))
            .collect(),
        from_params: rule.from_params.clone(),
        from_cookies: rule.from_cookies.clone(),
        payload_header: rule.payload_header.as_deref().map(Name::from),
        payload_name: Some(PAYLOAD.to_owned()),
        space_delimited,
        claim_headers: claim_headers.collect(),
        ..JwtProvider::default()
    }
}

/// Keys are fetched from services of the mesh alone: an address that none of them has fetches nothing, and no token of that
/// issuer is believed.
fn keys(world: &World, namespace: &str, rule: &TokenRule) -> JwtKeys {
    let Some(uri) = &rule.keys_uri else { return JwtKeys::Inline(rule.keys.as_str().into()) };
    let Some((host, port)) = host_of(&uri.value) else { return JwtKeys::default() };
    let host = world.resolve(&host, namespace);
    let services = world.services_for(namespace);
    let service =
        services.iter().find(|service| *service.host == *host && service.ports.iter().any(|it| it.number == port));
    match service {
        Some(service) => JwtKeys::Remote {
            uri: uri.value.clone(),
            cluster: cluster_name(&service.host, port, ""),
            timeout: rule.timeout.unwrap_or(TIMEOUT),
            refresh: REFRESH,
        },
        None => JwtKeys::default(),
    }
}

/// Host and port of an address.
fn host_of(uri: &str) -> Option<(String, u16)> {
    let uri: http::Uri = uri.parse().ok()?;
    let port = uri.port_u16().unwrap_or_else(|| if uri.scheme_str() == Some("https") { 443 } else { 80 });
    Some((uri.host()?.to_owned(), port))
}
