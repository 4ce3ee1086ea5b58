//! What endpoints say of themselves, and subsets of them by it. Source: Envoy `Cluster.LbSubsetConfig`, metadata `envoy.lb`,
//! `RouteAction.metadata_match` (RA8).
//!
//! Values are texts, numbers and truth values; lists and structures are told as ignored.

use std::collections::BTreeMap;

use mesh_core::config::{
    Criteria, Metadata, MetadataValue, Name, SelectorFallback, SubsetFallback, SubsetSelector, Subsets,
};
use prost_types::{ListValue, Struct, Value, value::Kind};

use super::{
    endpoint::LB,
    read::{Ignored, Within, Wrong, wrong},
    value,
};
use crate::proto::envoy::config::{
    cluster::v3::{
        Cluster as Message,
        cluster::{
            LbSubsetConfig,
            lb_subset_config::{
                LbSubsetFallbackPolicy, LbSubsetMetadataFallbackPolicy, LbSubsetSelector,
                lb_subset_selector::LbSubsetSelectorFallbackPolicy,
            },
        },
    },
    core::v3::Metadata as MetadataMessage,
};

/// The key under which criteria list others.
const LIST: &str = "fallback_list";

/// What stands under `envoy.lb`, but for keys with a meaning of their own.
pub(super) fn metadata(
    message: Option<&MetadataMessage>,
    but: &[&str],
    place: &str,
    ignored: &mut Ignored,
) -> Metadata {
    let Some(fields) = value::metadata(message, LB) else { return Metadata::new() };
    from_fields(fields, but, place, ignored)
}

fn from_fields(fields: &BTreeMap<String, Value>, but: &[&str], place: &str, ignored: &mut Ignored) -> Metadata {
    let mut metadata = Metadata::new();
    for (key, value) in fields.iter().filter(|(key, _)| !but.contains(&key.as_str())) {
        let value = match &value.kind {
            Some(Kind::StringValue(text)) => MetadataValue::Text(text.as_str().into()),
            Some(Kind::NumberValue(number)) => MetadataValue::Number(number.to_string().into()),
            Some(Kind::BoolValue(yes)) => MetadataValue::Bool(*yes),
            _ => {
                ignored.add(place, &format!("metadata {LB} {key:?} (is no text, number or truth value)"));
                continue;
            }
        };
        metadata.push((key.as_str().into(), value));
    }
    metadata
}

/// What a route or a destination of it asks of endpoints.
pub(super) fn criteria(message: Option<&MetadataMessage>, place: &str, ignored: &mut Ignored) -> Criteria {
    let place = format!("{place}.metadata_match");
    let mut criteria = Criteria { metadata: metadata(message, &[LIST], &place, ignored), list: Vec::new() };
    if let Some(Kind::ListValue(list)) = value::metadata(message, LB).and_then(|fields| fields.get(LIST)?.kind.as_ref())
    {
        for value in &list.values {
            let Some(Kind::StructValue(fields)) = &value.kind else { continue };
            let own = from_fields(&fields.fields, &[], &place, ignored);
            criteria.list.push(merged(&criteria.metadata, own));
        }
    }
    criteria
}

/// A destination's criteria over its route's: of one key the destination's counts.
pub(super) fn over(route: &Criteria, own: Criteria) -> Criteria {
    let list = if own.list.is_empty() { route.list.clone() } else { own.list };
    let list = list.into_iter().map(|one| merged(&route.metadata, merged(&own.metadata, one))).collect();
    Criteria { metadata: merged(&route.metadata, own.metadata), list }
}

fn merged(below: &Metadata, above: Metadata) -> Metadata {
    let mut both: BTreeMap<Name, MetadataValue> = below.iter().cloned().collect();
    both.extend(above);
    both.into_iter().collect()
}

pub(super) fn encode_criteria(criteria: &Criteria) -> Option<MetadataMessage> {
    let mut fields = encode_metadata(&criteria.metadata).fields;
    if !criteria.list.is_empty() {
        let one = |metadata: &Metadata| Value { kind: Some(Kind::StructValue(encode_metadata(metadata))) };
        let list = ListValue { values: criteria.list.iter().map(one).collect() };
        fields.insert(LIST.to_owned(), Value { kind: Some(Kind::ListValue(list)) });
    }
    (!fields.is_empty()).then(|| MetadataMessage {
        filter_metadata: [(LB.to_owned(), Struct { fields })].into(),
        ..MetadataMessage::default()
    })
}

pub(super) fn encode_metadata(metadata: &[(Name, MetadataValue)]) -> Struct {
    let encode = |value: &MetadataValue| match value {
        MetadataValue::Text(text) => Kind::StringValue(text.to_string()),
        MetadataValue::Number(number) => Kind::NumberValue(number.parse().unwrap_or_default()),
        MetadataValue::Bool(yes) => Kind::BoolValue(*yes),
    };
    let fields = metadata.iter().map(|(key, value)| (key.to_string(), Value { kind: Some(encode(value)) }));
    Struct { fields: fields.collect() }
}

/// The subsets of a cluster. Beside `load_balancing_policy` they count for nothing, as in Envoy.
pub(super) fn decode(message: &Message, ignored: &mut Ignored) -> Result<Option<Subsets>, Wrong> {
    let Some(config) = &message.lb_subset_config else { return Ok(None) };
    if message.load_balancing_policy.is_some() {
        ignored.add("", "lb_subset_config");
        return Ok(None);
    }
    let selectors = config.subset_selectors.iter().enumerate();
    let selectors = selectors.map(|(i, message)| selector(message).within(|| format!("subset_selectors[{i}]")));
    let default = config.default_subset.as_ref().map(|it| &it.fields);
    Ok(Some(Subsets {
        selectors: selectors.collect::<Result<_, _>>()?,
        fallback: match LbSubsetFallbackPolicy::try_from(config.fallback_policy) {
            Ok(LbSubsetFallbackPolicy::NoFallback) => SubsetFallback::None,
            Ok(LbSubsetFallbackPolicy::AnyEndpoint) => SubsetFallback::Any,
            Ok(LbSubsetFallbackPolicy::DefaultSubset) => SubsetFallback::Default,
            Err(_) => return Err(wrong("fallback_policy", format!("{} is none", config.fallback_policy))),
        },
        default: default
            .map_or_else(Metadata::new, |it| from_fields(it, &[], "lb_subset_config.default_subset", ignored)),
        panic_to_any: config.panic_mode_any,
        locality_weighted: config.locality_weight_aware,
        scale_locality_weights: config.scale_locality_weight,
        by_list: match LbSubsetMetadataFallbackPolicy::try_from(config.metadata_fallback_policy) {
            Ok(policy) => policy == LbSubsetMetadataFallbackPolicy::FallbackList,
            Err(_) => return Err(wrong("metadata_fallback_policy", "is none")),
        },
    }))
}

fn selector(message: &LbSubsetSelector) -> Result<SubsetSelector, Wrong> {
    let sorted = |keys: &[String]| {
        let mut keys: Vec<Name> = keys.iter().map(|key| key.as_str().into()).collect();
        keys.sort_unstable();
        keys.dedup();
        keys
    };
    let keys = sorted(&message.keys);
    if keys.is_empty() {
        return Err(wrong("keys", "is empty"));
    }
    if message.single_host_per_subset && keys.len() != 1 {
        return Err(wrong("single_host_per_subset", "needs exactly one key"));
    }
    let to = |fallback| Some(SelectorFallback::To(fallback));
    let fallback = match LbSubsetSelectorFallbackPolicy::try_from(message.fallback_policy) {
        Ok(LbSubsetSelectorFallbackPolicy::NotDefined) => None,
        Ok(LbSubsetSelectorFallbackPolicy::NoFallback) => to(SubsetFallback::None),
        Ok(LbSubsetSelectorFallbackPolicy::AnyEndpoint) => to(SubsetFallback::Any),
        Ok(LbSubsetSelectorFallbackPolicy::DefaultSubset) => to(SubsetFallback::Default),
        Ok(LbSubsetSelectorFallbackPolicy::KeysSubset) => {
            let fewer = sorted(&message.fallback_keys_subset);
            if fewer.is_empty() || fewer.len() >= keys.len() || !fewer.iter().all(|key| keys.contains(key)) {
                return Err(wrong("fallback_keys_subset", "must be some but not all of the selector's keys"));
            }
            Some(SelectorFallback::Keys(fewer))
        }
        Err(_) => return Err(wrong("fallback_policy", format!("{} is none", message.fallback_policy))),
    };
    Ok(SubsetSelector { keys, fallback, single: message.single_host_per_subset })
}

pub(super) fn encode(subsets: &Subsets) -> LbSubsetConfig {
    let selector = |selector: &SubsetSelector| {
        use LbSubsetSelectorFallbackPolicy as Policy;
        let names = |keys: &[Name]| keys.iter().map(ToString::to_string).collect();
        let (policy, fewer) = match &selector.fallback {
            None => (Policy::NotDefined, Vec::new()),
            Some(SelectorFallback::To(SubsetFallback::None)) => (Policy::NoFallback, Vec::new()),
            Some(SelectorFallback::To(SubsetFallback::Any)) => (Policy::AnyEndpoint, Vec::new()),
            Some(SelectorFallback::To(SubsetFallback::Default)) => (Policy::DefaultSubset, Vec::new()),
            Some(SelectorFallback::Keys(fewer)) => (Policy::KeysSubset, names(fewer)),
        };
        LbSubsetSelector {
            keys: names(&selector.keys),
            single_host_per_subset: selector.single,
            fallback_policy: policy.into(),
            fallback_keys_subset: fewer,
        }
    };
    let fallback = match subsets.fallback {
        SubsetFallback::None => LbSubsetFallbackPolicy::NoFallback,
        SubsetFallback::Any => LbSubsetFallbackPolicy::AnyEndpoint,
        SubsetFallback::Default => LbSubsetFallbackPolicy::DefaultSubset,
    };
    let by_list = match subsets.by_list {
        true => LbSubsetMetadataFallbackPolicy::FallbackList,
        false => LbSubsetMetadataFallbackPolicy::MetadataNoFallback,
    };
    LbSubsetConfig {
        fallback_policy: fallback.into(),
        default_subset: (!subsets.default.is_empty()).then(|| encode_metadata(&subsets.default)),
        subset_selectors: subsets.selectors.iter().map(selector).collect(),
        locality_weight_aware: subsets.locality_weighted,
        scale_locality_weight: subsets.scale_locality_weights,
        panic_mode_any: subsets.panic_to_any,
        metadata_fallback_policy: by_list.into(),
    }
}
