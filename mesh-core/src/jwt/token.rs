//! One token as far as it says something by itself, and everything that can be wrong with tokens.

use std::fmt;

use crate::{claims::Claim, config::JwtProvider};

/// The algorithms tokens are signed with that are known at all.
const ALGORITHMS: [&str; 13] = [
    "ES256", "ES384", "ES512", "HS256", "HS384", "HS512", "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "EdDSA",
];

/// A token that was read, and not yet proven.
#[derive(Clone, Debug, PartialEq)]
pub struct Token {
    header: Claim,
    payload: Claim,
    encoded: String,
    not_before: Option<u64>,
    expires: Option<u64>,
}

impl Token {
    /// Of header and payload, and the payload as it was encoded. Claims that have a meaning must have their type.
    pub fn new(header: Claim, payload: Claim, encoded: &str) -> Result<Self, JwtError> {
        match header.at(["alg"]) {
            Some(Claim::Text(alg)) if ALGORITHMS.contains(&alg.as_str()) => {}
            Some(Claim::Text(_)) => return Err(JwtError::AlgorithmUnknown),
            _ => return Err(JwtError::AlgorithmMissing),
        }
        if !matches!(header.at(["kid"]), None | Some(Claim::Text(_))) {
            return Err(JwtError::KeyIdNoText);
        }
        // What a signer calls critical must be understood (RFC 7515 4.1.11), and none of it is.
        if header.at(["crit"]).is_some() {
            return Err(JwtError::Critical);
        }
        if !matches!(payload, Claim::Map(_)) {
            return Err(JwtError::PayloadNoJson);
        }
        for name in ["iss", "sub", "jti"] {
            if !matches!(payload.at([name]), None | Some(Claim::Text(_))) {
                return Err(JwtError::NoText(name));
            }
        }
        moment(&payload, "iat")?;
        let (not_before, expires) = (moment(&payload, "nbf")?, moment(&payload, "exp")?);
        let audience = match payload.at(["aud"]) {
            None | Some(Claim::Text(_)) => true,
            Some(Claim::List(list)) => list.iter().all(|it| it.as_text().is_some()),
            Some(_) => false,
        };
        if !audience {
            return Err(JwtError::AudienceNoText);
        }
        Ok(Self { header, payload, encoded: encoded.to_owned(), not_before, expires })
    }

    /// The header.
    pub fn header(&self) -> &Claim {
        &self.header
    }

    /// The payload.
    pub fn payload(&self) -> &Claim {
        &self.payload
    }

    /// The payload as it stood in the token.
    pub fn encoded(&self) -> &str {
        &self.encoded
    }

    /// The algorithm its header names.
    pub fn algorithm(&self) -> &str {
        self.header.at(["alg"]).and_then(Claim::as_text).unwrap_or_default()
    }

    /// The key its header names; an empty name is none.
    pub fn key_id(&self) -> Option<&str> {
        self.header.at(["kid"]).and_then(Claim::as_text).filter(|kid| !kid.is_empty())
    }

    /// Who says to have made it; empty where it does not say.
    pub fn issuer(&self) -> &str {
        self.payload.at(["iss"]).and_then(Claim::as_text).unwrap_or_default()
    }

    /// Does all but its signature suit the provider at this time, in seconds since 1970?
    pub(super) fn suits(&self, provider: &JwtProvider, audiences: &[String], now: u64) -> Result<(), JwtError> {
        if let Some(wanted) = &provider.subjects
            && !wanted.is_match(self.payload.at(["sub"]).and_then(Claim::as_text).unwrap_or_default())
        {
            return Err(JwtError::Unproven);
        }
        let longest = provider.max_lifetime.map(|longest| now.saturating_add(longest.as_secs()));
        match (self.expires, longest) {
            (None, _) if provider.require_expiration || longest.is_some() => return Err(JwtError::Unproven),
            (Some(expires), Some(longest)) if expires > longest => return Err(JwtError::Unproven),
            _ => {}
        }
        let skew = provider.clock_skew.as_secs();
        if self.not_before.is_some_and(|begin| begin > now.saturating_add(skew)) {
            return Err(JwtError::Early);
        }
        if self.expires.is_some_and(|end| now > end.saturating_add(skew)) {
            return Err(JwtError::Expired);
        }
        let mut own = self.payload.at(["aud"]).into_iter().flat_map(Claim::texts);
        if !audiences.is_empty() && !own.any(|own| audiences.iter().any(|wanted| bare(wanted) == bare(own))) {
            return Err(JwtError::Audience);
        }
        Ok(())
    }
}

/// A time in seconds. Not a number, below zero or too large is an error and never nothing.
fn moment(payload: &Claim, name: &'static str) -> Result<Option<u64>, JwtError> {
    match payload.at([name]) {
        None => Ok(None),
        Some(Claim::Number(seconds)) if (0.0..18_446_744_073_709_551_616.0).contains(seconds) => {
            Ok(Some(*seconds as u64))
        }
        Some(Claim::Number(_)) => Err(JwtError::NoTime(name)),
        Some(_) => Err(JwtError::NoNumber(name)),
    }
}

/// An audience without scheme and final slash. Source: Envoy, documented at `JwtProvider.audiences`.
fn bare(audience: &str) -> &str {
    let rest = audience.strip_prefix("http://").or_else(|| audience.strip_prefix("https://")).unwrap_or(audience);
    rest.strip_suffix('/').unwrap_or(rest)
}

/// Why a request is refused. Its text is the one Envoy answers with, where Envoy has one.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum JwtError {
    /// There is no token.
    Missing,
    /// It is not three parts with dots between.
    NoToken,
    /// Its header is no base64url.
    HeaderNoBase64,
    /// Its header is no JSON.
    HeaderNoJson,
    /// Its header names no algorithm.
    AlgorithmMissing,
    /// Its header names an algorithm that is not known; `none` is one.
    AlgorithmUnknown,
    /// The name of its key is no text.
    KeyIdNoText,
    /// Its header has critical parts.
    Critical,
    /// Its payload is no base64url.
    PayloadNoBase64,
    /// Its payload is no JSON.
    PayloadNoJson,
    /// This claim is no text.
    NoText(&'static str),
    /// This claim is no number.
    NoNumber(&'static str),
    /// This claim is no time.
    NoTime(&'static str),
    /// The audience is no text and no list of texts.
    AudienceNoText,
    /// Its signature is no base64url.
    SignatureNoBase64,
    /// It is longer than any that is read.
    TooLong,
    /// Nobody known has issued it.
    Issuer,
    /// It is not valid yet.
    Early,
    /// It is not valid any more.
    Expired,
    /// It is for somebody else.
    Audience,
    /// Its signature is wrong, or its subject or lifetime are not allowed.
    Unproven,
    /// No key suits its key name and algorithm.
    NoKeyMatches,
    /// The provider has no key that can be used.
    NoKeys,
    /// The provider's keys could not be fetched.
    KeysNotFetched,
    /// The provider's keys are being fetched: not an answer yet.
    KeysPending,
}

impl JwtError {
    /// The status of the answer. Source: Envoy: 403 for a token for somebody else, 401 for anything else.
    pub fn status(self) -> u16 {
        if self == Self::Audience { 403 } else { 401 }
    }
}

impl fmt::Display for JwtError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "Jwt is missing",
            Self::NoToken => "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections",
            Self::HeaderNoBase64 => "Jwt header is an invalid Base64url encoded",
            Self::HeaderNoJson => "Jwt header is an invalid JSON",
            Self::AlgorithmMissing => "Jwt header [alg] field is required and must be a string",
            Self::AlgorithmUnknown => "Jwt header [alg] is not supported",
            Self::KeyIdNoText => "Jwt header [kid] field is not a string",
            Self::Critical => "Jwt header [crit] is not supported",
            Self::PayloadNoBase64 => "Jwt payload is an invalid Base64url encoded",
            Self::PayloadNoJson => "Jwt payload is an invalid JSON",
            Self::NoText(claim) => return write!(f, "Jwt payload [{claim}] field is not a string"),
            Self::NoNumber(claim) => return write!(f, "Jwt payload [{claim}] field is not an integer"),
            Self::NoTime(claim) => return write!(f, "Jwt payload [{claim}] field is not a positive 64 bit integer"),
            Self::AudienceNoText => "Jwt payload [aud] field is not a string or string list",
            Self::SignatureNoBase64 => "Jwt signature is an invalid Base64url encoded",
            Self::TooLong => "Jwt is too long",
            Self::Issuer => "Jwt issuer is not configured",
            Self::Early => "Jwt not yet valid",
            Self::Expired => "Jwt is expired",
            Self::Audience => "Audiences in Jwt are not allowed",
            Self::Unproven => "Jwt verification fails",
            Self::NoKeyMatches => "Jwks doesn't have key to match kid or alg from Jwt",
            Self::NoKeys => "Jwks doesn't have any valid public key",
            Self::KeysNotFetched | Self::KeysPending => "Jwks remote fetch is failed",
        })
    }
}

impl std::error::Error for JwtError {}
