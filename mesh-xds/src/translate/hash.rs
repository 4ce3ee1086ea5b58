//! Hash policies of routes and clusters. Source: Envoy `RouteAction.HashPolicy`, gRFC A42 (LB14).

use mesh_core::{
    config::{HashCookie, HashPolicy, HashSource, RoutingPriority},
    hash::HashPolicies,
};
use prost_types::Duration;

use super::{
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::envoy::{
    config::core::v3 as core,
    config::route::v3::route_action::{
        HashPolicy as Message,
        hash_policy::{
            ConnectionProperties, Cookie, CookieAttribute, FilterState, Header, PolicySpecifier, QueryParameter,
        },
    },
    r#type::matcher::v3::RegexMatchAndSubstitute,
};

/// The one key of filter state that there is. Source: gRFC A42.
const CHANNEL: &str = "io.grpc.channel_id";

pub(super) fn decode(messages: Vec<Message>, place: &str, ignored: &mut Ignored) -> Result<Vec<HashPolicy>, Wrong> {
    let mut policies = Vec::with_capacity(messages.len());
    for (i, message) in messages.into_iter().enumerate() {
        let at = || format!("hash_policy[{i}]");
        let terminal = message.terminal;
        let source = source(message, place, ignored).within(at)?;
        policies.extend(source.map(|source| HashPolicy { source, terminal }));
    }
    HashPolicies::compile(&policies).map_err(|error| wrong("hash_policy", error.message))?;
    Ok(policies)
}

/// gRFC A42: what is not supported is passed over.
fn source(message: Message, place: &str, ignored: &mut Ignored) -> Result<Option<HashSource>, Wrong> {
    let missing = |field: &str| Err(wrong(field, "is missing"));
    Ok(Some(match message.policy_specifier {
        Some(PolicySpecifier::Header(header)) if header.header_name.is_empty() => return missing("header.header_name"),
        Some(PolicySpecifier::Header(header)) => HashSource::Header {
            name: header.header_name.to_ascii_lowercase().into(),
            rewrite: header.regex_rewrite.as_ref().map(value::rewrite).transpose().under("header.regex_rewrite")?,
        },
        Some(PolicySpecifier::Cookie(cookie)) if cookie.name.is_empty() => return missing("cookie.name"),
        Some(PolicySpecifier::Cookie(cookie)) => HashSource::Cookie(HashCookie {
            name: cookie.name.into(),
            ttl: cookie.ttl.map(|ttl| value::duration(ttl, "cookie.ttl")).transpose()?,
            path: cookie.path,
            attributes: cookie.attributes.into_iter().map(|attribute| (attribute.name, attribute.value)).collect(),
        }),
        Some(PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true })) => HashSource::SourceIp,
        Some(PolicySpecifier::QueryParameter(query)) if query.name.is_empty() => {
            return missing("query_parameter.name");
        }
        Some(PolicySpecifier::QueryParameter(query)) => HashSource::Query(query.name.into()),
        Some(PolicySpecifier::FilterState(state)) if state.key == CHANNEL => HashSource::Channel,
        Some(PolicySpecifier::FilterState(state)) => {
            ignored.add(place, &format!("hash_policy.filter_state {:?}", state.key));
            return Ok(None);
        }
        Some(PolicySpecifier::ConnectionProperties(_)) | None => {
            ignored.add(place, "hash_policy (of nothing that is supported)");
            return Ok(None);
        }
    }))
}

/// Whose limits count.
pub(super) fn priority(number: i32) -> Result<RoutingPriority, Wrong> {
    match core::RoutingPriority::try_from(number) {
        Ok(core::RoutingPriority::Default) => Ok(RoutingPriority::Default),
        Ok(core::RoutingPriority::High) => Ok(RoutingPriority::High),
        Err(_) => Err(wrong("priority", format!("{number} is no priority"))),
    }
}

pub(super) fn encode_priority(priority: RoutingPriority) -> i32 {
    match priority {
        RoutingPriority::Default => core::RoutingPriority::Default.into(),
        RoutingPriority::High => core::RoutingPriority::High.into(),
    }
}

pub(super) fn encode(policies: &[HashPolicy]) -> Vec<Message> {
    let message = |policy: &HashPolicy| Message {
        terminal: policy.terminal,
        policy_specifier: Some(match &policy.source {
            HashSource::Header { name, rewrite } => PolicySpecifier::Header(Header {
                header_name: name.to_string(),
                regex_rewrite: rewrite.as_ref().map(|(pattern, substitution)| RegexMatchAndSubstitute {
                    pattern: Some(value::encode_regex(pattern)),
                    substitution: substitution.clone(),
                }),
            }),
            HashSource::Cookie(cookie) => PolicySpecifier::Cookie(encode_cookie(cookie)),
            HashSource::SourceIp => PolicySpecifier::ConnectionProperties(ConnectionProperties { source_ip: true }),
            HashSource::Query(name) => PolicySpecifier::QueryParameter(QueryParameter { name: name.to_string() }),
            HashSource::Channel => PolicySpecifier::FilterState(FilterState { key: CHANNEL.to_owned() }),
        }),
    };
    policies.iter().map(message).collect()
}

fn encode_cookie(cookie: &HashCookie) -> Cookie {
    let attribute = |(name, value): &(String, String)| CookieAttribute { name: name.clone(), value: value.clone() };
    Cookie {
        name: cookie.name.to_string(),
        ttl: cookie.ttl.map(|ttl| -> Duration { value::encode_duration(ttl) }),
        path: cookie.path.clone(),
        attributes: cookie.attributes.iter().map(attribute).collect(),
    }
}
