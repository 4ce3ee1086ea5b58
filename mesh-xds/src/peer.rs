//! Who the other side is, as workloads of an Istio mesh tell each other in the header `x-envoy-peer-metadata`.
//!
//! The header is the base64 form of a `google.protobuf.Struct` with the keys `NAME`, `NAMESPACE`, `WORKLOAD_NAME`,
//! `CLUSTER_ID` and `LABELS`. What cannot be read tells nothing: peers are strangers, and a header is no reason to fail.

use std::collections::BTreeMap;

use base64::{
    Engine,
    alphabet::STANDARD,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use mesh_core::config::{Name, Workload};
use prost::Message;
use prost_types::{Struct, Value, value::Kind};

/// Request and response header with [`encode`]'s value.
pub const PEER_METADATA: &str = "x-envoy-peer-metadata";

/// Request and response header with the node id.
pub const PEER_METADATA_ID: &str = "x-envoy-peer-metadata-id";

/// A header longer than this is not looked at: a workload's description is far below it.
const LONGEST: usize = 16 * 1024;

/// Envoy pads; others need not.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

const CANONICAL_NAME: &str = "service.istio.io/canonical-name";
const CANONICAL_REVISION: &str = "service.istio.io/canonical-revision";

/// The header value that describes `workload`. Parts that are empty are left out.
pub fn encode(workload: &Workload) -> String {
    let labels = structure([
        (CANONICAL_NAME, text(&workload.canonical_name)),
        (CANONICAL_REVISION, text(&workload.canonical_revision)),
        ("app", text(&workload.app)),
        ("version", text(&workload.version)),
    ]);
    let owner = (!workload.name.is_empty() && !workload.namespace.is_empty()).then(|| {
        let owner =
            format!("kubernetes://apis/apps/v1/namespaces/{}/deployments/{}", workload.namespace, workload.name);
        Value { kind: Some(Kind::StringValue(owner)) }
    });
    let description = structure([
        ("NAME", text(&workload.name)),
        ("NAMESPACE", text(&workload.namespace)),
        ("WORKLOAD_NAME", text(&workload.name)),
        ("SERVICE_ACCOUNT", text(&workload.service_account)),
        ("CLUSTER_ID", text(&workload.cluster)),
        ("OWNER", owner),
        ("LABELS", (!labels.fields.is_empty()).then_some(Value { kind: Some(Kind::StructValue(labels)) })),
    ]);
    BASE64.encode(description.encode_to_vec())
}

/// Reads a header value; `None` when it is not one, or says nothing about a workload.
pub fn decode(header: &str) -> Option<Workload> {
    if header.len() > LONGEST {
        return None;
    }
    let bytes = BASE64.decode(header.trim()).ok()?;
    let description = Struct::decode(bytes.as_slice()).ok()?;
    let empty = BTreeMap::new();
    let labels = match description.fields.get("LABELS").and_then(|value| value.kind.as_ref()) {
        Some(Kind::StructValue(labels)) => &labels.fields,
        _ => &empty,
    };
    let name = first(&description.fields, &["WORKLOAD_NAME", "NAME"]);
    let app = first(labels, &["app"]);
    let workload = Workload {
        canonical_name: [first(labels, &[CANONICAL_NAME]), app.clone(), name.clone()]
            .into_iter()
            .find(|name| !name.is_empty())
            .unwrap_or_default(),
        canonical_revision: first(labels, &[CANONICAL_REVISION, "version"]),
        namespace: first(&description.fields, &["NAMESPACE"]),
        service_account: first(&description.fields, &["SERVICE_ACCOUNT"]),
        cluster: first(&description.fields, &["CLUSTER_ID"]),
        version: first(labels, &["version"]),
        app,
        name,
    };
    (workload != Workload::default()).then_some(workload)
}

fn structure<const N: usize>(entries: [(&str, Option<Value>); N]) -> Struct {
    let fields = entries.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    Struct { fields }
}

fn text(value: &str) -> Option<Value> {
    (!value.is_empty()).then(|| Value { kind: Some(Kind::StringValue(value.to_owned())) })
}

/// The first of these keys that has a text.
fn first(fields: &BTreeMap<String, Value>, keys: &[&str]) -> Name {
    let texts = keys.iter().filter_map(|key| match fields.get(*key)?.kind.as_ref()? {
        Kind::StringValue(text) if !text.is_empty() => Some(text.as_str()),
        _ => None,
    });
    texts.map(Name::from).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn a_workload_survives_the_round_trip() {
        let reviews = Workload {
            name: "reviews-v1".into(),
            namespace: "default".into(),
            service_account: "bookinfo-reviews".into(),
            canonical_name: "reviews".into(),
            canonical_revision: "v1".into(),
            cluster: "Kubernetes".into(),
            app: "reviews".into(),
            version: "v1".into(),
        };
        assert_eq!(decode(&encode(&reviews)).unwrap(), reviews);
    }

    #[test]
    fn a_header_as_a_sidecar_writes_it_is_understood() {
        let labels = structure([("app", text("details")), ("version", text("v2"))]);
        let description = structure([
            ("NAME", text("details-v2-7d6-x")),
            ("WORKLOAD_NAME", text("details-v2")),
            ("LABELS", Some(Value { kind: Some(Kind::StructValue(labels)) })),
            ("APP_CONTAINERS", text("details")),
        ]);
        let header = BASE64.encode(description.encode_to_vec());
        for header in [header.as_str(), header.trim_end_matches('=')] {
            let workload = decode(header).unwrap();
            assert_eq!(&*workload.name, "details-v2");
            assert_eq!(&*workload.canonical_name, "details");
            assert_eq!(&*workload.canonical_revision, "v2");
            assert_eq!(&*workload.namespace, "");
        }
    }

    #[test]
    fn what_is_no_description_tells_nothing() {
        let long = "A".repeat(LONGEST + 1);
        for header in ["", "!", "AAAA", "////", long.as_str(), &encode(&Workload::default())] {
            assert_eq!(decode(header), None, "{header:.20}");
        }
    }
}
