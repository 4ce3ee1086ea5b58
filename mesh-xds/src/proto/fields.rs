//! What decoding drops: walks the raw bytes of a message with a generated table of field numbers and names every field
//! that is not declared in our sources, whether we left it out (then by name) or never heard of it (then by number), and
//! every value of an enumeration that is none of ours. [`present`] names what is there and known.
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
    /// Nothing to look into: a scalar, a `Struct`.
    Opaque,
    /// One of these numbers.
    Enum(&'static [u64]),
    /// A message of a type it names itself; looked into by whoever decodes it.
    Any,
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
    if let Some(index) = place(name) {
        walk(index, bytes, &mut Vec::new(), &mut found);
    }
    found
}

/// Whether a message sets up security or is a condition, so that every field of it counts.
fn is_strict(name: &str) -> bool {
    name.starts_with("envoy.extensions.transport_sockets.tls.v3.")
        || name.starts_with("envoy.extensions.filters.http.jwt_authn.v3.Jwt") && !name.ends_with(".JwtCacheConfig")
        || name.starts_with("envoy.config.rbac.v3.")
        || name.starts_with("envoy.extensions.filters.http.ext_authz.v3.")
        || name.starts_with("envoy.extensions.filters.http.rbac.v3.")
        || matches!(
            name,
            "envoy.config.listener.v3.FilterChainMatch"
                | "envoy.config.route.v3.CookieMatcher"
                | "envoy.config.route.v3.HeaderMatcher"
                | "envoy.config.route.v3.QueryParameterMatcher"
                | "envoy.config.route.v3.RouteMatch"
                | "envoy.extensions.filters.http.jwt_authn.v3.ProviderWithAudiences"
                | "envoy.extensions.filters.http.jwt_authn.v3.RequirementRule"
                | "envoy.config.core.v3.CidrRange"
                | "envoy.config.core.v3.GrpcService"
                | "envoy.config.core.v3.GrpcService.EnvoyGrpc"
                | "envoy.config.core.v3.HttpUri"
                | "envoy.type.matcher.v3.DoubleMatcher"
                | "envoy.type.matcher.v3.ListMatcher"
                | "envoy.type.matcher.v3.ListStringMatcher"
                | "envoy.type.matcher.v3.MetadataMatcher"
                | "envoy.type.matcher.v3.OrMatcher"
                | "envoy.type.matcher.v3.PathMatcher"
                | "envoy.type.matcher.v3.RegexMatcher"
                | "envoy.type.matcher.v3.StringMatcher"
                | "envoy.type.matcher.v3.ValueMatcher"
        )
}

fn walk(index: usize, mut bytes: &[u8], path: &mut Vec<&'static str>, found: &mut Dropped) -> Option<()> {
    let message = MESSAGES.get(index)?;
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok()?;
        let at = bytes;
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
            Some((_, name, Kind::Enum(known))) => {
                for value in strange(known, inner, at, key & 7) {
                    note(found, message.name, join(path, &format!("{name} (is {value}, which is not known)")));
                }
            }
            Some((_, _, Kind::Opaque | Kind::Any)) => {}
        }
    }
    Some(())
}

/// The values of an enumeration that are none of ours: of one, or of several packed.
fn strange(known: &[u64], inner: Option<&[u8]>, mut one: &[u8], wire_type: u64) -> Vec<u64> {
    let mut values = Vec::new();
    match (wire_type, inner) {
        (0, _) => values.extend(varint(&mut one)),
        (2, Some(mut packed)) => {
            while let Some(value) = varint(&mut packed) {
                values.push(value);
            }
        }
        _ => {}
    }
    values.retain(|value| !known.contains(value));
    values.dedup();
    values.truncate(4);
    values
}

/// What is set in a message.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Present {
    /// Paths of the fields that are known. What a message of an `Any` holds is told at the place of the `Any`.
    pub(crate) known: BTreeSet<String>,
    /// Extensions of a type that is not known: `path (type)`, in a map `path.key (type)`.
    pub(crate) extensions: BTreeSet<String>,
}

/// The paths of the fields in `bytes`, a message called `name`, that are set and known, through `Any`s.
pub(crate) fn present(name: &str, bytes: &[u8]) -> Present {
    let (mut found, mut seen) = (Present::default(), Seen::default());
    if let Some(index) = place(name) {
        look(index, bytes, &mut Vec::new(), &mut seen, &mut found.extensions);
    }
    tell(&seen, &mut Vec::new(), &mut found.known);
    found
}

/// Messages within messages, `Any`s included, that are looked into.
const DEPTH: usize = 64;

/// What has been seen at a place: a large message repeats few fields, so that walking it costs no text.
#[derive(Default)]
struct Seen {
    name: &'static str,
    is_set: bool,
    within: Vec<Self>,
}

impl Seen {
    fn at(&mut self, name: &'static str) -> Option<&mut Self> {
        if name.is_empty() {
            return Some(self);
        }
        let at = self.within.iter().position(|seen| seen.name == name).unwrap_or_else(|| {
            self.within.push(Self { name, ..Self::default() });
            self.within.len() - 1
        });
        self.within.get_mut(at)
    }
}

fn tell(seen: &Seen, path: &mut Vec<&'static str>, known: &mut BTreeSet<String>) {
    path.push(seen.name);
    if seen.is_set {
        known.insert(join(path, ""));
    }
    seen.within.iter().for_each(|within| tell(within, path, known));
    path.pop();
}

fn place(name: &str) -> Option<usize> {
    MESSAGES.binary_search_by(|message| message.name.cmp(name)).ok()
}

fn look(
    index: usize,
    mut bytes: &[u8],
    path: &mut Vec<&'static str>,
    seen: &mut Seen,
    extensions: &mut BTreeSet<String>,
) -> Option<()> {
    let message = MESSAGES.get(index).filter(|_| path.len() < DEPTH)?;
    // An entry of a map stands for itself.
    let is_entry = message.name.ends_with("Entry");
    let mut entry_key = "";
    while !bytes.is_empty() {
        let key = varint(&mut bytes)?;
        let number = u32::try_from(key >> 3).ok()?;
        let inner = value(&mut bytes, key & 7)?;
        let Ok(at) = message.fields.binary_search_by_key(&number, |field| field.0) else { continue };
        let Some((_, name, kind)) = message.fields.get(at) else { continue };
        if is_entry && *name == "key" {
            entry_key = inner.and_then(|key| std::str::from_utf8(key).ok()).unwrap_or_default();
            continue;
        }
        // What only wraps has no place of its own.
        let wraps = is_entry || matches!(kind, Kind::Any) || *name == "typed_extension_config";
        let name = if wraps { "" } else { *name };
        let seen = match kind {
            Kind::LeftOut => continue,
            _ => seen.at(name)?,
        };
        path.push(name);
        match (kind, inner) {
            (Kind::Message(next), Some(inner)) if !inner.is_empty() => drop(look(*next, inner, path, seen, extensions)),
            (Kind::Any, Some(inner)) => drop(look_within(inner, entry_key, path, seen, extensions)),
            _ => seen.is_set = true,
        }
        path.pop();
    }
    Some(())
}

fn look_within(
    mut any: &[u8],
    key: &str,
    path: &mut Vec<&'static str>,
    seen: &mut Seen,
    extensions: &mut BTreeSet<String>,
) -> Option<()> {
    let (mut url, mut body) = ("", &[][..]);
    while !any.is_empty() {
        let key = varint(&mut any)?;
        match (key, value(&mut any, key & 7)?) {
            (0b1_010, Some(bytes)) => url = std::str::from_utf8(bytes).ok()?,
            (0b10_010, Some(bytes)) => body = bytes,
            _ => {}
        }
    }
    let name = url.rsplit('/').next().unwrap_or_default();
    match place(name) {
        Some(_) if body.is_empty() => seen.is_set = true,
        Some(index) => return look(index, body, path, seen, extensions),
        None => drop(extensions.insert(format!("{} ({name})", join(path, key)))),
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
    let mut all = String::new();
    for part in path.iter().chain([&last]).filter(|part| !part.is_empty()) {
        if !all.is_empty() {
            all.push('.');
        }
        all.push_str(part);
    }
    all
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

    /// A value of an enumeration that is none of ours is named, alone and among several packed.
    #[test]
    fn strange_values_are_named() {
        // Cluster{type: 9, lb_policy: ROUND_ROBIN}
        let found = dropped("envoy.config.cluster.v3.Cluster", &[0x10, 0x09, 0x30, 0x00]);
        assert_eq!(found.ignored.into_iter().collect::<Vec<_>>(), ["type (is 9, which is not known)"]);
        let found = dropped("envoy.config.core.v3.HealthStatusSet", &[0x0a, 0x03, 0x00, 0x63, 0x63]);
        assert_eq!(found.ignored.into_iter().collect::<Vec<_>>(), ["statuses (is 99, which is not known)"]);
    }

    /// What is set is named through maps and `Any`s; an extension of an unknown type is named by its type.
    #[test]
    fn what_is_present_is_named_through_extensions() {
        let any =
            |url: &[u8], body: &[u8]| [&[0x0a, url.len() as u8][..], url, &[0x12, body.len() as u8], body].concat();
        let within = |field: u8, bytes: Vec<u8>| [&[field << 3 | 2, bytes.len() as u8][..], &bytes].concat();
        // Listener{name, filter_chains{filters{name, typed_config{HttpConnectionManager{server_name...}}}}}
        let raw = any(b"x/envoy.extensions.transport_sockets.raw_buffer.v3.RawBuffer", b"");
        let socket = [within(1, b"raw".to_vec()), within(3, raw)].concat();
        let strange = [within(1, b"f".to_vec()), within(4, any(b"x/a.b.C", b"zz"))].concat();
        let chain = [within(3, strange), within(6, socket)].concat();
        let found = present("envoy.config.listener.v3.Listener", &within(3, chain));
        let known: Vec<_> = found.known.iter().map(String::as_str).collect();
        assert_eq!(
            known,
            ["filter_chains.filters.name", "filter_chains.transport_socket", "filter_chains.transport_socket.name"]
        );
        assert_eq!(found.extensions.into_iter().collect::<Vec<_>>(), ["filter_chains.filters (a.b.C)"]);
        // Bytes that are no message end the look, and depth is bounded.
        assert_eq!(present("envoy.config.listener.v3.Listener", &[0x1a, 0xff]), Present::default());
    }

    #[test]
    fn a_condition_left_out_is_refused_not_ignored() {
        // Route{match{dynamic_metadata{}}}
        let found = dropped("envoy.config.route.v3.Route", &[0x0a, 0x02, 0x6a, 0x00]);
        assert_eq!(found.refused.into_iter().collect::<Vec<_>>(), ["match.dynamic_metadata"]);
        assert!(found.ignored.is_empty());
    }
}
