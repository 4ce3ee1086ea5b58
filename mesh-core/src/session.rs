//! Requests of one session at one endpoint: who is asked for, and what the answer says of who it was. Source: Envoy
//! `StatefulSession`, gRFC A55 and A60.
//!
//! A cookie or header carries the endpoint's address, and with it, where a route has several destinations, the cluster it
//! was drawn from: `base64(127.0.0.1:80;cluster:reviews-v2)`. Envoy's own form of the cookie, a small protobuf message, is
//! read too. What does not name an endpoint of the route is as if nothing had been sent. Whether the endpoint that is asked
//! for can still be used is decided where endpoints are picked.

use std::net::SocketAddr;

use http::{HeaderMap, HeaderName, HeaderValue, header, request::Parts};

use crate::{
    config::{self, EndpointAddress, HashCookie, SessionState},
    endpoint::Endpoint,
    error::CompileError,
    hash::{cookie, set_cookie},
    pick::Wanted,
    plan::Plan,
    request::RequestView,
    route::Split,
};

/// How requests of one session stay together, ready to be used.
#[derive(Clone, Debug)]
pub struct Sessions {
    place: Place,
    strict: bool,
}

#[derive(Clone, Debug)]
enum Place {
    Cookie(HashCookie),
    Header(HeaderName),
    Envelope(HeaderName),
}

/// What a plan knows of its session.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Session {
    /// The request is of a kind that has sessions: its path is one that the cookie is for.
    pub(crate) applies: bool,
    /// Who is asked for.
    pub(crate) wanted: Option<Wanted>,
    /// The destination drawn for the session so far.
    pub(crate) choice: Option<u32>,
}

/// Longer values are not looked at: an address and the name of a cluster are shorter.
const LONGEST: usize = 384;
const CLUSTER: &[u8] = b";cluster:";
/// Before what the application itself said, in an envelope. Source: Envoy `EnvelopeSessionState`.
const ORIGINAL: &str = ";UV:";

impl Sessions {
    /// `None` for a session that keeps nothing together.
    pub(crate) fn compile(session: &config::Session) -> Result<Option<Self>, CompileError> {
        let name = |name: &str| {
            HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| CompileError::new("session", "name", format!("{name:?} is no header's name")))
        };
        let place = match &session.state {
            None => return Ok(None),
            Some(SessionState::Cookie(cookie)) => {
                if cookie.name.is_empty() || set_cookie(cookie, "").is_none() {
                    return Err(CompileError::new("session", "cookie", "names no valid cookie"));
                }
                Place::Cookie(cookie.clone())
            }
            Some(SessionState::Header(header)) => Place::Header(name(header)?),
            Some(SessionState::Envelope(header)) => Place::Envelope(name(header)?),
        };
        Ok(Some(Self { place, strict: session.strict }))
    }

    /// What a request asks for. Allocates nothing.
    pub(crate) fn find(&self, view: &RequestView<'_>, split: &Split) -> Session {
        let none = Session { applies: true, wanted: None, choice: None };
        let value = match &self.place {
            Place::Cookie(config) if !covers(&config.path, view.path_only()) => return Session::default(),
            Place::Cookie(config) => cookie(view.headers, &config.name),
            Place::Header(name) => view.headers.get(name).and_then(|value| value.to_str().ok()),
            Place::Envelope(name) => {
                let value = view.headers.get(name).and_then(|value| value.to_str().ok());
                value.and_then(|value| Some(value.split_once(ORIGINAL)?.0))
            }
        };
        let mut room = [0; LONGEST];
        let Some(said) = value.and_then(|value| decode(value, &mut room)) else { return none };
        let said = unpacked(said).unwrap_or(said);
        let (address, cluster) = match find(said, CLUSTER) {
            Some(at) => (&said[..at], Some(&said[at + CLUSTER.len()..])),
            None => (said, None),
        };
        let address = std::str::from_utf8(address).ok().and_then(|text| text.parse::<SocketAddr>().ok());
        let Some(address) = address else { return none };
        let is_it = |name: &[u8]| {
            let found = split.destinations().iter().position(|it| it.weight > 0 && it.cluster.as_bytes() == name);
            found.and_then(|at| u32::try_from(at).ok())
        };
        let choice = match cluster {
            // It began at a destination that the route has no more (gRFC A60).
            Some(name) if is_it(name).is_none() => return none,
            Some(name) => is_it(name),
            None => None,
        };
        Session { applies: true, wanted: Some(Wanted { address, strict: self.strict }), choice }
    }

    /// Tells the caller who answered, where that is not whom it asked for.
    fn tell(&self, plan: &Plan, endpoint: &Endpoint, headers: &mut HeaderMap) {
        let EndpointAddress::Socket(address) = endpoint.address() else { return };
        let same = plan.session.wanted.is_some_and(|wanted| wanted.address == *address);
        let several = plan.route.split.destinations().len() > 1;
        // Of one cluster the address says it all, and any reader understands it.
        let value = match plan.cluster().filter(|_| several) {
            Some(cluster) => encode(format!("{address};cluster:{}", cluster.name()).as_bytes()),
            None => encode(address.to_string().as_bytes()),
        };
        match &self.place {
            Place::Cookie(_) | Place::Header(_) if same => {}
            Place::Cookie(cookie) => {
                if let Some(cookie) = set_cookie(cookie, &value) {
                    headers.append(header::SET_COOKIE, cookie);
                }
            }
            Place::Header(name) => {
                if let Ok(value) = HeaderValue::try_from(value) {
                    headers.insert(name, value);
                }
            }
            Place::Envelope(name) => {
                let mut values = headers.get_all(name).iter();
                // Without a word of the application there is nothing to wrap.
                let (Some(own), None) = (values.next(), values.next()) else { return };
                if let Ok(value) = HeaderValue::try_from(format!("{value}{ORIGINAL}{}", encode(own.as_bytes()))) {
                    headers.insert(name, value);
                }
            }
        }
    }
}

/// Takes off the request what was wrapped around the application's own word.
pub fn unwrap(plan: &Plan, parts: &mut Parts) {
    let Some(Sessions { place: Place::Envelope(name), .. }) = &plan.route.session else { return };
    let mut room = [0; LONGEST];
    let own = parts.headers.get(name).and_then(|value| value.to_str().ok()?.split_once(ORIGINAL));
    if let Some(own) = own.and_then(|(_, own)| HeaderValue::from_bytes(decode(own, &mut room)?).ok()) {
        parts.headers.insert(name.clone(), own);
    }
}

/// Puts on a response who gave it, where its route keeps sessions together.
pub fn tell(plan: &Plan, endpoint: &Endpoint, headers: &mut HeaderMap) {
    if let (Some(sessions), true) = (&plan.route.session, plan.session.applies) {
        sessions.tell(plan, endpoint, headers);
    }
}

/// Does a cookie of that path go with requests to this one? Source: RFC 6265, 5.1.4.
fn covers(of: &str, path: &str) -> bool {
    match path.strip_prefix(of) {
        Some(rest) => of.is_empty() || of.ends_with('/') || rest.is_empty() || rest.starts_with('/'),
        None => false,
    }
}

/// The address in Envoy's own form of the value: a message whose first field is the address.
fn unpacked(said: &[u8]) -> Option<&[u8]> {
    let (&[tag, length], rest) = said.split_first_chunk::<2>()?;
    (tag == 0x0a && length < 0x80).then(|| rest.get(..usize::from(length)))?
}

fn find(text: &[u8], part: &[u8]) -> Option<usize> {
    text.windows(part.len()).position(|window| window == part)
}

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// Base64 (RFC 4648, 4).
fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let of = |at: usize| u32::from(three.get(at).copied().unwrap_or(0));
        let bits = of(0) << 16 | of(1) << 8 | of(2);
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at)) as usize & 63];
            text.push(if at > three.len() { '=' } else { char::from(digit) });
        }
    }
    text
}

/// What base64 stands for, into `room`; `None` when it is none or does not fit.
fn decode<'a>(text: &str, room: &'a mut [u8; LONGEST]) -> Option<&'a [u8]> {
    let (mut bits, mut count, mut len) = (0_u32, 0, 0);
    for byte in text.trim_end_matches('=').bytes() {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            *room.get_mut(len)? = (bits >> count) as u8;
            len += 1;
        }
    }
    room.get(..len)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn base64_there_and_back() {
        for (text, coded) in
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("10.0.0.1:80", "MTAuMC4wLjE6ODA=")]
        {
            assert_eq!(encode(text.as_bytes()), coded);
            assert_eq!(decode(coded, &mut [0; LONGEST]).unwrap(), text.as_bytes());
        }
        let long = encode(&[b'x'; LONGEST + 1]);
        for none in ["ä", "a b", "====a", &long] {
            assert_eq!(decode(none, &mut [0; LONGEST]), None, "{none}");
        }
    }

    /// SA2: a cookie counts below its path, and nowhere else.
    #[test]
    fn a_cookie_counts_below_its_path() {
        for (of, path, counts) in [
            ("", "/any", true),
            ("/", "/any", true),
            ("/shop", "/shop", true),
            ("/shop", "/shop/cart", true),
            ("/shop", "/shopping", false),
            ("/shop/", "/shop/cart", true),
            ("/shop/", "/shop", false),
            ("/shop", "/", false),
        ] {
            assert_eq!(covers(of, path), counts, "{of} {path}");
        }
    }

    /// SA2: both gRPC's and Envoy's form of a value is read.
    #[test]
    fn envoys_form_is_read() {
        let message = [&[0x0a, 11][..], b"10.0.0.1:80", &[0x10, 5]].concat();
        assert_eq!(unpacked(&message), Some(&b"10.0.0.1:80"[..]));
        assert_eq!(unpacked(b"10.0.0.1:80"), None);
        assert_eq!(unpacked(&[0x0a, 100, b'1']), None);
    }
}
