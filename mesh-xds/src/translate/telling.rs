//! What a connection manager says of what is told: traces, logs, and Istio's filter for metrics.
//!
//! A log that goes elsewhere than to standard output or error, and what cannot be read of lines and conditions, is told as
//! ignored; the rest counts. Source: Envoy `HttpConnectionManager.tracing`, `.access_log`; Istio `stats.PluginConfig`.

use std::{collections::BTreeMap, sync::Arc};

use mesh_core::{
    config::{AccessLog, CustomTag, LogFormat, MetricChange, TagValue, Telling, Tracing},
    telling,
};
use prost_types::value::Kind;

use super::read::{Ignored, Wrong, wrong};
use crate::proto::{
    Any,
    envoy::{
        config::{
            accesslog::v3::{
                AccessLog as LogMessage, AccessLogFilter, ExtensionFilter, access_log, access_log_filter,
                extension_filter,
            },
            core::v3::{DataSource, SubstitutionFormatString, data_source, substitution_format_string},
        },
        extensions::{
            access_loggers::{
                file::v3::{FileAccessLog, file_access_log},
                filters::cel::v3::ExpressionFilter,
            },
            filters::network::http_connection_manager::v3::{
                HttpConnectionManager, HttpFilter, http_connection_manager, http_filter,
            },
        },
        r#type::{
            tracing::v3::{CustomTag as TagMessage, custom_tag},
            v3::Percent,
        },
    },
    stats::{MetricConfig, PluginConfig},
};

const FILE: &str = "envoy.access_loggers.file";
const CEL: &str = "envoy.access_loggers.extension_filters.cel";
const STATS: &str = "istio.stats";
/// A condition nothing meets: how a process is told to write no log, where nothing said leaves it to its environment.
const NEVER: &str = "false";

/// What is said; `None` is nothing.
pub(super) fn decode(
    manager: &HttpConnectionManager,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Option<Arc<Telling>>, Wrong> {
    let tracing = manager.tracing.as_ref().map(|it| tracing(it, place, ignored)).transpose()?;
    let mut logs = None;
    for message in &manager.access_log {
        let logs = logs.get_or_insert_with(Vec::new);
        match log(message, place, ignored)? {
            Some(log) if log.filter.as_deref() == Some(NEVER) => {}
            Some(log) => logs.push(log),
            None => {}
        }
    }
    let mut metrics = Vec::new();
    for filter in &manager.http_filters {
        if let Some(http_filter::ConfigType::TypedConfig(any)) = &filter.config_type
            && any.is::<PluginConfig>()
        {
            let message: PluginConfig = ignored.open(any, &format!("{place}.http_filters"))?;
            metrics.extend(message.metrics.into_iter().filter_map(|it| change(it, place, ignored)));
        }
    }
    let telling = Telling { tracing, access_log: logs, metrics };
    Ok((telling != Telling::default()).then(|| Arc::new(telling)))
}

/// Can it be read? If not, that is told.
fn reads(telling: Telling, place: &str, field: &str, ignored: &mut Ignored) -> bool {
    let wrongs = telling::check(&telling);
    wrongs.iter().for_each(|why| ignored.add(place, &format!("{field} ({why})")));
    wrongs.is_empty()
}

fn tracing(message: &http_connection_manager::Tracing, place: &str, ignored: &mut Ignored) -> Result<Tracing, Wrong> {
    let percent = |percent: &Option<Percent>, field: &str| match percent.as_ref().map_or(100.0, |it| it.value) {
        percent if (0.0..=100.0).contains(&percent) => Ok(percent),
        percent => Err(wrong(format!("tracing.{field}"), format!("is {percent}, which is no percentage"))),
    };
    let mut tags = Vec::new();
    for message in &message.custom_tags {
        let TagMessage { tag, r#type } = message.clone();
        let value = match r#type {
            Some(custom_tag::Type::Literal(it)) => TagValue::Literal(it.value),
            Some(custom_tag::Type::Environment(it)) => {
                TagValue::Environment { name: it.name, default: it.default_value }
            }
            Some(custom_tag::Type::RequestHeader(it)) => TagValue::Header { name: it.name, default: it.default_value },
            Some(custom_tag::Type::Value(text)) => TagValue::Format(text),
            None => {
                ignored.add(place, &format!("tracing.custom_tags ({tag:?} is of a kind that is not supported)"));
                continue;
            }
        };
        let tag = CustomTag { name: tag, value };
        let alone = Tracing { tags: vec![tag.clone()], ..Tracing::default() };
        if reads(Telling { tracing: Some(alone), ..Telling::default() }, place, "tracing.custom_tags", ignored) {
            tags.push(tag);
        }
    }
    Ok(Tracing {
        client: percent(&message.client_sampling, "client_sampling")?,
        random: percent(&message.random_sampling, "random_sampling")?,
        overall: percent(&message.overall_sampling, "overall_sampling")?,
        tags,
    })
}

fn log(message: &LogMessage, place: &str, ignored: &mut Ignored) -> Result<Option<AccessLog>, Wrong> {
    let file = match &message.config_type {
        Some(access_log::ConfigType::TypedConfig(any)) if any.is::<FileAccessLog>() => any,
        _ => {
            ignored.add(place, &format!("access_log ({:?} is of a kind that is not supported)", message.name));
            return Ok(None);
        }
    };
    let place = format!("{place}.access_log");
    let FileAccessLog { path, access_log_format } = ignored.open(file, &place)?;
    let format = match access_log_format {
        None => LogFormat::Default,
        Some(file_access_log::AccessLogFormat::LogFormat(it)) => {
            if it.omit_empty_values {
                ignored.add(&place, "log_format.omit_empty_values");
            }
            match it.format {
                None => LogFormat::Default,
                Some(substitution_format_string::Format::TextFormat(text)) => LogFormat::Text(text),
                Some(substitution_format_string::Format::TextFormatSource(source)) => match source.specifier {
                    Some(data_source::Specifier::InlineString(text)) => LogFormat::Text(text),
                    _ => return Err(wrong("access_log.log_format.text_format_source", "must be an inline_string")),
                },
                Some(substitution_format_string::Format::JsonFormat(it)) => {
                    let mut fields = BTreeMap::new();
                    for (name, value) in it.fields {
                        match value.kind {
                            Some(Kind::StringValue(text)) => drop(fields.insert(name, text)),
                            _ => ignored.add(&place, &format!("log_format.json_format.{name} (no text)")),
                        }
                    }
                    LogFormat::Json(fields)
                }
            }
        }
    };
    let filter = match message.filter.as_ref().and_then(|filter| filter.filter_specifier.as_ref()) {
        None if message.filter.is_some() => {
            // To write more than was asked for beats to be silent about a failure.
            ignored.add(&place, "filter (of a kind that is not supported)");
            None
        }
        None => None,
        Some(access_log_filter::FilterSpecifier::ExtensionFilter(it)) => match &it.config_type {
            Some(extension_filter::ConfigType::TypedConfig(any)) if any.is::<ExpressionFilter>() => {
                Some(ignored.open::<ExpressionFilter>(any, &place)?.expression)
            }
            _ => {
                ignored.add(&place, &format!("filter ({:?} is not supported)", it.name));
                None
            }
        },
    };
    let log = AccessLog { path, format, filter };
    let alone = |log: &AccessLog| Telling { access_log: Some(vec![log.clone()]), ..Telling::default() };
    Ok(reads(alone(&log), &place, "log", ignored).then_some(log))
}

fn change(message: MetricConfig, place: &str, ignored: &mut Ignored) -> Option<MetricChange> {
    let place = format!("{place}.http_filters.metrics");
    if !message.r#match.is_empty() {
        ignored.add(&place, "match");
    }
    let MetricConfig { dimensions, name, tags_to_remove, drop, .. } = message;
    let change = MetricChange { name, labels: dimensions, without: tags_to_remove, drop };
    let alone = Telling { metrics: vec![change.clone()], ..Telling::default() };
    reads(alone, &place, "dimensions", ignored).then_some(change)
}

/// Writes it into a connection manager.
pub(super) fn encode(telling: Option<&Telling>, manager: &mut HttpConnectionManager) {
    let Some(Telling { tracing, access_log, metrics }) = telling else { return };
    manager.tracing = tracing.as_ref().map(encode_tracing);
    manager.access_log = match access_log.as_deref() {
        None => Vec::new(),
        Some([]) => vec![encode_log(&AccessLog { filter: Some(NEVER.to_owned()), ..AccessLog::default() })],
        Some(logs) => logs.iter().map(encode_log).collect(),
    };
    if metrics.is_empty() {
        return;
    }
    let metrics = metrics.iter().map(|change| MetricConfig {
        name: change.name.clone(),
        dimensions: change.labels.clone(),
        tags_to_remove: change.without.clone(),
        drop: change.drop,
        ..MetricConfig::default()
    });
    let filter = PluginConfig { metrics: metrics.collect(), ..PluginConfig::default() };
    let filter = HttpFilter {
        name: STATS.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(Any::pack(&filter))),
        // An Envoy without Istio's filter goes on without it.
        is_optional: true,
        ..HttpFilter::default()
    };
    // The router is the last.
    manager.http_filters.insert(manager.http_filters.len().saturating_sub(1), filter);
}

fn encode_tracing(tracing: &Tracing) -> http_connection_manager::Tracing {
    let tag = |tag: &CustomTag| {
        let value = match tag.value.clone() {
            TagValue::Literal(value) => custom_tag::Type::Literal(custom_tag::Literal { value }),
            TagValue::Environment { name, default } => {
                custom_tag::Type::Environment(custom_tag::Environment { name, default_value: default })
            }
            TagValue::Header { name, default } => {
                custom_tag::Type::RequestHeader(custom_tag::Header { name, default_value: default })
            }
            TagValue::Format(text) => custom_tag::Type::Value(text),
        };
        TagMessage { tag: tag.name.clone(), r#type: Some(value) }
    };
    let percent = |value: f64| Some(Percent { value });
    http_connection_manager::Tracing {
        client_sampling: percent(tracing.client),
        random_sampling: percent(tracing.random),
        overall_sampling: percent(tracing.overall),
        custom_tags: tracing.tags.iter().map(tag).collect(),
    }
}

fn encode_log(log: &AccessLog) -> LogMessage {
    let text = |text: &String| prost_types::Value { kind: Some(Kind::StringValue(text.clone())) };
    let format = match &log.format {
        LogFormat::Default => None,
        LogFormat::Text(text) => Some(substitution_format_string::Format::TextFormatSource(DataSource {
            specifier: Some(data_source::Specifier::InlineString(text.clone())),
        })),
        LogFormat::Json(fields) => Some(substitution_format_string::Format::JsonFormat(prost_types::Struct {
            fields: fields.iter().map(|(name, format)| (name.clone(), text(format))).collect(),
        })),
    };
    let format = format.map(|format| {
        let format = SubstitutionFormatString { format: Some(format), ..SubstitutionFormatString::default() };
        file_access_log::AccessLogFormat::LogFormat(format)
    });
    let file = FileAccessLog { path: log.path.clone(), access_log_format: format };
    let filter = log.filter.as_ref().map(|expression| AccessLogFilter {
        filter_specifier: Some(access_log_filter::FilterSpecifier::ExtensionFilter(ExtensionFilter {
            name: CEL.to_owned(),
            config_type: Some(extension_filter::ConfigType::TypedConfig(Any::pack(&ExpressionFilter {
                expression: expression.clone(),
            }))),
        })),
    });
    LogMessage {
        name: FILE.to_owned(),
        filter,
        config_type: Some(access_log::ConfigType::TypedConfig(Any::pack(&file))),
    }
}
