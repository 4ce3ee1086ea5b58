//! HTTP filters that the program brought along, and what routes say of them. Source: Envoy `HttpFilter`,
//! `typed_per_filter_config`, gRFC A39 (RA17).
//!
//! A configuration that the filter itself refuses refuses the listener or the table, so that what is in force stays.

use std::collections::BTreeMap;

use mesh_core::{
    config::{FilterOverride, OwnFilter},
    filter,
};

use super::read::{Within, Wrong, wrong};
use crate::proto::{
    Any,
    envoy::{
        config::route::v3::FilterConfig,
        extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter::ConfigType},
    },
};

/// Is it a filter of the program's own?
pub(super) fn is_one(any: &Any) -> bool {
    filter::is_registered(any.message_name())
}

/// Those of a chain, in order, the disabled ones too: routes may switch them on.
pub(super) fn decode(filters: &[HttpFilter]) -> Result<Vec<OwnFilter>, Wrong> {
    let mut own = Vec::new();
    for (i, filter) in filters.iter().enumerate() {
        let Some(ConfigType::TypedConfig(any)) = &filter.config_type else { continue };
        if is_one(any) {
            check(any).within(|| super::read::element("http_filters", i, &filter.name))?;
            own.push(OwnFilter {
                name: filter.name.as_str().into(),
                message: any.message_name().into(),
                config: any.value.to_vec(),
                disabled: filter.disabled,
            });
        }
    }
    Ok(own)
}

fn check(any: &Any) -> Result<(), Wrong> {
    let made = filter::make(any.message_name(), &any.value);
    made.map(drop).map_err(|why| wrong("typed_config", why))
}

/// What a route or host says of such filters. Switching one off or on names no type, so every name but Envoy's own may be one.
pub(super) fn overrides(settings: &BTreeMap<String, Any>) -> Result<Vec<FilterOverride>, Wrong> {
    let mut own = Vec::new();
    for (name, any) in settings {
        let at = || format!("typed_per_filter_config[{name:?}]");
        let wrapper = any.unpack::<FilterConfig>().and_then(Result::ok);
        let (disabled, any) = match &wrapper {
            Some(FilterConfig { disabled: true, .. }) => (true, None),
            Some(FilterConfig { config, .. }) => (false, config.as_ref()),
            None => (false, Some(any)),
        };
        if any.is_some_and(|any| !is_one(any)) || name.starts_with("envoy.filters.") {
            continue;
        }
        if let Some(any) = any {
            check(any).within(at)?;
        }
        let config = any.map(|any| (any.message_name().into(), any.value.to_vec()));
        own.push(FilterOverride { name: name.as_str().into(), disabled, config });
    }
    Ok(own)
}

/// What a route says, and of what it does not speak what its host says.
pub(super) fn over(host: &[FilterOverride], mut route: Vec<FilterOverride>) -> Vec<FilterOverride> {
    let others = host.iter().filter(|host| !route.iter().any(|own| own.name == host.name)).cloned();
    let others: Vec<_> = others.collect();
    route.extend(others);
    route
}

pub(super) fn encode(own: &OwnFilter) -> HttpFilter {
    HttpFilter {
        name: own.name.to_string(),
        config_type: Some(ConfigType::TypedConfig(any_of(&own.message, &own.config))),
        disabled: own.disabled,
        ..HttpFilter::default()
    }
}

pub(super) fn encode_overrides(own: &[FilterOverride]) -> impl Iterator<Item = (String, Any)> {
    let encode = |own: &FilterOverride| match (&own.config, own.disabled) {
        (Some((message, config)), false) => any_of(message, config),
        (_, disabled) => Any::pack(&FilterConfig { disabled, ..FilterConfig::default() }),
    };
    own.iter().map(move |own| (own.name.to_string(), encode(own)))
}

fn any_of(message: &str, value: &[u8]) -> Any {
    Any { type_url: format!("type.googleapis.com/{message}"), value: value.to_vec().into() }
}
