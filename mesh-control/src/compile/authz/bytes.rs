//! What connections to a gateway must pass whose bytes it hands on: the same AuthorizationPolicies, as far as they do not speak of
//! requests, of which nobody knows anything there.
//!
//! Of `ALLOW` a rule that speaks of requests is left out whole; of `DENY` what it says of them is, so that it denies more. Whom a
//! provider would be asked about is refused, since what it would be asked is a request. Tokens are of requests.
//! Source: istiod `pilot/pkg/security/authz/model`, of TCP.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::config::{
    AuditCondition, Condition, ExtAuthz, Guard, Rbac, RbacAction, RbacPolicy, RbacRules, ShadowMatch,
};

use super::{NodeInfo, World, guards};

/// In order.
pub(in crate::compile) fn rules(world: &World, node: &NodeInfo) -> Vec<Arc<Rbac>> {
    of_connections(&guards(world, node, None))
}

fn of_connections(guards: &[Guard]) -> Vec<Arc<Rbac>> {
    let mut out = Vec::new();
    for (at, guard) in guards.iter().enumerate() {
        match guard {
            Guard::Rbac(rbac) => {
                let is_asked = |guard: &Guard| matches!(guard, Guard::ExtAuthz(service) if is_for(service, rbac));
                let shadow = rbac.shadow.as_ref().filter(|_| !guards.iter().any(is_asked));
                let only =
                    Rbac { rules: rbac.rules.as_ref().map(stripped), shadow: shadow.map(stripped), ..(**rbac).clone() };
                if only.rules.is_some() || only.shadow.is_some() {
                    out.push(Arc::new(only));
                }
            }
            Guard::ExtAuthz(service) => {
                let before = guards.iter().take(at).find_map(|guard| match guard {
                    Guard::Rbac(rbac) if is_for(service, rbac) => rbac.shadow.as_ref(),
                    _ => None,
                });
                let rules = match before {
                    Some(asked) => RbacRules { action: RbacAction::Deny, ..stripped(asked) },
                    None => {
                        RbacRules { action: RbacAction::Allow, policies: BTreeMap::new(), audit: AuditCondition::None }
                    }
                };
                out.push(Arc::new(Rbac { rules: Some(rules), ..Rbac::default() }));
            }
            Guard::Jwt(_) => {}
        }
    }
    out
}

/// Do these rules find out whether the service is asked?
fn is_for(service: &ExtAuthz, rbac: &Rbac) -> bool {
    let Some(ShadowMatch { prefix, .. }) = &service.when else { return false };
    rbac.rules.is_none() && rbac.shadow.is_some() && rbac.shadow_prefix == *prefix
}

fn stripped(rules: &RbacRules) -> RbacRules {
    let all = rules.policies.iter();
    let policies = match rules.action {
        RbacAction::Allow | RbacAction::Log => {
            let speaks = |policy: &RbacPolicy| policy.permissions.iter().chain(&policy.principals).any(is_of_requests);
            all.filter(|(_, policy)| !speaks(policy)).map(|(name, policy)| (name.clone(), policy.clone())).collect()
        }
        RbacAction::Deny => {
            let of = |list: &[Condition]| list.iter().map(|it| rest(it).unwrap_or(Condition::Any)).collect();
            let policy =
                |it: &RbacPolicy| RbacPolicy { permissions: of(&it.permissions), principals: of(&it.principals) };
            all.map(|(name, it)| (name.clone(), policy(it))).collect()
        }
    };
    RbacRules { policies, ..rules.clone() }
}

/// Does it, or anything in it, look at a request, or at what nobody can?
fn is_of_requests(condition: &Condition) -> bool {
    match condition {
        Condition::All(of) | Condition::One(of) => of.iter().any(is_of_requests),
        Condition::Not(of) => is_of_requests(of),
        Condition::Header(_) | Condition::Path(_) | Condition::Metadata(_) | Condition::Undecidable(_) => true,
        _ => false,
    }
}

/// What is left of a condition of a denial; `None` if nothing is, and then it is met by everybody.
fn rest(condition: &Condition) -> Option<Condition> {
    match condition {
        Condition::All(of) => {
            let left: Vec<_> = of.iter().filter_map(rest).collect();
            (!left.is_empty()).then_some(Condition::All(left))
        }
        other if is_of_requests(other) => None,
        other => Some(other.clone()),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_core::config::StringMatch;

    use super::*;

    fn policy(permissions: Vec<Condition>, principals: Vec<Condition>) -> RbacPolicy {
        RbacPolicy { permissions, principals }
    }

    /// AZ5: of what speaks of requests an ALLOW loses the rule, and a DENY the condition.
    #[test]
    fn what_speaks_of_requests_allows_nothing_and_denies_more() {
        let path = || Condition::Path(StringMatch::Exact { value: "/a".to_owned(), ignore_case: false });
        let ip = || Condition::DirectIp("10.0.0.0/8".parse().unwrap());
        let not = |of| Condition::Not(Box::new(of));
        let rules = |action| RbacRules {
            action,
            policies: [
                ("connection".into(), policy(vec![Condition::Any], vec![Condition::All(vec![ip()])])),
                ("mixed".into(), policy(vec![Condition::All(vec![path(), Condition::DestinationPort(1)])], vec![ip()])),
                (
                    "other".into(),
                    policy(vec![path(), Condition::DestinationPort(1)], vec![not(Condition::One(vec![path()]))]),
                ),
            ]
            .into(),
            audit: AuditCondition::None,
        };
        let allowed = stripped(&rules(RbacAction::Allow));
        assert_eq!(allowed.policies.keys().map(|name| &**name).collect::<Vec<_>>(), ["connection"]);
        let denied = stripped(&rules(RbacAction::Deny)).policies;
        assert_eq!(denied["connection"], policy(vec![Condition::Any], vec![Condition::All(vec![ip()])]));
        assert_eq!(denied["mixed"], policy(vec![Condition::All(vec![Condition::DestinationPort(1)])], vec![ip()]));
        assert_eq!(denied["other"], policy(vec![Condition::Any, Condition::DestinationPort(1)], vec![Condition::Any]));
    }
}
