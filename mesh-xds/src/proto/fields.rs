//! What decoding drops: walks the raw bytes of a message with a generated table of field numbers and names every field
//! that is not declared in our sources, whether we left it out (then by name) or never heard of it (then by number).
//!
//! Paths name fields without indices (`virtual_hosts.routes.route.request_mirror_policies`), so that a report is as long
//! as the kinds of what was ignored, however large the mesh is. Bytes that are no message are left to the decoder, which
//! reports them as an error.

use std::collections::BTreeSet;

/// One message of the table.
struct Message {
    name: &'static str,
    /// Number, name, kind; by number.
    fields: &'static [(u32, &'static str, Kind)],
}

#[derive(Clone, Copy)]
enum Kind {
    /// Nothing to look into: a scalar, an `Any` (looked into by whoever decodes it), a `Struct`.
    Opaque,
    /// A message, by its place in the table.
    Message(usize),
    /// In Envoy's message, not in ours.
    LeftOut,
}

static MESSAGES: &[Message] = include!("generated/fields.rs");

/// What decoding a message drops.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Dropped {
    /// Paths of fields that can be ignored, as long as somebody says so.
    pub(crate) ignored: BTreeSet<String>,
    /// Paths of fields within messages that narrow a condition or set up security; ignoring these would widen it.
    pub(crate) refused: BTreeSet<String>,
}

/// The paths of the fields in `bytes`, a message called `name`, that decoding it drops.
pub(crate) fn dropped(name: &str, bytes: &[u8]) -> Dropped {
    let mut found = Dropped::default();
    if let Ok(index) = MESSAGES.binary_search_by(|message| message.name.cmp(name)) {
        walk(index, bytes, &mut Vec::new(), &mut found);
    }
    found
}

/// Whether a message sets up security or is a condition, so that every field of it counts.
fn is_strict(name: &str) -> bool {
    name.starts_with("envoy.extensions.transport_sockets.tls.v3.")
        || matches!(
            name,
            "envoy.config.listener.v3.FilterChainMatch"
                | "envoy.config.route.v3.CookieMatcher"
                | "envoy.config.route.v3.HeaderMatcher"
                | "envoy.config.route.v3.QueryParameterMatcher"
                | "envoy.config.route.v3.RouteMatch"
                | "envoy.type.matcher.v3.RegexMatcher"
                | "envoy.type.matcher.v3.StringMatcher"
        )
}

fn walk(index: usize, mut bytes: &[u8], path: &mut Vec<&'static str>, found: &mut Dropped) -> Option<()> {
    let message = MESSAGES.get(index)?;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok()?;
        let inner = value(&mut bytes, key & 7)?;
        let field = message.fields.binary_search_by_key(&number, |field| field.0).ok().map(|i| &message.fields[i]);
        match field {
            None => note(found, message.name, join(path, &format!("#{number}"))),
            Some((_, name, Kind::LeftOut)) => note(found, message.name, join(path, name)),
            Some((_, name, Kind::Message(next))) => {
                path.push(name);
                walk(*next, inner?, path, found);
                path.pop();
            }
            Some((_, _, Kind::Opaque)) => {}
        }
    }
    Some(())
}

fn note(found: &mut Dropped, message: &str, path: String) {
    if is_strict(message) {
        found.refused.insert(path)
    } else {
        found.ignored.insert(path)
    };
}

fn join(path: &[&str], last: &str) -> String {
    let mut all = path.to_vec();
    all.push(last);
    all.join(".")
}

/// Steps over one value; the inner bytes of a length-delimited one.
fn value<'a>(bytes: &mut &'a [u8], wire_type: u64) -> Option<Option<&'a [u8]>> {
    match wire_type {
        0 => varint(bytes).map(|_| None),
        1 => take(bytes, 8).map(|_| None),
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            take(bytes, length).map(Some)
        }
        5 => take(bytes, 4).map(|_| None),
        // Groups: proto2, and in no message of xDS. An open-ended walk is not worth having for them.
        _ => None,
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (head, tail) = bytes.split_at_checked(length)?;
    *bytes = tail;
    Some(head)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn table_is_sorted_and_consistent() {
        assert!(MESSAGES.is_sorted_by_key(|message| message.name));
        for message in MESSAGES {
            assert!(message.fields.is_sorted_by_key(|field| field.0), "{}", message.name);
            for (_, name, kind) in message.fields {
                assert!(!matches!(kind, Kind::Message(i) if *i >= MESSAGES.len()), "{}.{name}", message.name);
            }
        }
    }

    #[test]
    fn dropped_fields_are_named_by_path() {
        // VirtualHost{routes{route{ field 34 (internal_redirect_policy), field 8 (timeout) }, field 999 varint }}
        let action = [0x92, 0x02, 0x00, 0x42, 0x00];
        let mut route = vec![0x12, action.len() as u8];
        route.extend(action);
        route.extend([0xb8, 0x3e, 0x01]);
        let mut host = vec![0x1a, route.len() as u8];
        host.extend(route);
        let found = dropped("envoy.config.route.v3.VirtualHost", &host);
        assert_eq!(
            found.ignored.into_iter().collect::<Vec<_>>(),
            ["routes.#999", "routes.route.internal_redirect_policy"]
        );
    }

    #[test]
    fn broken_bytes_end_the_walk() {
        for bytes in [&[0xff][..], &[0x0a, 0xff], &[0x0a, 0x05, 0x00], &[0x0b], &[0xff; 12]] {
            assert!(dropped("envoy.config.route.v3.VirtualHost", bytes).ignored.len() <= 1);
        }
        assert_eq!(dropped("no.such.Message", &[0x08, 0x01]), Dropped::default());
    }

    #[test]
    fn a_condition_left_out_is_refused_not_ignored() {
        // Route{match{dynamic_metadata{}}}
        let found = dropped("envoy.config.route.v3.Route", &[0x0a, 0x02, 0x6a, 0x00]);
        assert_eq!(found.refused.into_iter().collect::<Vec<_>>(), ["match.dynamic_metadata"]);
        assert!(found.ignored.is_empty());
    }
}
