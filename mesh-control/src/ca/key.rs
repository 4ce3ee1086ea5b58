//! A private key that is wiped when it is dropped and cannot be printed.

use std::{fmt, path::Path};

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use zeroize::{Zeroize, Zeroizing};

use super::CaError;

/// A key that signs.
pub(super) struct SecretKey(KeyPair);

impl SecretKey {
    /// A new P-256 key.
    pub(super) fn generate() -> Result<Self, CaError> {
        KeyPair::generate().map(Self).map_err(CaError::crypto)
    }

    /// The key in the text of a file: PKCS #8, on a curve or RSA.
    pub(super) fn read(path: &Path, pem: &str) -> Result<Self, CaError> {
        let wrong = |reason: String| CaError::Key { path: path.to_owned(), reason };
        for (label, kind) in [("RSA PRIVATE KEY", "PKCS #1"), ("EC PRIVATE KEY", "SEC 1")] {
            if pem.contains(label) {
                let hint = "convert it with `openssl pkcs8 -topk8 -nocrypt`";
                return Err(wrong(format!("it is in the older form {kind}; {hint}")));
            }
        }
        KeyPair::from_pem(pem).map(Self).map_err(|error| wrong(error.to_string()))
    }

    pub(super) fn pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.0.serialize_pem())
    }

    /// For a TLS library, which is to wipe it itself.
    pub(super) fn der(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(self.0.serialize_der()))
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.0
    }
}

impl SigningKey for SecretKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

impl PublicKeyData for SecretKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

/// Keys are not shown.
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretKey(..)")
    }
}
