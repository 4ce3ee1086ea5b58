//! Changes of headers. Source: Envoy `HeaderValueOption`, `request_headers_to_add` and siblings (RA13).

use mesh_core::config::{Format, FormatError, HeaderChange, HeaderChanges};

use super::read::{Ignored, Wrong, wrong};
use crate::proto::envoy::config::{
    common::mutation_rules::v3::{HeaderMutation, header_mutation::Action as Mutation},
    core::v3::{HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction as Append},
};

const FIELDS: [&str; 4] =
    ["request_headers_to_add", "request_headers_to_remove", "response_headers_to_add", "response_headers_to_remove"];

/// By gRPC's rules a server changes headers only if it is trusted (XD29).
pub(super) fn decode(
    request_add: Vec<HeaderValueOption>,
    request_remove: Vec<String>,
    response_add: Vec<HeaderValueOption>,
    response_remove: Vec<String>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<HeaderChanges, Wrong> {
    if ignored.is_grpc() && !ignored.context().trusted {
        let lists = [
            !request_add.is_empty(),
            !request_remove.is_empty(),
            !response_add.is_empty(),
            !response_remove.is_empty(),
        ];
        for (field, is_set) in FIELDS.into_iter().zip(lists) {
            if is_set {
                ignored.add(place, &format!("{field} (the server is not trusted)"));
            }
        }
        return Ok(HeaderChanges::default());
    }
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
        changes.extend(added(option, place, add_field, ignored)?);
    }
    Ok(changes)
}

/// One header to write; `None` if it never is, because its text is empty or names what is not known here.
fn added(
    option: HeaderValueOption,
    place: &str,
    field: &str,
    ignored: &mut Ignored,
) -> Result<Option<HeaderChange>, Wrong> {
    let header = option.header.ok_or_else(|| wrong(format!("{field}.header"), "is missing"))?;
    let name = checked(header.key, field)?;
    let text = if header.value.is_empty() {
        String::from_utf8(header.raw_value.into())
            .map_err(|_| wrong(field, format!("the raw value of {name:?} is not UTF-8")))?
    } else {
        header.value
    };
    let value: Format = match text.parse() {
        Ok(value) => value,
        Err(FormatError::Unknown(operator)) => {
            // Sending the operator itself would tell the receiver something false.
            ignored.add(place, &format!("{field} {name:?} ({operator})"));
            return Ok(None);
        }
        Err(error) => return Err(wrong(field, format!("of {name:?}: {error}"))),
    };
    let value = match (option.keep_empty_value, text.is_empty()) {
        (true, _) => value.keeping_empty(),
        (false, true) => return Ok(None),
        (false, false) => value,
    };
    let action = match option.append {
        // The field that append_action replaced; it has precedence where it is set.
        Some(true) => Append::AppendIfExistsOrAdd,
        Some(false) => Append::OverwriteIfExistsOrAdd,
        None => Append::try_from(option.append_action)
            .map_err(|_| wrong(field, format!("append_action {} of {name:?} is none", option.append_action)))?,
    };
    Ok(Some(match action {
        Append::AppendIfExistsOrAdd => HeaderChange::Append { name, value },
        Append::OverwriteIfExistsOrAdd => HeaderChange::Set { name, value },
        Append::AddIfAbsent => HeaderChange::AddIfAbsent { name, value },
        Append::OverwriteIfExists => HeaderChange::SetIfPresent { name, value },
    }))
}

/// Changes one by one, as mirrors have them. Removals come first even so, and each header is removed or written once.
pub(super) fn decode_mutations(
    mutations: Vec<HeaderMutation>,
    place: &str,
    ignored: &mut Ignored,
) -> Result<Vec<HeaderChange>, Wrong> {
    const FIELD: &str = "request_headers_mutations";
    let mut changes = Vec::with_capacity(mutations.len());
    for mutation in mutations {
        match mutation.action {
            Some(Mutation::Remove(name)) => changes.push(HeaderChange::Remove { name: checked(name, FIELD)? }),
            Some(Mutation::Append(option)) => changes.extend(added(option, place, FIELD, ignored)?),
            None => return Err(wrong(FIELD, "has no action, or one that is not supported")),
        }
    }
    Ok(changes)
}

pub(super) fn encode_mutations(changes: &[HeaderChange]) -> Vec<HeaderMutation> {
    let encode = |change: &HeaderChange| {
        let action = match encode_added(change) {
            Some(option) => Some(Mutation::Append(option)),
            None => removed(change).map(Mutation::Remove),
        };
        HeaderMutation { action }
    };
    changes.iter().map(encode).collect()
}

fn checked(name: String, field: &str) -> Result<String, Wrong> {
    match http::HeaderName::from_bytes(name.as_bytes()) {
        Ok(header) if header != http::header::HOST => Ok(header.as_str().to_owned()),
        _ => Err(wrong(field, format!("{name:?} is no header that may be changed"))),
    }
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
        request_add: changes.request.iter().filter_map(encode_added).collect(),
        request_remove: changes.request.iter().filter_map(removed).collect(),
        response_add: changes.response.iter().filter_map(encode_added).collect(),
        response_remove: changes.response.iter().filter_map(removed).collect(),
    }
}

fn encode_added(change: &HeaderChange) -> Option<HeaderValueOption> {
    let (name, value, action) = match change {
        HeaderChange::Append { name, value } => (name, value, Append::AppendIfExistsOrAdd),
        HeaderChange::Set { name, value } => (name, value, Append::OverwriteIfExistsOrAdd),
        HeaderChange::AddIfAbsent { name, value } => (name, value, Append::AddIfAbsent),
        HeaderChange::SetIfPresent { name, value } => (name, value, Append::OverwriteIfExists),
        HeaderChange::Remove { .. } => return None,
    };
    let header = HeaderValue { key: name.clone(), value: value.as_str().to_owned(), ..HeaderValue::default() };
    Some(HeaderValueOption {
        header: Some(header),
        append_action: action.into(),
        keep_empty_value: value.keeps_empty(),
        ..HeaderValueOption::default()
    })
}

fn removed(change: &HeaderChange) -> Option<String> {
    match change {
        HeaderChange::Remove { name } => Some(name.clone()),
        _ => None,
    }
}
