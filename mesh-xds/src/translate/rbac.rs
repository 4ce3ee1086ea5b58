//! Rules about who may ask what. Source: Envoy HTTP filter `RBAC`, gRFC A41.
//!
//! A kind of condition that is not known here is kept as one that cannot be decided, so that what hangs on it stays closed;
//! what is wrong or unknown beside the conditions refuses the filter.

use std::collections::BTreeMap;

use mesh_core::config::{
    AuditCondition, Condition, MetadataMatch, Name, PathMatch, Rbac, RbacAction, RbacPolicy, RbacRules, StringMatch,
    ValueMatch,
};

use super::{
    matcher, path_template,
    read::{Ignored, Within, Wrong, element, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::{
            core::v3::{CidrRange, TypedExtensionConfig},
            rbac::v3::{
                MetadataSource, Permission, Policy, Principal, Rbac as Rules, SourcedMetadata, permission,
                permission::Rule,
                principal,
                principal::{Authenticated, Identifier},
                rbac::{
                    Action, AuditLoggingOptions,
                    audit_logging_options::{AuditCondition as Audited, AuditLoggerConfig},
                },
            },
        },
        extensions::filters::{http::rbac::v3::Rbac as Message, network::rbac::v3::Rbac as OfConnections},
        r#type::{
            matcher::v3::{
                DoubleMatcher, ListMatcher, MetadataMatcher, OrMatcher, PathMatcher, ValueMatcher, double_matcher,
                list_matcher, metadata_matcher, path_matcher, value_matcher,
            },
            v3::{DoubleRange, Int32Range},
        },
    },
};

/// The filter's name.
pub(super) const RBAC: &str = "envoy.filters.http.rbac";
/// The network filter's name.
pub(super) const NETWORK_RBAC: &str = "envoy.filters.network.rbac";
/// The audit logger that every implementation has (gRFC A59).
const STDOUT: &str = "envoy.extensions.rbac.audit_loggers.stream.v3.StdoutAuditLog";
const STDOUT_NAME: &str = "envoy.rbac.audit_loggers.stdout";

pub(super) fn decode(message: Message, place: &str, ignored: &mut Ignored) -> Result<Rbac, Wrong> {
    for (is_set, field) in [
        (!message.rules_stat_prefix.is_empty(), "rules_stat_prefix"),
        (message.track_per_rule_stats, "track_per_rule_stats"),
    ] {
        if is_set {
            ignored.add(place, field);
        }
    }
    Ok(Rbac {
        rules: message.rules.map(|it| rules(it, place, ignored)).transpose().under("rules")?,
        shadow: message.shadow_rules.map(|it| rules(it, place, ignored)).transpose().under("shadow_rules")?,
        shadow_prefix: message.shadow_rules_stat_prefix.into(),
    })
}

/// Rules about connections: the network filter. That its rules cannot speak of requests is the engine's to know.
pub(super) fn decode_network(message: OfConnections, place: &str, ignored: &mut Ignored) -> Result<Rbac, Wrong> {
    if message.enforcement_type != 0 {
        // What a connection is asked about does not change with what is sent.
        ignored.add(place, "enforcement_type");
    }
    Ok(Rbac {
        rules: message.rules.map(|it| rules(it, place, ignored)).transpose().under("rules")?,
        shadow: message.shadow_rules.map(|it| rules(it, place, ignored)).transpose().under("shadow_rules")?,
        shadow_prefix: message.shadow_rules_stat_prefix.into(),
    })
}

fn rules(message: Rules, place: &str, ignored: &mut Ignored) -> Result<RbacRules, Wrong> {
    let action = match Action::try_from(message.action) {
        Ok(Action::Allow) => RbacAction::Allow,
        Ok(Action::Deny) => RbacAction::Deny,
        Ok(Action::Log) => RbacAction::Log,
        Err(_) => return Err(wrong("action", format!("is {}, which is none", message.action))),
    };
    let mut policies = BTreeMap::new();
    for (name, policy) in message.policies {
        let read = policy_of(policy, place, ignored).within(|| format!("policies[{name:?}]"))?;
        policies.insert(Name::from(name), read);
    }
    let audit = message.audit_logging_options.map(|it| audit(it, place, ignored)).transpose();
    Ok(RbacRules { action, policies, audit: audit.under("audit_logging_options")?.unwrap_or_default() })
}

fn audit(message: AuditLoggingOptions, place: &str, ignored: &mut Ignored) -> Result<AuditCondition, Wrong> {
    let mut any = false;
    for (i, logger) in message.logger_configs.into_iter().enumerate() {
        let config = logger.audit_logger.unwrap_or_default();
        if config.typed_config.as_ref().is_some_and(|any| any.message_name() == STDOUT) {
            any = true;
        } else if logger.is_optional {
            ignored.add(place, "audit_logging_options.logger_configs");
        } else {
            let at = element("logger_configs", i, &config.name);
            return Err(wrong(at, "is of a type that is not supported, and it is not optional"));
        }
    }
    let condition = match Audited::try_from(message.audit_condition) {
        Ok(Audited::None) => AuditCondition::None,
        Ok(Audited::OnDeny) => AuditCondition::OnDeny,
        Ok(Audited::OnAllow) => AuditCondition::OnAllow,
        Ok(Audited::OnDenyAndAllow) => AuditCondition::OnDenyAndAllow,
        Err(_) => return Err(wrong("audit_condition", format!("is {}, which is none", message.audit_condition))),
    };
    Ok(if any { condition } else { AuditCondition::None })
}

fn policy_of(message: Policy, place: &str, ignored: &mut Ignored) -> Result<RbacPolicy, Wrong> {
    if message.permissions.is_empty() || message.principals.is_empty() {
        return Err(wrong("", "needs at least one permission and one principal"));
    }
    let mut read = RbacPolicy::default();
    for (i, one) in message.permissions.into_iter().enumerate() {
        read.permissions.push(permission(one, place, ignored).within(|| format!("permissions[{i}]"))?);
    }
    for (i, one) in message.principals.into_iter().enumerate() {
        read.principals.push(principal(one, place, ignored).within(|| format!("principals[{i}]"))?);
    }
    Ok(read)
}

fn permission(message: Permission, place: &str, ignored: &mut Ignored) -> Result<Condition, Wrong> {
    let mut set = |set: permission::Set, field: &str| {
        if set.rules.is_empty() {
            return Err(wrong(field, "is empty"));
        }
        let list = set.rules.into_iter().map(|one| permission(one, place, ignored));
        list.collect::<Result<Vec<_>, _>>().under(field)
    };
    let Some(rule) = message.rule else { return Err(wrong("rule", "is missing or of a kind that is not supported")) };
    Ok(match rule {
        Rule::AndRules(of) => Condition::All(set(of, "and_rules")?),
        Rule::OrRules(of) => Condition::One(set(of, "or_rules")?),
        Rule::Any(any) => always(any)?,
        Rule::Header(header) => matcher::header(header).map(Condition::Header).under("header")?,
        Rule::UrlPath(path) => Condition::Path(url_path(path).under("url_path")?),
        Rule::DestinationIp(range) => Condition::DestinationIp(cidr(range).under("destination_ip")?),
        Rule::DestinationPort(port) => {
            let port = u16::try_from(port).map_err(|_| wrong("destination_port", format!("{port} is no port")))?;
            Condition::DestinationPort(port)
        }
        Rule::DestinationPortRange(Int32Range { start, end }) => match (u32::try_from(start), u32::try_from(end)) {
            (Ok(start), Ok(end)) if start < end && end <= 65536 => Condition::DestinationPorts { start, end },
            _ => return Err(wrong("destination_port_range", format!("{start}..{end} is no range of ports"))),
        },
        Rule::Metadata(wanted) => metadata(wanted).under("metadata")?,
        Rule::NotRule(of) => Condition::Not(Box::new(permission(*of, place, ignored).under("not_rule")?)),
        Rule::RequestedServerName(name) => Condition::ServerName(value::string(name).under("requested_server_name")?),
        Rule::Matcher(config) => undecidable("matcher", &config, place, ignored),
        Rule::UriTemplate(config) => match path_template::decode(config, ignored).under("uri_template")?.path() {
            PathMatch::Regex(regex) => Condition::Path(StringMatch::Regex(regex)),
            _ => return Err(wrong("uri_template", "is no template")),
        },
        Rule::SourcedMetadata(of) => sourced(of, place, ignored)?,
    })
}

fn principal(message: Principal, place: &str, ignored: &mut Ignored) -> Result<Condition, Wrong> {
    let mut set = |set: principal::Set, field: &str| {
        if set.ids.is_empty() {
            return Err(wrong(field, "is empty"));
        }
        let list = set.ids.into_iter().map(|one| principal(one, place, ignored));
        list.collect::<Result<Vec<_>, _>>().under(field)
    };
    let Some(identifier) = message.identifier else {
        return Err(wrong("identifier", "is missing or of a kind that is not supported"));
    };
    Ok(match identifier {
        Identifier::AndIds(of) => Condition::All(set(of, "and_ids")?),
        Identifier::OrIds(of) => Condition::One(set(of, "or_ids")?),
        Identifier::Any(any) => always(any)?,
        Identifier::Authenticated(Authenticated { principal_name }) => {
            Condition::Peer(principal_name.map(value::string).transpose().under("authenticated.principal_name")?)
        }
        Identifier::SourceIp(range) => Condition::DirectIp(cidr(range).under("source_ip")?),
        Identifier::DirectRemoteIp(range) => Condition::DirectIp(cidr(range).under("direct_remote_ip")?),
        Identifier::RemoteIp(range) => Condition::RemoteIp(cidr(range).under("remote_ip")?),
        Identifier::Header(header) => matcher::header(header).map(Condition::Header).under("header")?,
        Identifier::UrlPath(path) => Condition::Path(url_path(path).under("url_path")?),
        Identifier::Metadata(wanted) => metadata(wanted).under("metadata")?,
        Identifier::FilterState(state) => {
            ignored.add(place, "filter_state (what hangs on it is refused)");
            Condition::Undecidable(format!("filter_state {:?}", state.key))
        }
        Identifier::NotId(of) => Condition::Not(Box::new(principal(*of, place, ignored).under("not_id")?)),
        Identifier::SourcedMetadata(of) => sourced(of, place, ignored)?,
        Identifier::Custom(config) => undecidable("custom", &config, place, ignored),
    })
}

/// Something only Envoy has. What hangs on it is refused, and that is told.
fn undecidable(field: &str, config: &TypedExtensionConfig, place: &str, ignored: &mut Ignored) -> Condition {
    ignored.add(place, &format!("{field} (what hangs on it is refused)"));
    Condition::Undecidable(format!("{field} {:?}", config.name))
}

fn always(any: bool) -> Result<Condition, Wrong> {
    if any { Ok(Condition::Any) } else { Err(wrong("any", "can only be true")) }
}

fn sourced(message: SourcedMetadata, place: &str, ignored: &mut Ignored) -> Result<Condition, Wrong> {
    if message.metadata_source != i32::from(MetadataSource::Dynamic) {
        ignored.add(place, "sourced_metadata.metadata_source (what hangs on it is refused)");
        return Ok(Condition::Undecidable("metadata of the route".to_owned()));
    }
    let wanted = message.metadata_matcher.ok_or_else(|| wrong("sourced_metadata.metadata_matcher", "is missing"))?;
    metadata(wanted).under("sourced_metadata.metadata_matcher")
}

fn url_path(message: PathMatcher) -> Result<StringMatch, Wrong> {
    match message.rule {
        Some(path_matcher::Rule::Path(path)) => value::string(path).under("path"),
        None => Err(wrong("path", "is missing")),
    }
}

fn cidr(message: CidrRange) -> Result<ipnet::IpNet, Wrong> {
    let prefix = message.address_prefix;
    let bad = |why: &str| wrong("address_prefix", format!("{prefix:?} {why}"));
    let address: std::net::IpAddr = prefix.parse().map_err(|_| bad("is no address"))?;
    // Absent is 0, as everywhere in protobuf: every address of the family.
    let length = message.prefix_len.unwrap_or(0);
    let length = u8::try_from(length).map_err(|_| bad("has too long a prefix"))?;
    Ok(ipnet::IpNet::new(address, length).map_err(|_| bad("has too long a prefix"))?.trunc())
}

/// A condition on metadata.
pub(super) fn metadata(message: MetadataMatcher) -> Result<Condition, Wrong> {
    let mut path = Vec::with_capacity(message.path.len());
    for segment in message.path {
        match segment.segment {
            Some(metadata_matcher::path_segment::Segment::Key(key)) if !key.is_empty() => path.push(Name::from(key)),
            _ => return Err(wrong("path", "has a segment without a key")),
        }
    }
    let value = message.value.ok_or_else(|| wrong("value", "is missing"))?;
    if message.filter.is_empty() || path.is_empty() {
        return Err(wrong("", "needs a filter and a path"));
    }
    let value = of_value(value).under("value")?;
    Ok(Condition::Metadata(MetadataMatch { filter: message.filter.into(), path, value, invert: message.invert }))
}

fn of_value(message: ValueMatcher) -> Result<ValueMatch, Wrong> {
    use value_matcher::MatchPattern as Pattern;
    Ok(match message.match_pattern {
        Some(Pattern::NullMatch(_)) => ValueMatch::Null,
        Some(Pattern::DoubleMatch(double)) => match double.match_pattern {
            Some(double_matcher::MatchPattern::Range(DoubleRange { start, end })) => ValueMatch::Range { start, end },
            Some(double_matcher::MatchPattern::Exact(number)) => ValueMatch::Number(number),
            None => return Err(wrong("double_match", "is empty")),
        },
        Some(Pattern::StringMatch(text)) => ValueMatch::Text(value::string(text).under("string_match")?),
        Some(Pattern::BoolMatch(value)) => ValueMatch::Bool(value),
        Some(Pattern::PresentMatch(value)) => ValueMatch::Present(value),
        Some(Pattern::ListMatch(list)) => match list.match_pattern {
            Some(list_matcher::MatchPattern::OneOf(one)) => ValueMatch::OneOf(Box::new(of_value(*one)?)),
            None => return Err(wrong("list_match", "is empty")),
        },
        Some(Pattern::OrMatch(or)) if or.value_matchers.len() < 2 => {
            return Err(wrong("or_match", "needs at least two"));
        }
        Some(Pattern::OrMatch(or)) => {
            ValueMatch::Or(or.value_matchers.into_iter().map(of_value).collect::<Result<_, _>>()?)
        }
        None => return Err(wrong("match_pattern", "is missing or of a kind that is not supported")),
    })
}

pub(super) fn encode(rbac: &Rbac) -> Any {
    Any::pack(&Message {
        rules: rbac.rules.as_ref().map(encode_rules),
        shadow_rules: rbac.shadow.as_ref().map(encode_rules),
        shadow_rules_stat_prefix: rbac.shadow_prefix.to_string(),
        ..Message::default()
    })
}

/// The network filter of the same rules.
pub(super) fn encode_network(rbac: &Rbac) -> Any {
    Any::pack(&OfConnections {
        rules: rbac.rules.as_ref().map(encode_rules),
        shadow_rules: rbac.shadow.as_ref().map(encode_rules),
        stat_prefix: "tcp.".to_owned(),
        shadow_rules_stat_prefix: rbac.shadow_prefix.to_string(),
        ..OfConnections::default()
    })
}

fn encode_rules(rules: &RbacRules) -> Rules {
    let action = match rules.action {
        RbacAction::Allow => Action::Allow,
        RbacAction::Deny => Action::Deny,
        RbacAction::Log => Action::Log,
    };
    let encode = |policy: &RbacPolicy| Policy {
        permissions: policy.permissions.iter().map(encode_permission).collect(),
        principals: policy.principals.iter().map(encode_principal).collect(),
    };
    let condition = match rules.audit {
        AuditCondition::None => None,
        AuditCondition::OnDeny => Some(Audited::OnDeny),
        AuditCondition::OnAllow => Some(Audited::OnAllow),
        AuditCondition::OnDenyAndAllow => Some(Audited::OnDenyAndAllow),
    };
    let logger = || {
        let any = Any { type_url: format!("type.googleapis.com/{STDOUT}"), ..Any::default() };
        let audit_logger = TypedExtensionConfig { name: STDOUT_NAME.to_owned(), typed_config: Some(any) };
        AuditLoggerConfig { audit_logger: Some(audit_logger), is_optional: true }
    };
    Rules {
        action: action.into(),
        policies: rules.policies.iter().map(|(name, policy)| (name.to_string(), encode(policy))).collect(),
        audit_logging_options: condition
            .map(|condition| AuditLoggingOptions { audit_condition: condition.into(), logger_configs: vec![logger()] }),
    }
}

fn encode_permission(condition: &Condition) -> Permission {
    let set = |of: &[Condition]| permission::Set { rules: of.iter().map(encode_permission).collect() };
    let rule = match condition {
        Condition::Any => Rule::Any(true),
        Condition::All(of) => Rule::AndRules(set(of)),
        Condition::One(of) => Rule::OrRules(set(of)),
        Condition::Not(of) => Rule::NotRule(Box::new(encode_permission(of))),
        Condition::Header(header) => Rule::Header(matcher::encode_header(header)),
        Condition::Path(path) => Rule::UrlPath(encode_path(path)),
        Condition::DestinationIp(net) => Rule::DestinationIp(encode_cidr(net)),
        Condition::DestinationPort(port) => Rule::DestinationPort((*port).into()),
        Condition::DestinationPorts { start, end } => {
            let bound = |port: u32| i32::try_from(port).unwrap_or(i32::MAX);
            Rule::DestinationPortRange(Int32Range { start: bound(*start), end: bound(*end) })
        }
        Condition::ServerName(name) => Rule::RequestedServerName(value::encode_string(name)),
        Condition::Metadata(wanted) => Rule::Metadata(encode_metadata(wanted)),
        other => Rule::Matcher(strange(other)),
    };
    Permission { rule: Some(rule) }
}

fn encode_principal(condition: &Condition) -> Principal {
    let set = |of: &[Condition]| principal::Set { ids: of.iter().map(encode_principal).collect() };
    let identifier = match condition {
        Condition::Any => Identifier::Any(true),
        Condition::All(of) => Identifier::AndIds(set(of)),
        Condition::One(of) => Identifier::OrIds(set(of)),
        Condition::Not(of) => Identifier::NotId(Box::new(encode_principal(of))),
        Condition::Header(header) => Identifier::Header(matcher::encode_header(header)),
        Condition::Path(path) => Identifier::UrlPath(encode_path(path)),
        Condition::Peer(name) => {
            Identifier::Authenticated(Authenticated { principal_name: name.as_ref().map(value::encode_string) })
        }
        Condition::DirectIp(net) => Identifier::DirectRemoteIp(encode_cidr(net)),
        Condition::RemoteIp(net) => Identifier::RemoteIp(encode_cidr(net)),
        Condition::Metadata(wanted) => Identifier::Metadata(encode_metadata(wanted)),
        other => Identifier::Custom(strange(other)),
    };
    Principal { identifier: Some(identifier) }
}

/// What cannot be decided stays so on the other side, under a name no Envoy has.
fn strange(condition: &Condition) -> TypedExtensionConfig {
    let name = match condition {
        Condition::Undecidable(name) => name.clone(),
        _ => "out_of_place".to_owned(),
    };
    TypedExtensionConfig { name, typed_config: Some(Any::default()) }
}

fn encode_path(path: &StringMatch) -> PathMatcher {
    PathMatcher { rule: Some(path_matcher::Rule::Path(value::encode_string(path))) }
}

fn encode_cidr(net: &ipnet::IpNet) -> CidrRange {
    CidrRange { address_prefix: net.addr().to_string(), prefix_len: Some(net.prefix_len().into()) }
}

pub(super) fn encode_metadata(wanted: &MetadataMatch) -> MetadataMatcher {
    let segment = |key: &Name| metadata_matcher::PathSegment {
        segment: Some(metadata_matcher::path_segment::Segment::Key(key.to_string())),
    };
    MetadataMatcher {
        filter: wanted.filter.to_string(),
        path: wanted.path.iter().map(segment).collect(),
        value: Some(encode_value(&wanted.value)),
        invert: wanted.invert,
    }
}

fn encode_value(value: &ValueMatch) -> ValueMatcher {
    use value_matcher::MatchPattern as Pattern;
    let double = |pattern| Pattern::DoubleMatch(DoubleMatcher { match_pattern: Some(pattern) });
    let pattern = match value {
        ValueMatch::Null => Pattern::NullMatch(value_matcher::NullMatch {}),
        ValueMatch::Range { start, end } => {
            double(double_matcher::MatchPattern::Range(DoubleRange { start: *start, end: *end }))
        }
        ValueMatch::Number(number) => double(double_matcher::MatchPattern::Exact(*number)),
        ValueMatch::Text(text) => Pattern::StringMatch(value::encode_string(text)),
        ValueMatch::Bool(value) => Pattern::BoolMatch(*value),
        ValueMatch::Present(value) => Pattern::PresentMatch(*value),
        ValueMatch::OneOf(one) => {
            let one = list_matcher::MatchPattern::OneOf(Box::new(encode_value(one)));
            Pattern::ListMatch(Box::new(ListMatcher { match_pattern: Some(one) }))
        }
        ValueMatch::Or(of) => Pattern::OrMatch(OrMatcher { value_matchers: of.iter().map(encode_value).collect() }),
    };
    ValueMatcher { match_pattern: Some(pattern) }
}
