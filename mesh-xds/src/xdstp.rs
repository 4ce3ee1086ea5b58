//! Names of the form `xdstp://AUTHORITY/TYPE/ID?key=value`: equal however they are spelled, and whose they are.
//!
//! Two spellings of one name differ in percent-encoding and in the order of context parameters; the canonical form encodes
//! what has to be encoded and nothing else, and sorts. Names without the scheme are taken as they are.
//!
//! Sources: gRFC A47, xDS proposal TP1.

use std::borrow::Cow;

const SCHEME: &str = "xdstp://";

/// Who is asked for a resource of this name: the authority of an `xdstp:` name (it may be empty), `None` of any other.
pub fn authority(name: &str) -> Option<&str> {
    name.strip_prefix(SCHEME)?.split(['/', '?', '#']).next()
}

/// The spelling that all spellings of a name share. What is no valid `xdstp:` name is left as it is.
pub fn canonical(name: &str) -> Cow<'_, str> {
    match spell(name) {
        Some(canonical) if canonical != name => Cow::Owned(canonical),
        _ => Cow::Borrowed(name),
    }
}

fn spell(name: &str) -> Option<String> {
    let rest = name.strip_prefix(SCHEME)?;
    let rest = rest.split('#').next()?;
    let (path, context) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = path.split_once('/')?;
    let mut canonical = format!("{SCHEME}{}", encode(&decode(authority)?, is_pchar));
    for segment in path.split('/') {
        canonical.push('/');
        canonical.push_str(&encode(&decode(segment)?, is_pchar));
    }
    let mut parameters = Vec::new();
    for parameter in context.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        parameters.push((decode(key)?, decode(value)?));
    }
    parameters.sort();
    for (index, (key, value)) in parameters.iter().enumerate() {
        canonical.push(if index == 0 { '?' } else { '&' });
        canonical.push_str(&encode(key, is_parameter));
        canonical.push('=');
        canonical.push_str(&encode(value, is_parameter));
    }
    Some(canonical)
}

/// The name a template gives for `value`, which stands for `%s`; in an `xdstp:` name what a path cannot hold is encoded.
pub fn fill(template: &str, value: &str) -> String {
    let value = match template.starts_with("xdstp:") {
        // A slash is part of the path and stays one, as gRPC has it.
        true => encode(value, |byte| is_pchar(byte) || byte == b'/'),
        false => value.to_owned(),
    };
    template.replace("%s", &value)
}

/// RFC 3986 `pchar` without `%`.
fn is_pchar(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@".contains(&byte)
}

/// What a key or value of a parameter may hold: the separators of parameters are encoded within it.
fn is_parameter(byte: u8) -> bool {
    is_pchar(byte) && byte != b'&' && byte != b'=' || byte == b'/' || byte == b'?'
}

fn encode(text: &str, is_plain: impl Fn(u8) -> bool) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if is_plain(byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}

/// What percent-encoding stands for; `None` if it is not well-formed.
pub(crate) fn decode(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
        bytes.push(digit(rest.next()?)? << 4 | digit(rest.next()?)?);
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// XD26: spellings of one name are one name; other names are left alone.
    #[test]
    fn spellings_of_one_name_are_equal() {
        let cases = [
            ("a|b c%41", "a|b c%41"),
            ("xdstp://auth/envoy.config.listener.v3.Listener/a", "xdstp://auth/envoy.config.listener.v3.Listener/a"),
            ("xdstp://auth/T/%61b", "xdstp://auth/T/ab"),
            ("xdstp://auth/T/a b", "xdstp://auth/T/a%20b"),
            ("xdstp://auth/T/a%2fb", "xdstp://auth/T/a%2Fb"),
            ("xdstp://auth/T/a?z=1&b=2", "xdstp://auth/T/a?b=2&z=1"),
            ("xdstp://auth/T/a?b=%31", "xdstp://auth/T/a?b=1"),
            ("xdstp://auth/T/a?b=x%26y", "xdstp://auth/T/a?b=x%26y"),
            ("xdstp:///T/a?", "xdstp:///T/a"),
            ("xdstp://auth/T/a#alt=1", "xdstp://auth/T/a"),
            ("xdstp://auth/T/%zz", "xdstp://auth/T/%zz"),
            ("xdstp://auth", "xdstp://auth"),
        ];
        for (name, expected) in cases {
            assert_eq!(canonical(name), expected, "{name}");
            assert_eq!(canonical(expected), expected, "and again");
        }
    }

    /// XD26: a name says whose it is.
    #[test]
    fn names_have_authorities() {
        let cases = [
            ("outbound|80||a", None),
            ("xdstp://auth/T/a", Some("auth")),
            ("xdstp:///T/a", Some("")),
            ("xdstp://auth?x=1", Some("auth")),
        ];
        for (name, expected) in cases {
            assert_eq!(authority(name), expected, "{name}");
        }
    }

    /// XD24, XD25: templates take what is dialled or listened on; in an `xdstp:` name it is encoded.
    #[test]
    fn templates_are_filled() {
        assert_eq!(fill("%s", "a:80"), "a:80");
        assert_eq!(fill("xds.istio.io/grpc/lds/inbound/%s", "0.0.0.0:80"), "xds.istio.io/grpc/lds/inbound/0.0.0.0:80");
        assert_eq!(fill("xdstp://x/L/%s?a=1", "[::1]:80/q r"), "xdstp://x/L/%5B::1%5D:80/q%20r?a=1");
    }
}
