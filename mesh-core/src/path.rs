//! One form of a path before anything is decided by it, so that what is checked is what is served.
//!
//! A caller can write one path in many ways: `/a/../b`, `/%62`, `/a//b`, `\b`. Rules, routes and the application must all
//! see the same, so the request itself is changed before any of them looks. In this order: slashes written as `%2f` and
//! `%5c`, then dot segments, backslashes and needless escapes (RFC 3986, 6.2.2), then repeated slashes.
//!
//! Source: Envoy `HttpConnectionManager.{path_with_escaped_slashes_action, normalize_path, merge_slashes}`.

use crate::config::{EscapedSlashes, PathNormalization};

/// What becomes of a path.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Normal {
    /// It has that form already.
    Same,
    /// The form it gets, with its query.
    Changed(String),
    /// The caller is told to ask for this instead (307).
    Redirect(String),
    /// It has none (400).
    Refused(&'static str),
}

/// Brings a path, with its query, into the form asked for. What does not begin with `/`, such as `*`, stays as it is.
pub fn normalize(path: &str, wanted: PathNormalization) -> Normal {
    if !path.starts_with('/') {
        return Normal::Same;
    }
    let (bare, query) = match path.find(['?', '#']) {
        Some(at) => path.split_at(at),
        None => (path, ""),
    };
    if is_plain(bare) {
        return Normal::Same;
    }
    let mut text = bare.to_owned();
    let mut redirect = false;
    if has_escaped_slash(bare) {
        match wanted.escaped_slashes {
            EscapedSlashes::Keep => {}
            EscapedSlashes::Reject => return Normal::Refused("the path has an escaped slash"),
            EscapedSlashes::Forward => text = unescape_slashes(&text),
            EscapedSlashes::Redirect => {
                text = unescape_slashes(&text);
                redirect = true;
            }
        }
    }
    if wanted.dot_segments {
        match remove_dots(&text) {
            Some(normal) => text = normal,
            None => return Normal::Refused("the path has an escaped NUL"),
        }
    }
    if wanted.merge_slashes {
        text = merge(&text);
    }
    match (redirect, text == bare) {
        (_, true) => Normal::Same,
        (true, false) => Normal::Redirect(text + query),
        (false, false) => Normal::Changed(text + query),
    }
}

/// Is there nothing that any of the steps would change? The common case, without an allocation.
fn is_plain(path: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/-_~!$&'()*+,;=:@[]".contains(&byte);
    let bytes = path.as_bytes();
    bytes.iter().enumerate().all(|(i, byte)| match byte {
        b'.' => i == 0 || !matches!(bytes.get(i - 1), Some(b'/' | b'.')),
        b'/' => bytes.get(i + 1) != Some(&b'/'),
        byte => plain(*byte),
    })
}

fn escaped(bytes: &[u8]) -> Option<u8> {
    let [b'%', high, low, ..] = bytes else { return None };
    let digit = |byte: &u8| char::from(*byte).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

fn has_escaped_slash(path: &str) -> bool {
    path.as_bytes().windows(3).any(|window| matches!(escaped(window), Some(b'/' | b'\\')))
}

fn unescape_slashes(path: &str) -> String {
    let bytes = path.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        match escaped(bytes.get(at..).unwrap_or_default()) {
            Some(slash @ (b'/' | b'\\')) => {
                out.push(slash);
                at += 3;
            }
            _ => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Dot segments resolved, backslashes as slashes, needless escapes undone and needed ones made; `None` for `%00`.
fn remove_dots(path: &str) -> Option<String> {
    let mut out: Vec<u8> = Vec::with_capacity(path.len());
    let mut text: Vec<u8> = Vec::with_capacity(path.len());
    let bytes = path.as_bytes();
    let mut at = 0;
    // Where in `text` a `%` stands that began no escape.
    let mut stray: Option<usize> = None;
    while let Some(&byte) = bytes.get(at) {
        match (byte, escaped(bytes.get(at..).unwrap_or_default())) {
            (_, Some(0)) => return None,
            (_, Some(value)) if value.is_ascii_alphanumeric() || b"-._~".contains(&value) => {
                text.push(value);
                at += 3;
            }
            (_, Some(_)) => {
                text.extend(bytes.get(at..at + 3).unwrap_or_default());
                at += 3;
            }
            (b'\\', None) => {
                text.push(b'/');
                at += 1;
            }
            (0x21..=0x7e, None) if !b"\"<>^`{|}".contains(&byte) => {
                if byte == b'%' {
                    stray = Some(text.len());
                }
                text.push(byte);
                at += 1;
            }
            (_, None) => {
                text.extend(format!("%{byte:02X}").into_bytes());
                at += 1;
            }
        }
        // What was undone behind it must not make an escape of it: whoever reads the path next would undo that as well.
        if let Some(begun) = stray
            && let Some(behind) = text.get(begun + 1..begun + 3)
        {
            if behind.iter().all(u8::is_ascii_hexdigit) {
                text.splice(begun + 1..begun + 1, *b"25");
            }
            stray = None;
        }
    }
    let mut segments = text.split(|byte| *byte == b'/').skip(1).peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            b"." if last => out.push(b'/'),
            b"." => {}
            b".." => {
                let parent = out.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                out.truncate(parent);
                if last {
                    out.push(b'/');
                }
            }
            segment => {
                out.push(b'/');
                out.extend(segment);
            }
        }
    }
    if out.is_empty() {
        out.push(b'/');
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

fn merge(path: &str) -> String {
    let mut out = String::with_capacity(path.len());
    for character in path.chars() {
        if character != '/' || !out.ends_with('/') {
            out.push(character);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: PathNormalization = PathNormalization::BASE;
    const NONE: PathNormalization = PathNormalization::NONE;
    const MERGE: PathNormalization = PathNormalization { merge_slashes: true, ..BASE };
    const DECODE: PathNormalization = PathNormalization { escaped_slashes: EscapedSlashes::Forward, ..MERGE };

    /// SV11: every way to write a path comes to one, as far as the port asks for it.
    #[test]
    fn paths_have_one_form() {
        for (wanted, path, expected) in [
            (BASE, "/", "/"),
            (BASE, "/a/b.c?x=../y", "/a/b.c?x=../y"),
            (BASE, "/public/../admin", "/admin"),
            (BASE, "/public/%2e%2E/admin", "/admin"),
            (BASE, "/public/.%2e/admin", "/admin"),
            (BASE, "/a/./b", "/a/b"),
            (BASE, "/a/.", "/a/"),
            (BASE, "/a/..", "/"),
            (BASE, "/..", "/"),
            (BASE, "/../../a", "/a"),
            (BASE, "/a/...", "/a/..."),
            (BASE, "/a/.b", "/a/.b"),
            (BASE, r"\admin", r"\admin"),
            (BASE, r"/a\..\admin", "/admin"),
            (BASE, "/%61dmin", "/admin"),
            (BASE, "/a%2fb", "/a%2fb"),
            (BASE, "/a//b", "/a//b"),
            (BASE, "/a%zz", "/a%zz"),
            // What one reader undoes once must not be undone twice.
            (BASE, "/%4%31dmin", "/%2541dmin"),
            (BASE, "/%%34%31", "/%2541"),
            (BASE, "/a/%2%65%2%65/b", "/a/%252e%252e/b"),
            (DECODE, "/a%%32fb", "/a%252fb"),
            (BASE, "/a|b", "/a%7Cb"),
            (BASE, "*", "*"),
            (NONE, "/a/../b", "/a/../b"),
            (MERGE, "/a//b///c", "/a/b/c"),
            (MERGE, "/a%2f%2fb", "/a%2f%2fb"),
            (DECODE, "/a%2f%2Fb", "/a/b"),
            (DECODE, "/a%2f..%5cadmin?b%2fc", "/admin?b%2fc"),
        ] {
            let got = match normalize(path, wanted) {
                Normal::Same => path.to_owned(),
                Normal::Changed(path) => path,
                other => format!("{other:?}"),
            };
            assert_eq!(got, expected, "{path}");
            if wanted.dot_segments {
                assert_eq!(normalize(&got, wanted), Normal::Same, "{path} has one form only");
            }
        }
    }

    /// SV11: an escaped slash can be refused or redirected, and an escaped NUL has no form.
    #[test]
    fn paths_without_a_form_are_refused() {
        let wanted = |escaped_slashes| PathNormalization { escaped_slashes, ..BASE };
        assert!(matches!(normalize("/a%2Fb", wanted(EscapedSlashes::Reject)), Normal::Refused(_)));
        assert!(matches!(normalize("/a%5cb", wanted(EscapedSlashes::Reject)), Normal::Refused(_)));
        assert_eq!(normalize("/a%5cb?c", wanted(EscapedSlashes::Redirect)), Normal::Redirect("/a/b?c".to_owned()));
        assert!(matches!(normalize("/a%00", BASE), Normal::Refused(_)));
    }
}
