//! Tokens: by these a workload proves which service account it runs as, to ADS and to the certificate authority alike.
//!
//! They are JWTs of the shape Kubernetes projects into a pod (`sub` is `system:serviceaccount:NS:SA`, `aud` is `istio-ca`),
//! signed with a key of our own. The algorithm is pinned; audience, issuer and expiry are all demanded.

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, errors::ErrorKind};
use serde::{Deserialize, Serialize};

use super::{CaError, ServiceAccount, key::SecretKey};

/// Istio `TOKEN_AUDIENCES`.
const AUDIENCE: &str = "istio-ca";

const ISSUER: &str = "mesh-control";

/// Longer than any token this issues; what is not read cannot cost anything.
const MAX_TOKEN: usize = 8 * 1024;

/// Issues and verifies tokens.
pub struct Tokens {
    signing: EncodingKey,
    verifying: DecodingKey,
}

#[derive(Deserialize, Serialize)]
struct Claims {
    iss: String,
    aud: Vec<String>,
    sub: String,
    iat: u64,
    nbf: u64,
    exp: u64,
}

impl Tokens {
    /// The lifetime of a token when none is named. Kubernetes projects Istio's for 12 h.
    pub const DEFAULT_TTL: Duration = Duration::from_secs(12 * 60 * 60);

    pub(super) fn new(key: &SecretKey) -> Self {
        let key = key.pair();
        Self {
            signing: EncodingKey::from_ec_der(key.serialized_der()),
            verifying: DecodingKey::from_ec_der(key.public_key_raw()),
        }
    }

    /// A token for `account`, good from `now` for `ttl`.
    ///
    /// # Errors
    ///
    /// When it cannot be signed.
    pub fn issue(&self, account: &ServiceAccount, ttl: Duration, now: SystemTime) -> Result<String, CaError> {
        self.sign(account.subject(), AUDIENCE, ttl, now)
    }

    /// The service account that a token proves.
    ///
    /// # Errors
    ///
    /// When it is not ours, for another audience, not valid yet or not any more.
    pub fn verify(&self, token: &str) -> Result<ServiceAccount, CaError> {
        if token.len() > MAX_TOKEN {
            return Err(CaError::Token("it is too long to be one of this control plane".to_owned()));
        }
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[AUDIENCE]);
        validation.set_issuer(&[ISSUER]);
        validation.set_required_spec_claims(&["exp", "nbf", "aud", "iss", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = 30;
        let claims = jsonwebtoken::decode::<Claims>(token, &self.verifying, &validation).map_err(|error| {
            CaError::Token(match error.kind() {
                ErrorKind::ExpiredSignature => "it has expired".to_owned(),
                ErrorKind::ImmatureSignature => "it is not valid yet".to_owned(),
                ErrorKind::InvalidAudience => format!("it is not for the audience {AUDIENCE}"),
                ErrorKind::InvalidIssuer => format!("it was not issued by {ISSUER}"),
                ErrorKind::InvalidSignature => "this control plane did not sign it".to_owned(),
                _ => "it is not a token of this control plane".to_owned(),
            })
        })?;
        ServiceAccount::from_subject(&claims.claims.sub)
            .ok_or_else(|| CaError::Token("its subject is not a service account".to_owned()))
    }

    fn sign(&self, subject: String, audience: &str, ttl: Duration, now: SystemTime) -> Result<String, CaError> {
        let now = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let claims = Claims {
            iss: ISSUER.to_owned(),
            aud: vec![audience.to_owned()],
            sub: subject,
            iat: now,
            nbf: now,
            exp: now.saturating_add(ttl.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::ES256), &claims, &self.signing).map_err(CaError::crypto)
    }
}

/// Keys are not shown.
impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tokens(..)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// CT4: the token alone says who the caller is; every claim of it is demanded.
    #[test]
    fn tokens_prove_an_account_only_as_issued() {
        let tokens = Tokens::new(&SecretKey::generate().unwrap());
        let account = ServiceAccount::new("default", "bookinfo-reviews").unwrap();
        let (now, hour) = (SystemTime::now(), Duration::from_secs(3600));
        let good = tokens.issue(&account, hour, now).unwrap();
        assert_eq!(tokens.verify(&good).unwrap(), account);

        let other = Tokens::new(&SecretKey::generate().unwrap());
        let symmetric = jsonwebtoken::encode(
            &Header::new(Algorithm::HS256),
            &serde_json::json!({"sub": account.subject(), "aud": [AUDIENCE], "iss": ISSUER, "exp": 9_999_999_999_u64}),
            &EncodingKey::from_secret(b"guess"),
        );
        let unsigned = format!("eyJhbGciOiJub25lIn0.{}.", good.split('.').nth(1).unwrap());
        let cases = [
            (other.issue(&account, hour, now).unwrap(), "did not sign"),
            (tokens.sign(account.subject(), "kubernetes", hour, now).unwrap(), "audience"),
            (tokens.issue(&account, hour, now - 2 * hour).unwrap(), "expired"),
            (tokens.issue(&account, hour, now + 2 * hour).unwrap(), "not valid yet"),
            (tokens.sign("somebody".to_owned(), AUDIENCE, hour, now).unwrap(), "subject"),
            (symmetric.unwrap(), "not a token"),
            (unsigned, "not a token"),
            (String::new(), "not a token"),
            ("x".repeat(MAX_TOKEN + 1), "too long"),
        ];
        for (token, expected) in cases {
            let error = tokens.verify(&token).unwrap_err().to_string();
            assert!(error.contains(expected), "{error} should say {expected}");
        }
        assert_eq!(format!("{tokens:?}"), "Tokens(..)");
    }
}
