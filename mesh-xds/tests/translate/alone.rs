//! Every field of what guards a door, set alone: rules, tokens and TLS, over the protocol's own description of them. It changes
//! what is enforced, or the resource is refused; what is merely told of is on a short list, with the reason.

use mesh_xds::{
    proto::{
        Any, DESCRIPTORS,
        envoy::config::{
            core::v3::TypedExtensionConfig,
            rbac::v3::rbac::{AuditLoggingOptions, audit_logging_options::AuditLoggerConfig},
        },
    },
    translate,
};
use prost::Message;
use prost_reflect::{
    DescriptorPool, DynamicMessage, FieldDescriptor, Kind, MapKey, MessageDescriptor, ReflectMessage, Value,
};
use serde_json::{Value as Json, json};

const LISTENER: &str = "envoy.config.listener.v3.Listener";
const CLUSTER: &str = "envoy.config.cluster.v3.Cluster";
const RBAC: &str = "/filter_chains/0/filters/0/typed_config/http_filters/1/typed_config";
const JWT: &str = "/filter_chains/0/filters/0/typed_config/http_filters/0/typed_config";
const DOWN: &str = "/filter_chains/0/transport_socket/typed_config";
const UP: &str = "/transport_socket/typed_config";

/// Fields that may be set without effect, and why.
const TOLD: &[(&str, &str)] = &[
    ("envoy.extensions.filters.http.rbac.v3.RBAC.rules_stat_prefix", "names of statistics"),
    ("envoy.extensions.filters.http.rbac.v3.RBAC.track_per_rule_stats", "statistics"),
    ("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication.stat_prefix", "names of statistics"),
    ("envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.jwt_cache_config", "how many proven tokens are kept"),
    ("envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks.async_fetch", "when keys are fetched"),
    ("envoy.extensions.filters.http.jwt_authn.v3.RemoteJwks.4", "retry_policy: how often keys are asked for"),
    ("envoy.config.core.v3.DataSource.5", "watched_directory: when files are read again"),
    ("envoy.extensions.transport_sockets.tls.v3.TlsParameters.cipher_suites", "there are no weak ones here"),
    ("envoy.extensions.transport_sockets.tls.v3.TlsParameters.ecdh_curves", "there are no weak ones here"),
];

/// Fields that say nothing where they stand, and why.
const IDLE: &[(&str, &str)] = &[
    ("envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext.max_session_keys", "how many sessions are kept"),
    (
        "envoy.extensions.transport_sockets.tls.v3.SdsSecretConfig.sds_config",
        "the name says which, and this process where",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.trusted_ca",
        "what is fetched takes its place",
    ),
    (
        "envoy.extensions.transport_sockets.tls.v3.CertificateValidationContext.system_root_certs",
        "the mesh's roots alone count",
    ),
    ("envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication.requirement_map", "a name that no rule uses"),
];

fn any(kind: &str, mut fields: Json) -> Json {
    fields["@type"] = json!(format!("type.googleapis.com/{kind}"));
    fields
}

fn common() -> Json {
    let ads = json!({"ads": {}});
    json!({
        "tls_certificate_sds_secret_configs": [{"name": "default", "sds_config": ads}],
        "tls_params": {},
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": [
                {"san_type": "URI", "matcher": {"exact": "spiffe://a/ns/b/sa/c"}}]},
            "validation_context_sds_secret_config": {"name": "ROOTCA", "sds_config": ads},
        },
    })
}

fn listener() -> Json {
    let metadata = json!({"filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}], "value": {"present_match": true}});
    let header = json!({"name": "x", "string_match": {"exact": "y"}});
    let rules = json!({
        "action": "ALLOW",
        "policies": {"p": {
            "permissions": [{"any": true}, {"header": header}, {"metadata": metadata},
                {"destination_ip": {"address_prefix": "10.0.0.0", "prefix_len": 8}}, {"url_path": {"path": {"exact": "/a"}}},
                {"and_rules": {"rules": [{"any": true}]}}, {"destination_port_range": {"start": 1, "end": 9}},
                {"sourced_metadata": {"metadata_matcher": metadata}}],
            "principals": [{"any": true}, {"authenticated": {"principal_name": {"exact": "spiffe://a"}}},
                {"and_ids": {"ids": [{"any": true}]}}],
        }},
        "audit_logging_options": {"audit_condition": "ON_DENY"},
    });
    let rbac = any("envoy.extensions.filters.http.rbac.v3.RBAC", json!({"rules": rules}));
    let remote = json!({"http_uri": {"uri": "http://issuer/keys", "cluster": "issuer", "timeout": "5s"}});
    let jwt = any(
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        json!({
            "providers": {
                "p": {"issuer": "i", "local_jwks": {"inline_string": "{\"keys\":[]}"}, "from_headers": [{"name": "x-token"}],
                    "claim_to_headers": [{"header_name": "x-sub", "claim_name": "sub"}]},
                "q": {"issuer": "j", "remote_jwks": remote},
            },
            "requirement_map": {"r": {"provider_name": "p"}},
            "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [{"provider_name": "p"}, {"allow_missing": {}}]}}},
                {"match": {"prefix": "/q"}, "requires": {"provider_and_audiences": {"provider_name": "p", "audiences": ["a"]}}}],
        }),
    );
    let manager = any(
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        json!({
            "route_config": {"name": "in", "virtual_hosts": [{"name": "all", "domains": ["*"],
                "routes": [{"match": {"prefix": "/"}, "non_forwarding_action": {}}]}]},
            "http_filters": [{"name": "envoy.filters.http.jwt_authn", "typed_config": jwt},
                {"name": "envoy.filters.http.rbac", "typed_config": rbac},
                {"name": "envoy.filters.http.router", "typed_config": any("envoy.extensions.filters.http.router.v3.Router", json!({}))}],
        }),
    );
    let tls = any(
        "envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext",
        json!({"require_client_certificate": true, "common_tls_context": common()}),
    );
    json!({
        "name": "virtualInbound",
        "address": {"socket_address": {"address": "0.0.0.0", "port_value": 15006}},
        "filter_chains": [{
            "filter_chain_match": {"destination_port": 80, "transport_protocol": "tls"},
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}],
            "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls},
        }],
    })
}

fn cluster() -> Json {
    let tls = any(
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        json!({"sni": "a.example", "common_tls_context": common()}),
    );
    json!({"name": "c", "type": "STATIC", "connect_timeout": "1s",
        "transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": tls}})
}

/// Where a message of each kind stands.
fn places() -> Vec<(&'static str, String)> {
    let policy = |rest: &str| (LISTENER, format!("{RBAC}/rules/policies/p{rest}"));
    let jwt = |rest: &str| (LISTENER, format!("{JWT}{rest}"));
    let mut all = vec![
        (LISTENER, RBAC.to_owned()),
        (LISTENER, format!("{RBAC}/rules")),
        (LISTENER, format!("{RBAC}/rules/audit_logging_options")),
        policy(""),
        policy("/permissions/0"),
        policy("/permissions/1/header"),
        policy("/permissions/1/header/string_match"),
        policy("/permissions/2/metadata"),
        policy("/permissions/2/metadata/path/0"),
        policy("/permissions/2/metadata/value"),
        policy("/permissions/3/destination_ip"),
        policy("/permissions/4/url_path"),
        policy("/permissions/4/url_path/path"),
        policy("/permissions/5/and_rules"),
        policy("/permissions/6/destination_port_range"),
        policy("/permissions/7/sourced_metadata"),
        policy("/principals/0"),
        policy("/principals/1/authenticated"),
        policy("/principals/1/authenticated/principal_name"),
        policy("/principals/2/and_ids"),
        jwt(""),
        jwt("/providers/p"),
        jwt("/providers/p/from_headers/0"),
        jwt("/providers/p/claim_to_headers/0"),
        jwt("/providers/p/local_jwks"),
        jwt("/providers/q/remote_jwks"),
        jwt("/providers/q/remote_jwks/http_uri"),
        jwt("/rules/0"),
        jwt("/rules/0/requires"),
        jwt("/rules/0/requires/requires_any"),
        jwt("/rules/1/requires/provider_and_audiences"),
    ];
    for (kind, at) in [(LISTENER, DOWN), (CLUSTER, UP)] {
        all.push((kind, at.to_owned()));
        for rest in [
            "",
            "/tls_params",
            "/tls_certificate_sds_secret_configs/0",
            "/combined_validation_context",
            "/combined_validation_context/default_validation_context",
            "/combined_validation_context/default_validation_context/match_typed_subject_alt_names/0",
            "/combined_validation_context/default_validation_context/match_typed_subject_alt_names/0/matcher",
        ] {
            all.push((kind, format!("{at}/common_tls_context{rest}")));
        }
    }
    all
}

/// What a resource comes to: what is enforced, and the paths that are told to have no effect.
type Outcome = Result<(String, Vec<String>), String>;

fn decode(kind: &str, bytes: Vec<u8>) -> Outcome {
    if kind == LISTENER {
        let decoded = translate::listener(&bytes.into()).map_err(|error| error.to_string())?;
        return Ok((format!("{:?}", decoded.value), decoded.ignored));
    }
    let decoded = translate::cluster(&bytes.into()).map_err(|error| error.to_string())?;
    Ok((format!("{:?}", decoded.value), decoded.ignored))
}

fn encode(pool: &DescriptorPool, kind: &str, json: &Json) -> Result<Vec<u8>, String> {
    let of = pool.get_message_by_name(kind).unwrap();
    let message = DynamicMessage::deserialize(of.clone(), json).map_err(|error| error.to_string())?;
    let bytes = message.encode_to_vec();
    if kind != LISTENER {
        return Ok(bytes);
    }
    // Somebody is told of decisions: a logger whose type has no description here.
    let typed_config = any_of("envoy.extensions.rbac.audit_loggers.stream.v3.StdoutAuditLog");
    let audit_logger = TypedExtensionConfig { name: "stdout".to_owned(), typed_config: Some(typed_config) };
    let options = AuditLoggingOptions {
        logger_configs: vec![AuditLoggerConfig { audit_logger: Some(audit_logger), is_optional: false }],
        ..AuditLoggingOptions::default()
    };
    let at = format!("{RBAC}/rules/audit_logging_options");
    let path: Vec<&str> = at.split('/').skip(1).collect();
    Ok(inject(&of, &bytes, &path, &options.encode_to_vec()))
}

fn any_of(kind: &str) -> Any {
    Any { type_url: format!("type.googleapis.com/{kind}"), ..Any::default() }
}

/// Something a field can be, which is not what it is when it is not there.
fn sample(field: &FieldDescriptor) -> Json {
    let one = match field.kind() {
        Kind::Bool => json!(true),
        Kind::String if field.name().contains("ip") => json!("10.0.0.1"),
        Kind::String => json!("x"),
        Kind::Bytes => json!("eA=="),
        Kind::Float | Kind::Double => json!(1.5),
        // The newest version is spoken anyway.
        Kind::Enum(_) if field.name() == "tls_maximum_protocol_version" => json!("TLSv1_2"),
        Kind::Enum(of) => json!(of.values().last().unwrap().name()),
        Kind::Message(of) => match of.full_name() {
            "envoy.extensions.filters.http.jwt_authn.v3.JwtProvider.NormalizePayload" => {
                json!({"space_delimited_claims": ["x"]})
            }
            "google.protobuf.BoolValue" => json!(true),
            "google.protobuf.UInt32Value" | "google.protobuf.UInt64Value" => json!(1),
            "google.protobuf.Duration" => json!("1s"),
            "google.protobuf.Any" => any("envoy.extensions.filters.http.router.v3.Router", json!({})),
            "envoy.type.matcher.v3.StringMatcher" => json!({"prefix": "x"}),
            "envoy.type.matcher.v3.RegexMatcher" => json!({"regex": "x"}),
            "envoy.type.matcher.v3.PathMatcher" => json!({"path": {"prefix": "/x"}}),
            "envoy.type.matcher.v3.ValueMatcher" => json!({"bool_match": true}),
            "envoy.type.matcher.v3.DoubleMatcher" => json!({"exact": 2}),
            "envoy.type.v3.Int64Range" | "envoy.type.v3.Int32Range" | "envoy.type.v3.DoubleRange" => {
                json!({"start": 1, "end": 2})
            }
            "envoy.config.core.v3.CidrRange" => json!({"address_prefix": "10.1.0.0", "prefix_len": 16}),
            "envoy.config.rbac.v3.Permission" | "envoy.config.rbac.v3.Principal" => {
                json!({"url_path": {"path": {"exact": "/x"}}})
            }
            "envoy.config.route.v3.HeaderMatcher" => json!({"name": "z", "present_match": true}),
            "envoy.extensions.filters.http.jwt_authn.v3.JwtRequirement" => json!({"allow_missing": {}}),
            _ => json!({}),
        },
        _ => json!(1),
    };
    match (field.is_map(), field.is_list()) {
        (true, _) => json!({"x": {}}),
        (_, true) => json!([one]),
        _ => one,
    }
}

/// The bytes of a message with more bytes at the end of one within it.
fn inject(of: &MessageDescriptor, bytes: &[u8], path: &[&str], more: &[u8]) -> Vec<u8> {
    if of.full_name() == "google.protobuf.Any" {
        let any = Any::decode(bytes).unwrap();
        let inner = of.parent_pool().get_message_by_name(any.message_name()).unwrap();
        return Any { value: inject(&inner, &any.value, path, more).into(), ..any }.encode_to_vec();
    }
    let Some((first, rest)) = path.split_first() else { return [bytes, more].concat() };
    let mut message = DynamicMessage::decode(of.clone(), bytes).unwrap();
    let field = of.get_field_by_name(first).unwrap();
    let changed = |value: &Value, rest: &[&str]| {
        let inner = value.as_message().unwrap();
        let of = inner.descriptor();
        let bytes = inject(&of, &inner.encode_to_vec(), rest, more);
        Value::Message(DynamicMessage::decode(of, &*bytes).unwrap())
    };
    match message.get_field_mut(&field) {
        Value::Map(map) => {
            let value = map.get_mut(&MapKey::String(rest[0].to_owned())).unwrap();
            *value = changed(value, &rest[1..]);
        }
        Value::List(list) => {
            let value = &mut list[rest[0].parse::<usize>().unwrap()];
            *value = changed(value, &rest[1..]);
        }
        value => *value = changed(value, rest),
    }
    message.encode_to_vec()
}

/// The message that stands at a place.
fn message_at(of: MessageDescriptor, json: &Json, path: &[&str]) -> MessageDescriptor {
    if of.full_name() == "google.protobuf.Any" {
        let name = json["@type"].as_str().unwrap().rsplit('/').next().unwrap();
        return message_at(of.parent_pool().get_message_by_name(name).unwrap(), json, path);
    }
    let Some((first, rest)) = path.split_first() else { return of };
    let field = of.get_field_by_name(first).unwrap();
    let Kind::Message(inner) = field.kind() else { panic!("{first} is no message") };
    if field.is_map() {
        let value = inner.map_entry_value_field();
        let Kind::Message(inner) = value.kind() else { panic!("{first} holds no messages") };
        return message_at(inner, &json[*first][rest[0]], &rest[1..]);
    }
    if field.is_list() {
        return message_at(inner, &json[*first][rest[0].parse::<usize>().unwrap()], &rest[1..]);
    }
    message_at(inner, &json[*first], rest)
}

/// AN1, AN2, AN13, AZ1, AZ10: no field of rules, tokens and TLS is taken without being acted on, of those known and of those left out,
/// conditions in CEL among them.
#[test]
fn every_field_that_guards_is_enforced_or_refused() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    let (mut acted, mut refused, mut told, mut dropped) = (0, 0, Vec::new(), Vec::new());
    for (kind, at) in places() {
        let base = if kind == LISTENER { listener() } else { cluster() };
        let bytes = encode(&pool, kind, &base).unwrap();
        let (was, noted) = decode(kind, bytes.clone()).unwrap();
        let path: Vec<&str> = at.split('/').skip(1).collect();
        let of = message_at(pool.get_message_by_name(kind).unwrap(), &base, &path);
        let mut judge = |name: String, outcome: Outcome| match outcome {
            Err(_) => refused += 1,
            Ok((is, _)) if is != was => acted += 1,
            Ok((_, ignored)) if ignored != noted => told.push(name),
            Ok(_) => dropped.push(name),
        };
        for field in of.fields() {
            let mut json = base.clone();
            let place = json.pointer_mut(&at).unwrap();
            let before = place.clone();
            for other in field.containing_oneof().into_iter().flat_map(|one| one.fields().collect::<Vec<_>>()) {
                place.as_object_mut().unwrap().remove(other.name());
            }
            let sample = sample(&field);
            place[field.name()] = sample.clone();
            // What it is already says nothing.
            if before.get(field.name()) == Some(&sample) {
                continue;
            }
            let bytes = encode(&pool, kind, &json).unwrap_or_else(|error| panic!("{}: {error}", field.full_name()));
            judge(field.full_name().to_owned(), decode(kind, bytes));
        }
        let left_out = of.reserved_ranges().flat_map(|range| range.take(64).collect::<Vec<_>>());
        for number in left_out {
            for (wire, content) in [(0_u32, vec![1]), (2, vec![1, b'x'])] {
                let mut more = Vec::new();
                prost::encoding::encode_varint(u64::from(number << 3 | wire), &mut more);
                more.extend(content);
                let of_kind = pool.get_message_by_name(kind).unwrap();
                judge(format!("{}.{number}", of.full_name()), decode(kind, inject(&of_kind, &bytes, &path, &more)));
            }
        }
    }
    println!("{acted} acted on, {refused} refused, told: {told:?}");
    dropped.retain(|name| !IDLE.iter().any(|(known, _)| known == name));
    assert!(dropped.is_empty(), "taken without effect and without a word: {dropped:#?}");
    told.retain(|name| !TOLD.iter().any(|(known, _)| known == name));
    told.dedup();
    assert!(told.is_empty(), "told of only: {told:#?}");
    assert!(acted > 60 && refused > 60, "{acted} acted on, {refused} refused");
}

/// AZ7: a logger of a type nobody knows here closes the port, unless the rules can do without it; then that is told.
#[test]
fn unknown_loggers_are_refused_unless_they_are_optional() {
    let pool = DescriptorPool::decode(DESCRIPTORS).unwrap();
    for optional in [false, true] {
        let router = any("envoy.extensions.filters.http.router.v3.Router", json!({}));
        let logger = json!({"name": "strange", "typed_config": router});
        let mut json = listener();
        *json.pointer_mut(&format!("{RBAC}/rules/audit_logging_options")).unwrap() = json!({"audit_condition": "ON_DENY", "logger_configs": [{"audit_logger": logger, "is_optional": optional}]});
        let bytes = encode(&pool, LISTENER, &json).unwrap();
        let decoded = translate::listener(&bytes.into()).unwrap();
        let translate::Listener::Inbound(ports) = decoded.value else { panic!() };
        let refused = ports[0].1.refused.as_deref().unwrap_or_default();
        assert_eq!(refused.contains("strange"), !optional, "{refused}");
        assert_eq!(decoded.ignored.iter().any(|path| path.contains("logger_configs")), optional);
    }
}
