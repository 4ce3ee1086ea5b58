//! Tokens of end users. Source: Envoy HTTP filter `envoy.filters.http.jwt_authn`, as istiod writes it for a
//! `RequestAuthentication`.
//!
//! A field that is not known refuses the listener: what a requirement leaves out, it lets through.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use mesh_core::config::{JwtAuthn, JwtKeys, JwtProvider, JwtRequirement, JwtRule, Name};

use super::{
    matcher,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::{
    Any,
    envoy::{
        config::core::v3::{DataSource, HttpUri, data_source::Specifier, http_uri::HttpUpstreamType},
        extensions::filters::http::jwt_authn::v3::{
            JwksAsyncFetch, JwtAuthentication, JwtClaimToHeader, JwtHeader, JwtProvider as ProviderMessage,
            JwtRequirement as RequirementMessage, JwtRequirementAndList, JwtRequirementOrList, ProviderWithAudiences,
            RemoteJwks, RequirementRule,
            jwt_claim_to_header::PathSegment,
            jwt_provider::{JwksSourceSpecifier, NormalizePayload},
            jwt_requirement::RequiresType,
            requirement_rule::RequirementType,
        },
    },
};

/// The name of the filter.
pub(super) const JWT: &str = "envoy.filters.http.jwt_authn";
/// Envoy's default of `RemoteJwks.cache_duration`.
const REFRESH: Duration = Duration::from_secs(600);
/// Envoy's default of `clock_skew_seconds`.
const SKEW: u32 = 60;
/// Requirements within requirements that are read.
const DEPTH: usize = 16;

type Named = BTreeMap<String, RequirementMessage>;

pub(super) fn decode(message: JwtAuthentication, place: &str, ignored: &mut Ignored) -> Result<JwtAuthn, Wrong> {
    if !message.stat_prefix.is_empty() {
        ignored.add(place, "stat_prefix");
    }
    let mut providers = BTreeMap::new();
    for (name, message) in message.providers {
        let at = || format!("providers[{name:?}]");
        let read = provider(message, place, ignored).within(at)?;
        providers.insert(Name::from(name.as_str()), Arc::new(read));
    }
    let mut rules = Vec::with_capacity(message.rules.len());
    for (i, rule) in message.rules.into_iter().enumerate() {
        rules.push(
            decode_rule(rule, &message.requirement_map, &providers, place, ignored).within(|| format!("rules[{i}]"))?,
        );
    }
    Ok(JwtAuthn {
        providers,
        rules,
        bypass_cors_preflight: message.bypass_cors_preflight,
        hide_reason: message.strip_failure_response,
    })
}

type Providers = BTreeMap<Name, Arc<JwtProvider>>;

fn decode_rule(
    rule: RequirementRule,
    named: &Named,
    providers: &Providers,
    place: &str,
    ignored: &mut Ignored,
) -> Result<JwtRule, Wrong> {
    let matches = rule.r#match.ok_or_else(|| wrong("match", "is missing"))?;
    let matches = matcher::decode(matches, &format!("{place}.rules.match"), ignored).under("match")?;
    let requirement = match rule.requirement_type {
        None => None,
        Some(RequirementType::Requires(message)) => decode_requirement(message, providers, DEPTH).under("requires")?,
        Some(RequirementType::RequirementName(name)) => {
            let message =
                named.get(&name).ok_or_else(|| wrong("requirement_name", format!("{name:?} is not there")))?;
            decode_requirement(message.clone(), providers, DEPTH).within(|| format!("requirement_map[{name:?}]"))?
        }
    };
    Ok(JwtRule { matches, requirement })
}

/// `None` is a requirement of nothing.
fn decode_requirement(
    message: RequirementMessage,
    providers: &Providers,
    depth: usize,
) -> Result<Option<JwtRequirement>, Wrong> {
    let Some(depth) = depth.checked_sub(1) else { return Err(wrong("", "is nested too deeply")) };
    let known = |name: String, audiences| match providers.get_key_value(name.as_str()) {
        Some((name, _)) => Ok(JwtRequirement::Provider { name: Arc::clone(name), audiences }),
        None => Err(wrong("provider_name", format!("{name:?} is no provider"))),
    };
    let list = |list: Vec<RequirementMessage>, field: &str| {
        if list.len() < 2 {
            return Err(wrong(field, "must have two elements or more"));
        }
        let element = |(i, message)| {
            let one = decode_requirement(message, providers, depth).within(|| format!("{field}.requirements[{i}]"))?;
            one.ok_or_else(|| wrong(format!("{field}.requirements[{i}]"), "requires nothing"))
        };
        list.into_iter().enumerate().map(element).collect::<Result<Vec<_>, _>>()
    };
    Ok(Some(match message.requires_type {
        None => return Ok(None),
        Some(RequiresType::ProviderName(name)) => known(name, None)?,
        Some(RequiresType::ProviderAndAudiences(both)) => {
            known(both.provider_name, Some(both.audiences)).under("provider_and_audiences")?
        }
        Some(RequiresType::RequiresAny(any)) => JwtRequirement::Any(list(any.requirements, "requires_any")?),
        Some(RequiresType::RequiresAll(all)) => JwtRequirement::All(list(all.requirements, "requires_all")?),
        Some(RequiresType::AllowMissing(())) => JwtRequirement::AllowMissing,
        Some(RequiresType::AllowMissingOrFailed(())) => JwtRequirement::AllowMissingOrFailed,
    }))
}

fn provider(message: ProviderMessage, place: &str, ignored: &mut Ignored) -> Result<JwtProvider, Wrong> {
    if message.jwt_cache_config.is_some() {
        // Proven tokens are always remembered, so many and no more.
        ignored.add(place, "providers.jwt_cache_config");
    }
    let header = |name: String, field: &str| match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(name) => Ok(Name::from(name.as_str())),
        Err(_) => Err(wrong(field, format!("{name:?} is no header name"))),
    };
    let keys = match message.jwks_source_specifier {
        Some(JwksSourceSpecifier::LocalJwks(source)) => inline(source).under("local_jwks")?,
        Some(JwksSourceSpecifier::RemoteJwks(remote)) => fetched(remote, place, ignored).under("remote_jwks")?,
        None => return Err(wrong("jwks_source_specifier", "is missing")),
    };
    let from_headers = message.from_headers.into_iter().enumerate();
    let from_headers =
        from_headers.map(|(i, it)| Ok((header(it.name, &format!("from_headers[{i}].name"))?, it.value_prefix)));
    let claim_headers = message.claim_to_headers.into_iter().enumerate().map(|(i, it)| {
        let name = header(it.header_name, &format!("claim_to_headers[{i}].header_name"))?;
        let path = match it.claim_path.is_empty() {
            true => it.claim_name.split('.').map(str::to_owned).collect(),
            false => it.claim_path.into_iter().map(|segment| segment.key).collect(),
        };
        Ok((name, path))
    });
    let some = |text: String| (!text.is_empty()).then_some(text);
    let skew = if message.clock_skew_seconds == 0 { SKEW } else { message.clock_skew_seconds };
    Ok(JwtProvider {
        issuer: message.issuer,
        audiences: message.audiences,
        subjects: message.subjects.map(value::string).transpose().under("subjects")?,
        require_expiration: message.require_expiration,
        max_lifetime: message.max_lifetime.map(|it| value::duration(it, "max_lifetime")).transpose()?,
        clock_skew: Duration::from_secs(skew.into()),
        keys,
        forward: message.forward,
        from_headers: from_headers.collect::<Result<_, _>>()?,
        from_params: message.from_params,
        from_cookies: message.from_cookies,
        payload_header: some(message.forward_payload_header)
            .map(|it| header(it, "forward_payload_header"))
            .transpose()?,
        pad_payload: message.pad_forward_payload_header,
        payload_name: some(message.payload_in_metadata),
        header_name: some(message.header_in_metadata),
        space_delimited: message.normalize_payload_in_metadata.map(|it| it.space_delimited_claims).unwrap_or_default(),
        claim_headers: claim_headers.collect::<Result<_, _>>()?,
        before_routing: message.clear_route_cache,
    })
}

fn inline(source: DataSource) -> Result<JwtKeys, Wrong> {
    let text = match source.specifier {
        Some(Specifier::InlineString(text)) => text,
        Some(Specifier::InlineBytes(bytes)) => {
            String::from_utf8(bytes.to_vec()).map_err(|_| wrong("inline_bytes", "is no text"))?
        }
        Some(_) => return Err(wrong("specifier", "must be inline_string or inline_bytes; files are not read for it")),
        None => return Err(wrong("specifier", "is missing")),
    };
    Ok(JwtKeys::Inline(text.into()))
}

fn fetched(remote: RemoteJwks, place: &str, ignored: &mut Ignored) -> Result<JwtKeys, Wrong> {
    let uri = remote.http_uri.ok_or_else(|| wrong("http_uri", "is missing"))?;
    let Some(HttpUpstreamType::Cluster(cluster)) =
        uri.http_upstream_type.filter(|HttpUpstreamType::Cluster(it)| !it.is_empty())
    else {
        return Err(wrong("http_uri.cluster", "is missing"));
    };
    match uri.uri.parse::<http::Uri>() {
        Ok(parsed) if parsed.host().is_some() && matches!(parsed.scheme_str(), Some("http" | "https")) => {}
        _ => return Err(wrong("http_uri.uri", format!("{:?} is no address of a key set", uri.uri))),
    }
    if remote.async_fetch.is_some_and(|it| !it.fast_listener || it.failed_refetch_duration.is_some()) {
        // No listener waits for keys; they are asked for when they are first needed, and after failures later and later.
        ignored.add(place, "providers.remote_jwks.async_fetch");
    }
    let timeout = uri.timeout.ok_or_else(|| wrong("http_uri.timeout", "is missing"))?;
    let refresh = remote.cache_duration.map(|it| value::duration(it, "cache_duration")).transpose()?;
    Ok(JwtKeys::Remote {
        uri: uri.uri,
        cluster: cluster.into(),
        timeout: value::duration(timeout, "http_uri.timeout")?,
        refresh: refresh.unwrap_or(REFRESH),
    })
}

/// The settings of the filter.
pub(super) fn encode(config: &JwtAuthn) -> Any {
    let rule = |rule: &JwtRule| RequirementRule {
        r#match: Some(matcher::encode(&rule.matches)),
        requirement_type: rule.requirement.as_ref().map(|it| RequirementType::Requires(encode_requirement(it))),
    };
    Any::pack(&JwtAuthentication {
        providers: config.providers.iter().map(|(name, it)| (name.to_string(), encode_provider(it))).collect(),
        rules: config.rules.iter().map(rule).collect(),
        bypass_cors_preflight: config.bypass_cors_preflight,
        strip_failure_response: config.hide_reason,
        ..JwtAuthentication::default()
    })
}

fn encode_requirement(requirement: &JwtRequirement) -> RequirementMessage {
    let list = |list: &[JwtRequirement]| list.iter().map(encode_requirement).collect();
    let requires = match requirement {
        JwtRequirement::Provider { name, audiences: None } => RequiresType::ProviderName(name.to_string()),
        JwtRequirement::Provider { name, audiences: Some(audiences) } => {
            RequiresType::ProviderAndAudiences(ProviderWithAudiences {
                provider_name: name.to_string(),
                audiences: audiences.clone(),
            })
        }
        JwtRequirement::Any(any) => RequiresType::RequiresAny(JwtRequirementOrList { requirements: list(any) }),
        JwtRequirement::All(all) => RequiresType::RequiresAll(JwtRequirementAndList { requirements: list(all) }),
        JwtRequirement::AllowMissing => RequiresType::AllowMissing(()),
        JwtRequirement::AllowMissingOrFailed => RequiresType::AllowMissingOrFailed(()),
    };
    RequirementMessage { requires_type: Some(requires) }
}

fn encode_provider(provider: &JwtProvider) -> ProviderMessage {
    let keys = match &provider.keys {
        JwtKeys::Inline(text) => {
            JwksSourceSpecifier::LocalJwks(DataSource { specifier: Some(Specifier::InlineString(text.to_string())) })
        }
        JwtKeys::Remote { uri, cluster, timeout, refresh } => JwksSourceSpecifier::RemoteJwks(RemoteJwks {
            http_uri: Some(HttpUri {
                uri: uri.clone(),
                http_upstream_type: Some(HttpUpstreamType::Cluster(cluster.to_string())),
                timeout: Some(value::encode_duration(*timeout)),
            }),
            cache_duration: Some(value::encode_duration(*refresh)),
            async_fetch: Some(JwksAsyncFetch { fast_listener: true, failed_refetch_duration: None }),
        }),
    };
    let normal = NormalizePayload { space_delimited_claims: provider.space_delimited.clone() };
    ProviderMessage {
        issuer: provider.issuer.clone(),
        audiences: provider.audiences.clone(),
        subjects: provider.subjects.as_ref().map(value::encode_string),
        require_expiration: provider.require_expiration,
        max_lifetime: provider.max_lifetime.map(value::encode_duration),
        jwks_source_specifier: Some(keys),
        forward: provider.forward,
        from_headers: provider
            .from_headers
            .iter()
            .map(|(name, prefix)| JwtHeader { name: name.to_string(), value_prefix: prefix.clone() })
            .collect(),
        from_params: provider.from_params.clone(),
        from_cookies: provider.from_cookies.clone(),
        forward_payload_header: provider.payload_header.as_deref().unwrap_or_default().to_owned(),
        pad_forward_payload_header: provider.pad_payload,
        payload_in_metadata: provider.payload_name.clone().unwrap_or_default(),
        header_in_metadata: provider.header_name.clone().unwrap_or_default(),
        normalize_payload_in_metadata: (!provider.space_delimited.is_empty()).then_some(normal),
        clock_skew_seconds: skew_seconds(provider.clock_skew),
        claim_to_headers: provider.claim_headers.iter().map(|(name, path)| encode_claim(name, path)).collect(),
        clear_route_cache: provider.before_routing,
        ..ProviderMessage::default()
    }
}

/// Absent is the default.
fn skew_seconds(skew: Duration) -> u32 {
    u32::try_from(skew.as_secs()).map_or(u32::MAX, |seconds| if seconds == SKEW { 0 } else { seconds })
}

fn encode_claim(name: &Name, path: &[String]) -> JwtClaimToHeader {
    let (claim_name, claim_path) = match path.iter().any(|part| part.contains('.')) {
        false => (path.join("."), Vec::new()),
        true => (String::new(), path.iter().map(|key| PathSegment { key: key.clone() }).collect()),
    };
    JwtClaimToHeader { header_name: name.to_string(), claim_name, claim_path }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_core::config::StringMatch;
    use prost::Message;

    use super::*;

    fn rich() -> JwtAuthn {
        let one = JwtProvider {
            issuer: "https://issuer".to_owned(),
            audiences: vec!["a".to_owned()],
            subjects: Some(StringMatch::Prefix { value: "spiffe://".to_owned(), ignore_case: false }),
            require_expiration: true,
            max_lifetime: Some(Duration::from_secs(60)),
            clock_skew: Duration::from_secs(5),
            keys: JwtKeys::Remote {
                uri: "https://issuer/keys".to_owned(),
                cluster: "outbound|443||issuer".into(),
                timeout: Duration::from_secs(5),
                refresh: Duration::from_secs(300),
            },
            forward: true,
            from_headers: vec![("x-jwt".into(), "Token ".to_owned())],
            from_params: vec!["jwt".to_owned()],
            from_cookies: vec!["session".to_owned()],
            payload_header: Some("x-payload".into()),
            pad_payload: true,
            payload_name: Some("payload".to_owned()),
            header_name: Some("header".to_owned()),
            space_delimited: vec!["scope".to_owned()],
            claim_headers: vec![
                ("x-sub".into(), vec!["sub".to_owned()]),
                ("x-k".into(), vec!["a".to_owned(), "b".to_owned()]),
                ("x-url".into(), vec!["https://a.b/c".to_owned(), "d".to_owned()]),
            ],
            before_routing: true,
        };
        let two = JwtProvider { keys: JwtKeys::Inline("{}".into()), ..JwtProvider::default() };
        let of = |name: &str, audiences| JwtRequirement::Provider { name: name.into(), audiences };
        let requirement = JwtRequirement::Any(vec![
            of("one", None),
            JwtRequirement::All(vec![of("two", Some(vec!["b".to_owned()])), JwtRequirement::AllowMissingOrFailed]),
            JwtRequirement::AllowMissing,
        ]);
        JwtAuthn {
            providers: [("one".into(), Arc::new(one)), ("two".into(), Arc::new(two))].into(),
            rules: vec![JwtRule { requirement: Some(requirement), ..JwtRule::default() }, JwtRule::default()],
            bypass_cors_preflight: true,
            hide_reason: true,
        }
    }

    fn read(any: &Any) -> Result<(JwtAuthn, Vec<String>), Wrong> {
        let mut ignored = Ignored::default();
        let message: JwtAuthentication = ignored.open(any, "f")?;
        let config = decode(message, "f", &mut ignored)?;
        Ok((config, ignored.into_list()))
    }

    /// AN13, AN14: what is written is read again, whatever is set.
    #[test]
    fn jwt_authentication_survives_the_wire() {
        let (config, ignored) = read(&encode(&rich())).unwrap();
        assert_eq!(config, rich());
        assert!(ignored.is_empty(), "{ignored:?}");
    }

    /// AN13: a field that is not enforced refuses the whole, wherever it is; what is only tuning is reported.
    #[test]
    fn what_is_not_enforced_refuses() {
        let change = |bytes: &[u8]| {
            let mut any = encode(&rich());
            any.value = [&any.value[..], bytes].concat().into();
            read(&any)
        };
        // filter_state_rules, an unknown field, a provider with failed_status_in_metadata.
        let provider = ProviderMessage {
            jwks_source_specifier: Some(JwksSourceSpecifier::LocalJwks(DataSource {
                specifier: Some(Specifier::InlineString(String::new())),
            })),
            ..ProviderMessage::default()
        };
        let entry = |provider: &[u8]| {
            let entry = [&[0x0a, 0x01, b'x', 0x12, provider.len() as u8], provider].concat();
            [&[0x0a, entry.len() as u8], &entry[..]].concat()
        };
        let provider = provider.encode_to_vec();
        assert!(change(&entry(&provider)).is_ok());
        let failed_status = [&provider[..], &[0x82, 0x01, 0x01, b'x']].concat();
        for (bytes, field) in [
            (vec![0x1a, 0x02, 0x0a, 0x00], "filter_state_rules"),
            (vec![0xf8, 0x06, 0x01], "#111"),
            (entry(&failed_status), "failed_status_in_metadata"),
        ] {
            let wrong = change(&bytes).unwrap_err();
            assert!(wrong.field.contains(field), "{field}: {wrong:?}");
        }
        let mut message: JwtAuthentication = encode(&rich()).unpack().unwrap().unwrap();
        message.providers.get_mut("one").unwrap().jwt_cache_config = Some(Default::default());
        assert_eq!(read(&Any::pack(&message)).unwrap().1, ["f.providers.jwt_cache_config"]);
    }

    /// AN13, AN14: what contradicts itself is refused by name.
    #[test]
    fn wrong_jwt_authentication_is_refused() {
        let message = || -> JwtAuthentication { encode(&rich()).unpack().unwrap().unwrap() };
        type Change = fn(&mut JwtAuthentication);
        let cases: [(Change, &str); 7] = [
            (|it| drop(it.providers.remove("two")), "provider_name"),
            (|it| it.rules[1].r#match = None, "rules[1].match"),
            (
                |it| it.rules[1].requirement_type = Some(RequirementType::RequirementName("x".to_owned())),
                "requirement_name",
            ),
            (|it| it.providers.get_mut("one").unwrap().jwks_source_specifier = None, "jwks_source_specifier"),
            (
                |it| it.providers.get_mut("one").unwrap().forward_payload_header = "a b".to_owned(),
                "forward_payload_header",
            ),
            (
                |it| {
                    let any = JwtRequirementOrList { requirements: vec![RequirementMessage::default()] };
                    let requires = RequirementMessage { requires_type: Some(RequiresType::RequiresAny(any)) };
                    it.rules[0].requirement_type = Some(RequirementType::Requires(requires));
                },
                "requires_any",
            ),
            (
                |it| {
                    let uri = HttpUri {
                        uri: "file:///etc/passwd".to_owned(),
                        http_upstream_type: Some(HttpUpstreamType::Cluster("c".to_owned())),
                        timeout: None,
                    };
                    let remote = RemoteJwks { http_uri: Some(uri), ..RemoteJwks::default() };
                    it.providers.get_mut("one").unwrap().jwks_source_specifier =
                        Some(JwksSourceSpecifier::RemoteJwks(remote));
                },
                "http_uri.uri",
            ),
        ];
        for (change, field) in cases {
            let mut message = message();
            change(&mut message);
            let wrong = read(&Any::pack(&message)).unwrap_err();
            assert!(wrong.field.contains(field), "{field}: {wrong:?}");
        }
    }
}
