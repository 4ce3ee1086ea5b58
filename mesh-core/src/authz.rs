//! Rules about who may ask what of a server: RBAC as Envoy has it, compiled once and asked by every request.
//!
//! Policies are alternatives; one matches when any of its permissions and any of its principals does. `ALLOW` refuses whom
//! no policy matches, `DENY` whom one does, `LOG` nobody; rules that are not there pass everybody, rules without policies
//! match nobody (gRFC A41). Several sets of rules are asked in the order in which they stand.
//!
//! **What cannot be decided is denied.** A condition is met, not met, or unknown (a value that is no text, a matcher this
//! library does not have), and so is everything built of it: nothing that hangs on the unknown is allowed, nothing that
//! hangs on it escapes a denial, and turning it round does not make it known.

use std::sync::Arc;

use crate::{
    admit::InboundView,
    config::{self, AuditCondition, Name, Rbac, RbacAction},
    error::CompileError,
    jwt::Jwt,
};

mod condition;
mod metadata;
pub mod question;

use condition::{Rule, Truth, any};

/// Compiled rules of one filter.
#[derive(Debug)]
pub struct Engine {
    rules: Option<Rules>,
    shadow: Option<Rules>,
    prefix: Name,
}

#[derive(Debug)]
struct Rules {
    action: RbacAction,
    audit: AuditCondition,
    /// By name.
    policies: Vec<Policy>,
}

#[derive(Debug)]
struct Policy {
    name: Name,
    /// It looks at requests.
    of_requests: bool,
    permissions: Vec<Rule>,
    principals: Vec<Rule>,
}

/// What rules say of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Verdict {
    /// It may pass.
    pub allowed: bool,
    /// The policy that decided, if one did: the first that matches, or of which it cannot be said.
    pub policy: Option<Name>,
    /// Whether that policy matches could not be told.
    pub unknown: bool,
}

/// What guards said of a request beside letting it pass or not: for logs, and for guards behind them.
#[derive(Debug, Default)]
pub struct Heard {
    /// In the order in which they were said; at most one a guard and kind.
    pub notes: Vec<Note>,
}

/// One thing said.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Note {
    /// What is told.
    pub kind: NoteKind,
    /// What the rules say.
    pub verdict: Verdict,
    /// Of shadow rules, in front of the name of what they found.
    pub prefix: Name,
}

/// Why something is told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NoteKind {
    /// A decision that is not enforced (AZ6).
    Shadow,
    /// A policy of the action `LOG` matched (AZ7).
    Log,
    /// The rules ask that the decision be told (AZ7).
    Audit,
}

impl Engine {
    pub(crate) fn compile(config: &Rbac, field: &str) -> Result<Self, CompileError> {
        let compile = |rules: &Option<config::RbacRules>, of: &str| {
            rules.as_ref().map(|rules| Rules::compile(rules, &format!("{field}.{of}"))).transpose()
        };
        Ok(Self {
            rules: compile(&config.rules, "rules")?,
            shadow: compile(&config.shadow, "shadow_rules")?,
            prefix: config.shadow_prefix.clone(),
        })
    }

    /// May the request pass? What is to be told of it is added to `heard`.
    pub fn decide(&self, view: &InboundView<'_>, heard: &mut Heard) -> Verdict {
        if let Some(shadow) = &self.shadow {
            let verdict = shadow.decide(view);
            heard.notes.push(Note { kind: NoteKind::Shadow, verdict, prefix: self.prefix.clone() });
        }
        let Some(rules) = &self.rules else { return Verdict { allowed: true, policy: None, unknown: false } };
        let verdict = rules.decide(view);
        let kind = match (rules.action, rules.audit, verdict.allowed) {
            (RbacAction::Log, ..) if verdict.policy.is_some() => Some(NoteKind::Log),
            (_, AuditCondition::OnDenyAndAllow, _)
            | (_, AuditCondition::OnAllow, true)
            | (_, AuditCondition::OnDeny, false) => Some(NoteKind::Audit),
            _ => None,
        };
        if let Some(kind) = kind {
            heard.notes.push(Note { kind, verdict: verdict.clone(), prefix: Name::default() });
        }
        verdict
    }
}

impl Rules {
    fn compile(config: &config::RbacRules, field: &str) -> Result<Self, CompileError> {
        let mut policies = Vec::with_capacity(config.policies.len());
        for (name, policy) in &config.policies {
            let compile = |list: &[config::Condition], of: &str| {
                let at = format!("{field}.policies[{name:?}].{of}");
                list.iter().map(|condition| Rule::compile(condition, &at)).collect::<Result<Vec<_>, _>>()
            };
            let permissions = compile(&policy.permissions, "permissions")?;
            let principals = compile(&policy.principals, "principals")?;
            let of_requests = permissions.iter().chain(&principals).any(Rule::is_of_requests);
            policies.push(Policy { name: name.clone(), of_requests, permissions, principals });
        }
        Ok(Self { action: config.action, audit: config.audit, policies })
    }

    fn decide(&self, view: &InboundView<'_>) -> Verdict {
        let mut unknown = None;
        let mut matched = None;
        for policy in &self.policies {
            // What speaks of requests allows no connection, even where another of its alternatives does not. Source: istiod, of TCP.
            let is_void = view.bytes && policy.of_requests && self.action == RbacAction::Allow;
            match if is_void { Truth::No } else { policy.matches(view) } {
                Truth::Yes => {
                    matched = Some(&policy.name);
                    break;
                }
                Truth::Unknown if unknown.is_none() => unknown = Some(&policy.name),
                Truth::Unknown | Truth::No => {}
            }
        }
        let (policy, is_unknown) = match matched {
            Some(policy) => (Some(policy), false),
            None => (unknown, unknown.is_some()),
        };
        let allowed = match self.action {
            RbacAction::Allow => matched.is_some(),
            RbacAction::Deny => policy.is_none(),
            RbacAction::Log => true,
        };
        Verdict { allowed, policy: policy.cloned(), unknown: is_unknown }
    }
}

impl Policy {
    fn matches(&self, view: &InboundView<'_>) -> Truth {
        any(&self.permissions, view).and(|| any(&self.principals, view))
    }
}

impl Verdict {
    /// As Envoy tells it in `%RESPONSE_CODE_DETAILS%`: `rbac_access_denied_matched_policy[NAME]`.
    pub fn details(&self) -> String {
        format!("rbac_access_denied_matched_policy[{}]", self.policy.as_deref().unwrap_or("none"))
    }
}

impl Heard {
    /// Have shadow rules found such a policy? One of which they cannot say whether it matches counts.
    pub fn found(&self, wanted: &config::ShadowMatch) -> bool {
        self.notes.iter().any(|note| {
            note.kind == NoteKind::Shadow
                && note.prefix == wanted.prefix
                && note.verdict.policy.as_ref().is_some_and(|policy| wanted.policy.is_match(policy))
        })
    }
}

/// One compiled guard. Those that are no rules are asked by whoever serves; see [`Admit::Ask`](crate::admit::Admit::Ask).
#[derive(Debug)]
pub(crate) enum Guard {
    Rbac(Engine),
    Jwt(Arc<Jwt>),
    Ask { when: Option<config::ShadowMatch> },
}

/// What the requests of a port must pass, compiled.
#[derive(Debug)]
pub(crate) struct Guards(pub(crate) Vec<Guard>);

impl Guards {
    pub(crate) fn compile(config: &[config::Guard], field: &str) -> Result<Self, CompileError> {
        let compile = |(i, guard): (usize, &config::Guard)| {
            Ok(match guard {
                config::Guard::Rbac(rbac) => Guard::Rbac(Engine::compile(rbac, &format!("{field}.guards[{i}]"))?),
                config::Guard::Jwt(jwt) => Guard::Jwt(Arc::new(Jwt::compile(jwt)?)),
                config::Guard::ExtAuthz(service) => Guard::Ask { when: service.when.clone() },
            })
        };
        config.iter().enumerate().map(compile).collect::<Result<_, _>>().map(Self)
    }
}

/// An engine of its own, for those who ask one set of rules only.
///
/// # Errors
///
/// A condition names a header that is none.
pub fn compile(config: &Rbac) -> Result<Arc<Engine>, CompileError> {
    Engine::compile(config, "rbac").map(Arc::new)
}

#[cfg(test)]
mod tests;
