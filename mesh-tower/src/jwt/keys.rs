//! Key sets, and whether one of their keys has signed a token.
//!
//! A key is good for the algorithms of its type alone, and for one alone where it names it: what a token calls its algorithm
//! chooses nothing else. Keys of unknown types, for other uses, or too weak are passed over; secrets count only where they are
//! configured, never where they were fetched. Source: RFC 7517, RFC 7518.

use jsonwebtoken::{Algorithm, DecodingKey, crypto};
use mesh_core::jwt::{JwtError, Token};
use serde_json::Value;

/// The most keys of one set.
const KEYS: usize = 128;
/// The shortest modulus of RSA and the shortest secret, in bytes.
const MODULUS: usize = 256;
const SECRET: usize = 32;

/// The keys of one provider.
#[derive(Debug, Default)]
pub(crate) struct KeySet {
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithm: Option<String>,
    /// What its type is good for.
    allowed: &'static [Algorithm],
    key: DecodingKey,
}

impl KeySet {
    /// The keys of a set that can be used.
    pub(crate) fn parse(text: &str, fetched: bool) -> Result<Self, String> {
        let set: Value = serde_json::from_str(text).map_err(|error| format!("it is no JSON: {error}"))?;
        let keys = set.get("keys").and_then(Value::as_array).ok_or("it has no list of keys")?;
        if keys.len() > KEYS {
            return Err(format!("it has more than {KEYS} keys"));
        }
        let keys: Vec<Key> = keys.iter().filter_map(|key| Key::parse(key, fetched)).collect();
        if keys.is_empty() { Err("it has no key that can be used".to_owned()) } else { Ok(Self { keys }) }
    }

    /// Has one of the keys signed the token, whose text this is?
    pub(super) fn prove(&self, text: &str, token: &Token) -> Result<(), JwtError> {
        if self.keys.is_empty() {
            return Err(JwtError::NoKeys);
        }
        let (signed, signature) = text.rsplit_once('.').ok_or(JwtError::NoToken)?;
        let suits = |key: &&Key| {
            let by_id = token.key_id().zip(key.id.as_deref()).is_none_or(|(wanted, own)| wanted == own);
            by_id && key.algorithm.as_deref().is_none_or(|own| own == token.algorithm())
        };
        let mut suiting = self.keys.iter().filter(suits).peekable();
        if suiting.peek().is_none() {
            return Err(JwtError::NoKeyMatches);
        }
        let algorithm: Algorithm = token.algorithm().parse().map_err(|_| JwtError::Unproven)?;
        let proves = |key: &Key| {
            key.allowed.contains(&algorithm)
                && crypto::verify(signature, signed.as_bytes(), &key.key, algorithm).unwrap_or(false)
        };
        if suiting.any(proves) { Ok(()) } else { Err(JwtError::Unproven) }
    }
}

impl Key {
    /// `None` for a key that cannot be used.
    fn parse(value: &Value, fetched: bool) -> Option<Self> {
        const RSA: &[Algorithm] = &[
            Algorithm::RS256,
            Algorithm::RS384,
            Algorithm::RS512,
            Algorithm::PS256,
            Algorithm::PS384,
            Algorithm::PS512,
        ];
        const SECRETS: &[Algorithm] = &[Algorithm::HS256, Algorithm::HS384, Algorithm::HS512];
        let text = |name| value.get(name).and_then(Value::as_str);
        let optional = |name| match value.get(name) {
            None => Some(None),
            Some(Value::String(text)) => Some(Some(text.clone()).filter(|text| !text.is_empty())),
            Some(_) => None,
        };
        if text("use").is_some_and(|usage| usage != "sig") {
            return None;
        }
        let (allowed, key): (&[Algorithm], _) = match (text("kty")?, text("crv")) {
            ("RSA", _) => {
                let bytes = decode(text("n")?)?;
                let length = bytes.iter().skip_while(|byte| **byte == 0).count();
                if length < MODULUS {
                    return None;
                }
                (RSA, DecodingKey::from_rsa_components(text("n")?, text("e")?).ok()?)
            }
            ("EC", Some("P-256")) => {
                (&[Algorithm::ES256], DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("EC", Some("P-384")) => {
                (&[Algorithm::ES384], DecodingKey::from_ec_components(text("x")?, text("y")?).ok()?)
            }
            ("OKP", Some("Ed25519")) => (&[Algorithm::EdDSA], DecodingKey::from_ed_components(text("x")?).ok()?),
            ("oct", _) if !fetched => {
                let secret = decode(text("k")?).filter(|secret| secret.len() >= SECRET)?;
                (SECRETS, DecodingKey::from_secret(&secret))
            }
            _ => return None,
        };
        Some(Self { id: optional("kid")?, algorithm: optional("alg")?, allowed, key })
    }
}

/// Base64url without padding.
pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
    URL_SAFE_NO_PAD.decode(text).ok()
}
