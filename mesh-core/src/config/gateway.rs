//! What a gateway takes in at a port besides plain HTTP: which names over TLS, with which certificates, and what becomes of it.
//! Source: Envoy `Listener` of a gateway, its filter chains by `server_names`.
//!
//! Certificates are named here and given beside their names once they are known, so that a change of one is a change of the
//! configuration like any other. Keys are neither shown nor written.

use std::{fmt, sync::Arc, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use super::{CertificateFiles, Name, Rbac, StringMatch, TlsVersions, WeightedCluster};

/// How long bytes may stand still. Source: Envoy `TcpProxy.idle_timeout`.
const IDLE: Duration = Duration::from_secs(3600);

/// A port of a gateway that takes TLS, or bytes of any kind. Ports that take plain HTTP alone are none of these: their routes
/// are those of the port.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Gateway {
    /// What connections are told apart by; see [`Gateway::chain`].
    pub chains: Vec<Arc<GatewayChain>>,
}

/// What holds for connections to some names. Source: Envoy `FilterChain`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct GatewayChain {
    /// For people. Envoy `FilterChain.name`.
    pub name: Name,
    /// Names that callers ask for in the handshake: in full or `*.suffix`, in lower case; empty takes every one, and none.
    ///
    /// Envoy `FilterChainMatch.server_names`.
    pub server_names: Vec<String>,
    /// How TLS is ended here; `None` leaves the bytes as they are.
    pub tls: Option<Arc<GatewayTls>>,
    /// What becomes of what comes.
    pub to: GatewayTo,
    /// What a connection must pass whose bytes are handed on, in order. Of requests such rules know nothing: a condition on one is
    /// neither met nor not met. Envoy network filter `RBAC`.
    pub rules: Vec<Arc<Rbac>>,
    /// How long a connection whose bytes are handed on may stand still: it is closed then. `None` is an hour, zero no limit.
    ///
    /// Envoy `TcpProxy.idle_timeout`.
    pub idle_timeout: Option<Duration>,
}

impl GatewayChain {
    /// How long it may stand still, if that is limited.
    pub fn idle_limit(&self) -> Option<Duration> {
        Some(self.idle_timeout.unwrap_or(IDLE)).filter(|limit| !limit.is_zero())
    }
}

/// What becomes of a connection.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayTo {
    /// Its requests go by the routes of the [target](super::Config::targets) of this name.
    Http(Name),
    /// Its bytes go to one of these, by weight. Envoy `TcpProxy`.
    Bytes(Vec<WeightedCluster>),
}

impl Default for GatewayTo {
    /// Nowhere: the connection is closed.
    fn default() -> Self {
        Self::Bytes(Vec::new())
    }
}

/// How a gateway ends TLS. Source: Envoy `DownstreamTlsContext`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct GatewayTls {
    /// What it shows: the first that the caller can take.
    pub certificates: Vec<GatewayCertificate>,
    /// Whether callers show one.
    pub callers: CallerCertificate,
    /// By what callers' certificates are judged.
    pub roots: Option<GatewayRoots>,
    /// Any one must match a name of the caller's certificate; empty takes every name. Envoy `match_typed_subject_alt_names`.
    pub subject_alt_names: Vec<StringMatch>,
    /// Protocols offered. Istio: `h2`, `http/1.1`.
    pub alpn: Vec<String>,
    /// Versions spoken. Envoy `tls_params`.
    pub versions: TlsVersions,
    /// Ciphers of TLS 1.2, by OpenSSL's names; empty is all that are safe. Envoy `tls_params.cipher_suites`.
    pub ciphers: Vec<String>,
}

/// Source: Istio `ServerTLSSettings.TLSmode`, Envoy `require_client_certificate`.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum CallerCertificate {
    /// Not asked for. `SIMPLE`.
    #[default]
    None,
    /// Asked for; who shows none is taken all the same. `OPTIONAL_MUTUAL`.
    Optional,
    /// Demanded. `MUTUAL`.
    Required,
}

/// A certificate that a gateway shows.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayCertificate {
    /// The process's own of the mesh. Istio `ISTIO_MUTUAL`.
    Own,
    /// Of files of its machine.
    Files(CertificateFiles),
    /// Of the control plane, by its name; `None` while it has not come.
    Named(Name, Option<Arc<KeyPair>>),
}

/// By what the certificates of a gateway's callers are judged.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum GatewayRoots {
    /// The mesh's own roots, and its identities. Istio `ISTIO_MUTUAL`.
    Mesh,
    /// Of a file of its machine.
    File(String),
    /// Of the control plane, by its name; `None` while it has not come.
    Named(Name, Option<Arc<RootCertificates>>),
}

/// Roots and lists of revoked certificates, in DER.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct RootCertificates {
    /// Envoy `trusted_ca`.
    pub roots: Vec<Arc<[u8]>>,
    /// Envoy `crl`.
    pub crls: Vec<Arc<[u8]>>,
}

/// A certificate with its key, in PEM.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct KeyPair {
    /// Leaf first.
    pub chain: String,
    /// The leaf's key.
    #[serde(default, skip)]
    pub key: PrivateKey,
}

/// A private key in PEM. It is not shown, not written with the rest of a configuration, and wiped when the last who has it is dropped.
#[derive(Clone, Default, Eq, PartialEq)]
pub struct PrivateKey(Arc<Zeroizing<String>>);

impl PrivateKey {
    /// Of a text in PEM.
    pub fn new(pem: impl Into<Zeroizing<String>>) -> Self {
        Self(Arc::new(pem.into()))
    }

    /// The text, for whoever signs with it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey")
    }
}

impl Serialize for PrivateKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_unit()
    }
}

impl<'de> Deserialize<'de> for PrivateKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <()>::deserialize(deserializer)?;
        Ok(Self::default())
    }
}

impl Gateway {
    /// Is a connection looked into before it is known where it goes?
    pub fn inspects(&self) -> bool {
        self.chains.iter().any(|chain| chain.tls.is_some() || !chain.server_names.is_empty())
    }

    /// The chain for a name, empty if none was asked for: the one that has it in full, else by the longest `*.suffix`, else the
    /// one for every name. `None` closes the connection. Source: Envoy `FilterChainMatch.server_names`.
    pub fn chain(&self, server_name: &str) -> Option<&Arc<GatewayChain>> {
        let name = server_name.to_ascii_lowercase();
        let fit = |chain: &GatewayChain| {
            if chain.server_names.is_empty() {
                return Some(0);
            }
            let names = chain.server_names.iter().filter_map(|known| match known.strip_prefix('*') {
                None => (*known == name).then_some(usize::MAX),
                Some(suffix) => (name.len() > suffix.len() && name.ends_with(suffix)).then_some(suffix.len()),
            });
            names.max()
        };
        let mut best: Option<(usize, &Arc<GatewayChain>)> = None;
        for chain in &self.chains {
            if let Some(fit) = fit(chain)
                && best.is_none_or(|(other, _)| fit > other)
            {
                best = Some((fit, chain));
            }
        }
        best.map(|(_, chain)| chain)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    /// GW1: of several chains the one counts whose name is the closest to the one asked for; a suffix is whole labels only.
    #[test]
    fn the_closest_name_has_the_connection() {
        let chain = |names: &[&str]| {
            let server_names = names.iter().map(|name| (*name).to_owned()).collect();
            Arc::new(GatewayChain { name: names.join(",").as_str().into(), server_names, ..GatewayChain::default() })
        };
        let mut gateway = Gateway {
            chains: vec![
                chain(&["*.example.com"]),
                chain(&["a.example.com", "b.test"]),
                chain(&["*.deep.example.com"]),
            ],
        };
        let cases = [
            ("a.example.com", Some("a.example.com,b.test")),
            ("B.TEST", Some("a.example.com,b.test")),
            ("c.example.com", Some("*.example.com")),
            ("x.deep.example.com", Some("*.deep.example.com")),
            ("example.com", None),
            ("xexample.com", None),
            ("", None),
        ];
        for (name, expected) in cases {
            assert_eq!(gateway.chain(name).map(|chain| &*chain.name), expected, "{name}");
        }
        gateway.chains.push(chain(&[]));
        assert_eq!(gateway.chain("").map(|chain| &*chain.name), Some(""));
        assert_eq!(gateway.chain("a.example.com").map(|chain| &*chain.name), Some("a.example.com,b.test"));
    }

    /// GW1: keys are neither printed nor written.
    #[test]
    fn keys_are_not_shown() {
        let pair = KeyPair { chain: "chain".to_owned(), key: PrivateKey::new("hush".to_owned()) };
        assert!(!format!("{pair:?}").contains("hush"));
        let written = serde_json::to_string(&pair).unwrap();
        assert!(!written.contains("hush"));
        let read: KeyPair = serde_json::from_str(&written).unwrap();
        assert_eq!((read.chain.as_str(), read.key), ("chain", PrivateKey::default()));
    }
}
