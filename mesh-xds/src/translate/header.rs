//! Changes of headers. Source: Envoy `HeaderValueOption`, `request_headers_to_add` and siblings (RA13).

use mesh_core::config::{HeaderChange, HeaderChanges};

use super::read::{Ignored, Wrong, wrong};
use crate::proto::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction as Append,
};

pub(super) fn decode(
    request_add: Vec<HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<HeaderValueOption>,
    response_remove: Vec<String>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<HeaderChanges, Wrong> {
    Ok(HeaderChanges {
        request: changes(
            request_add,
            request_remove,
            place,
            ["request_headers_to_add", "request_headers_to_remove"],
            ignored,
        )?,
        response: changes(
            response_add,
            response_remove,
            place,
            ["response_headers_to_add", "response_headers_to_remove"],
            ignored,
        )?,
    })
}

/// Removals come first, so that a header can be removed and added anew.
fn changes(
    add: Vec<HeaderValueOption>,
    remove: Vec<String>,
    place: &str,
    [add_field, remove_field]: [&str; 2],
    ignored: &mut Ignored,
) -> Result<Vec<HeaderChange>, Wrong> {
    let mut changes = Vec::with_capacity(add.len() + remove.len());
    for name in remove {
        changes.push(HeaderChange::Remove { name: checked(name, remove_field)? });
    }
    for option in add {
        let header = option.header.ok_or_else(|| wrong(format!("{add_field}.header"), "is missing"))?;
        let name = checked(header.key, add_field)?;
        let raw = if header.value.is_empty() {
            String::from_utf8(header.raw_value.into())
                .map_err(|_| wrong(add_field, format!("the raw value of {name:?} is not UTF-8")))?
        } else {
            header.value
        };
        let Some(value) = literal(&raw) else {
            // Sending the operator itself would tell the receiver something false.
            ignored.add(place, &format!("{add_field} {name:?} (command operators)"));
            continue;
        };
        if value.is_empty() && !option.keep_empty_value {
            continue;
        }
        let action = match option.append {
            // The field that append_action replaced; it has precedence where it is set.
            Some(true) => Append::AppendIfExistsOrAdd,
            Some(false) => Append::OverwriteIfExistsOrAdd,
            None => Append::try_from(option.append_action)
                .map_err(|_| wrong(add_field, format!("append_action {} of {name:?} is none", option.append_action)))?,
        };
        match action {
            Append::AppendIfExistsOrAdd => changes.push(HeaderChange::Append { name, value }),
            Append::OverwriteIfExistsOrAdd => changes.push(HeaderChange::Set { name, value }),
            Append::AddIfAbsent | Append::OverwriteIfExists => {
                ignored.add(place, &format!("{add_field} {name:?} ({})", action.as_str_name()));
            }
        }
    }
    Ok(changes)
}

fn checked(name: String, field: &str) -> Result<String, Wrong> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(header) if header != http::header::HOST => Ok(header.as_str().to_owned()),
        _ => Err(wrong(field, format!("{name:?} is no header that may be changed"))),
    }
}

/// The text with `%%` undone; `None` if it has command operators.
fn literal(value: &str) -> Option<String> {
    let mut parts = value.split("%%");
    if value.replace("%%", "").contains('%') {
        return None;
    }
    let first = parts.next().unwrap_or_default().to_owned();
    Some(parts.fold(first, |text, part| text + "%" + part))
}

/// The four lists a message has.
pub(super) struct Encoded {
    pub(super) request_add: Vec<HeaderValueOption>,
    pub(super) request_remove: Vec<String>,
    pub(super) response_add: Vec<HeaderValueOption>,
    pub(super) response_remove: Vec<String>,
}

pub(super) fn encode(changes: &HeaderChanges) -> Encoded {
    Encoded {
        request_add: changes.request.iter().filter_map(added).collect(),
        request_remove: changes.request.iter().filter_map(removed).collect(),
        response_add: changes.response.iter().filter_map(added).collect(),
        response_remove: changes.response.iter().filter_map(removed).collect(),
    }
}

fn added(change: &HeaderChange) -> Option<HeaderValueOption> {
    let (name, value, action) = match change {
        HeaderChange::Append { name, value } => (name, value, Append::AppendIfExistsOrAdd),
        HeaderChange::Set { name, value } => (name, value, Append::OverwriteIfExistsOrAdd),
        HeaderChange::Remove { .. } => return None,
    };
    Some(HeaderValueOption {
        header: Some(HeaderValue { key: name.clone(), value: value.replace('%', "%%"), ..HeaderValue::default() }),
        append_action: action.into(),
        keep_empty_value: value.is_empty(),
        ..HeaderValueOption::default()
    })
}

fn removed(change: &HeaderChange) -> Option<String> {
    match change {
        HeaderChange::Remove { name } => Some(name.clone()),
        _ => None,
    }
}
