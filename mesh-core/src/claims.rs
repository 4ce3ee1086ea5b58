//! What verified tokens say: the payloads of a request's JWTs as plain values, for policy to look into.
//!
//! Nothing here parses or verifies a token: whoever does (`mesh-tower`) puts in only what was proven, and policy reads it by
//! path, as Envoy's matchers read the dynamic metadata `envoy.filters.http.jwt_authn`. Numbers are doubles and repeated names
//! refuse the payload, so that no two readers can take it in two ways.

use std::{collections::BTreeMap, fmt};

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, SeqAccess, Visitor},
};

/// The metadata that verified payloads stand in. Source: Envoy HTTP filter `envoy.filters.http.jwt_authn`.
pub const JWT_METADATA: &str = "envoy.filters.http.jwt_authn";
/// The name Istio puts every payload under. Source: Istio, Envoy `JwtProvider.payload_in_metadata`.
pub const PAYLOAD: &str = "payload";

/// A value of JSON.
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// `null`.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// Any number.
    Number(f64),
    /// A text.
    Text(String),
    /// Values in order.
    List(Vec<Self>),
    /// Values by name.
    Map(BTreeMap<String, Self>),
}

impl Claim {
    /// What stands under these names, one within the other; of an empty path the value itself.
    pub fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Self> {
        path.into_iter().try_fold(self, |value, name| match value {
            Self::Map(map) => map.get(name),
            _ => None,
        })
    }

    /// The text, if it is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// As JSON, names in order.
    pub fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out);
        out
    }

    fn write(&self, out: &mut String) {
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(value) => out.push_str(if *value { "true" } else { "false" }),
            Self::Number(value) => out.push_str(&value.to_string()),
            Self::Text(text) => quote(text, out),
            Self::List(list) => {
                out.push('[');
                for (i, value) in list.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    value.write(out);
                }
                out.push(']');
            }
            Self::Map(map) => {
                out.push('{');
                for (i, (name, value)) in map.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    quote(name, out);
                    out.push(':');
                    value.write(out);
                }
                out.push('}');
            }
        }
    }

    /// The texts of a list of texts, or the one text; others are left out.
    pub fn texts(&self) -> impl Iterator<Item = &str> {
        let (one, list) = match self {
            Self::Text(text) => (Some(text.as_str()), [].as_slice()),
            Self::List(list) => (None, list.as_slice()),
            _ => (None, [].as_slice()),
        };
        one.into_iter().chain(list.iter().filter_map(Self::as_text))
    }
}

/// A text in quotes (RFC 8259 7).
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => out.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The payloads of the verified tokens of one request, by the name each is put under; with Istio all under [`PAYLOAD`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Claims {
    payloads: BTreeMap<String, Claim>,
}

impl Claims {
    /// Puts a verified payload under a name; of two under one name the later stays, as in Envoy.
    pub fn insert(&mut self, name: &str, payload: Claim) {
        self.payloads.insert(name.to_owned(), payload);
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.payloads.is_empty()
    }

    /// What stands under a path, its first part the name of a payload.
    pub fn at<'a>(&self, path: impl IntoIterator<Item = &'a str>) -> Option<&Claim> {
        let mut path = path.into_iter();
        self.payloads.get(path.next()?)?.at(path)
    }

    /// Who the request is authenticated as: `ISSUER/SUBJECT`. Source: Istio `request.auth.principal`.
    pub fn principal(&self) -> Option<String> {
        let text = |name| self.at([PAYLOAD, name])?.as_text();
        Some(format!("{}/{}", text("iss")?, text("sub")?))
    }

    /// For whom the token was made. Source: Istio `request.auth.audiences`, claim `aud`, a text or a list.
    pub fn audiences(&self) -> impl Iterator<Item = &str> {
        self.at([PAYLOAD, "aud"]).into_iter().flat_map(Claim::texts)
    }

    /// To whom the token was given. Source: Istio `request.auth.presenter`, claim `azp`.
    pub fn presenter(&self) -> Option<&str> {
        self.at([PAYLOAD, "azp"])?.as_text()
    }
}

impl<'de> Deserialize<'de> for Claim {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Claim;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E: Error>(self) -> Result<Claim, E> {
        Ok(Claim::Null)
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Claim, E> {
        Ok(Claim::Bool(value))
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Claim, E> {
        Ok(Claim::Number(value as f64))
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Claim, E> {
        Ok(Claim::Number(value as f64))
    }

    fn visit_f64<E: Error>(self, value: f64) -> Result<Claim, E> {
        Ok(Claim::Number(value))
    }

    fn visit_str<E: Error>(self, value: &str) -> Result<Claim, E> {
        Ok(Claim::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<Claim, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = values.next_element()? {
            list.push(value);
        }
        Ok(Claim::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Claim, A::Error> {
        let mut map = BTreeMap::new();
        while let Some((name, value)) = entries.next_entry::<String, Claim>()? {
            if map.contains_key(&name) {
                return Err(A::Error::custom("a name is repeated"));
            }
            map.insert(name, value);
        }
        Ok(Claim::Map(map))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn claims(payload: &str) -> Claims {
        let mut claims = Claims::default();
        claims.insert(PAYLOAD, serde_json::from_str(payload).unwrap());
        claims
    }

    /// AN13: policy looks into a verified payload by path, and takes principal, audiences and presenter from it.
    #[test]
    fn verified_payloads_are_read_by_path() {
        let one =
            claims(r#"{"iss": "a", "sub": "b", "aud": "x", "azp": "p", "group": {"id": [1, "admin", true, null]}}"#);
        assert_eq!(one.principal().as_deref(), Some("a/b"));
        assert_eq!(one.audiences().collect::<Vec<_>>(), ["x"]);
        assert_eq!(one.presenter(), Some("p"));
        let group = one.at([PAYLOAD, "group", "id"]).unwrap();
        let expected = [Claim::Number(1.0), Claim::Text("admin".to_owned()), Claim::Bool(true), Claim::Null];
        assert_eq!(*group, Claim::List(expected.to_vec()));
        assert_eq!(group.texts().collect::<Vec<_>>(), ["admin"]);
        assert_eq!(one.at([PAYLOAD, "group", "id", "0"]), None);
        assert_eq!(one.at(["other", "iss"]), None);

        let two = claims(r#"{"iss": "a", "sub": 7, "aud": ["x", 1, "y"]}"#);
        assert_eq!(two.principal(), None, "a subject that is no text is none");
        assert_eq!(two.audiences().collect::<Vec<_>>(), ["x", "y"]);
        assert_eq!(two.presenter(), None);
        let text = r#"{"a":[1,-2.5,true,null,"\"x\\\u000a"],"b":{}}"#;
        assert_eq!(serde_json::from_str::<Claim>(text).unwrap().to_json(), text);
        assert!(Claims::default().is_empty() && Claims::default().principal().is_none());
    }

    /// AN13: a payload that says one name twice could be read in two ways, so it is not read.
    #[test]
    fn a_repeated_name_refuses_the_payload() {
        assert!(serde_json::from_str::<Claim>(r#"{"sub": "a", "sub": "b"}"#).is_err());
        assert!(serde_json::from_str::<Claim>(r#"{"x": {"a": 1, "a": 1}}"#).is_err());
    }
}
