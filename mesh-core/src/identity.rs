//! Who a workload is: SPIFFE identities, and whether a certificate's names are among those a caller will accept.
//!
//! Parsing and comparing only; certificates are verified by whoever holds the connection.

use std::{fmt, str::FromStr};

use crate::config::StringMatch;

/// A SPIFFE identity: `spiffe://TRUST-DOMAIN/ns/NAMESPACE/sa/SERVICE-ACCOUNT`, or any other path. Source: SPIFFE ID 2.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct SpiffeId {
    uri: String,
    path_start: usize,
}

impl SpiffeId {
    /// The identity of a service account. Source: Istio `spiffe.Identity`.
    pub fn of_service_account(trust_domain: &str, namespace: &str, account: &str) -> Result<Self, SpiffeIdError> {
        format!("{SCHEME}{trust_domain}/ns/{namespace}/sa/{account}").parse()
    }

    /// `cluster.local`.
    pub fn trust_domain(&self) -> &str {
        self.uri.get(SCHEME.len()..self.path_start).unwrap_or("")
    }

    /// What stands behind the trust domain, with its first `/`; empty for the trust domain itself.
    pub fn path(&self) -> &str {
        self.uri.get(self.path_start..).unwrap_or("")
    }

    /// The namespace, when the path is `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn namespace(&self) -> Option<&str> {
        self.account().map(|(namespace, _)| namespace)
    }

    /// The service account, when the path is `/ns/NAMESPACE/sa/SERVICE-ACCOUNT`.
    pub fn service_account(&self) -> Option<&str> {
        self.account().map(|(_, account)| account)
    }

    /// The whole URI.
    pub fn as_str(&self) -> &str {
        &self.uri
    }

    fn account(&self) -> Option<(&str, &str)> {
        let (namespace, account) = self.path().strip_prefix("/ns/")?.split_once("/sa/")?;
        (!namespace.contains('/') && !account.contains('/')).then_some((namespace, account))
    }
}

impl FromStr for SpiffeId {
    type Err = SpiffeIdError;

    fn from_str(uri: &str) -> Result<Self, SpiffeIdError> {
        let rest = uri.strip_prefix(SCHEME).ok_or(SpiffeIdError("it does not begin with spiffe://"))?;
        if uri.len() > 2048 {
            return Err(SpiffeIdError("it is longer than 2048 bytes"));
        }
        let domain = rest.split('/').next().unwrap_or("");
        let in_domain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_');
        if domain.is_empty() || domain.len() > 255 || !domain.chars().all(in_domain) {
            return Err(SpiffeIdError("the trust domain must be 1 to 255 of a-z 0-9 . - _"));
        }
        let path = &rest[domain.len()..];
        let in_segment = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let segment_ok = |s: &str| !s.is_empty() && s != "." && s != ".." && s.chars().all(in_segment);
        if !path.is_empty() && !path[1..].split('/').all(segment_ok) {
            return Err(SpiffeIdError("a path segment is empty, relative, or has other than a-z A-Z 0-9 . - _"));
        }
        Ok(Self { uri: uri.to_owned(), path_start: SCHEME.len() + domain.len() })
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.uri)
    }
}

/// A text that is no SPIFFE identity, and why.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct SpiffeIdError(&'static str);

impl fmt::Display for SpiffeIdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "not a SPIFFE identity: {}", self.0)
    }
}

impl std::error::Error for SpiffeIdError {}

/// Does any of the certificate's `names` match any of the `wanted`? What an empty `wanted` means is the caller's to say
/// (see [`UpstreamTls::subject_alt_names`](crate::config::UpstreamTls::subject_alt_names)); here it matches nothing.
pub fn names_match<'a>(wanted: &[StringMatch], names: impl IntoIterator<Item = &'a str>) -> bool {
    names.into_iter().any(|name| wanted.iter().any(|matcher| matcher.is_match(name)))
}

const SCHEME: &str = "spiffe://";

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// AN5: a trust domain and a path, the service account's above all, and nothing that only looks like one.
    #[test]
    fn identities_are_parsed_strictly() {
        let id: SpiffeId = "spiffe://cluster.local/ns/default/sa/bookinfo-reviews".parse().unwrap();
        assert_eq!(id.trust_domain(), "cluster.local");
        assert_eq!((id.namespace(), id.service_account()), (Some("default"), Some("bookinfo-reviews")));
        assert_eq!(id, SpiffeId::of_service_account("cluster.local", "default", "bookinfo-reviews").unwrap());
        let other: SpiffeId = "spiffe://example.org/payments/api".parse().unwrap();
        assert_eq!((other.path(), other.namespace()), ("/payments/api", None));
        let domain: SpiffeId = "spiffe://example.org".parse().unwrap();
        assert_eq!(domain.path(), "");
        for bad in [
            "",
            "https://cluster.local/ns/a/sa/b",
            "spiffe://",
            "spiffe:///ns/a/sa/b",
            "spiffe://Cluster.local/a",
            "spiffe://cluster.local/",
            "spiffe://cluster.local//a",
            "spiffe://cluster.local/a/../b",
            "spiffe://cluster.local/a b",
            "spiffe://user@cluster.local/a",
            "spiffe://cluster.local:80/a",
        ] {
            assert!(bad.parse::<SpiffeId>().is_err(), "{bad}");
        }
        assert!(SpiffeId::of_service_account("cluster.local", "a/sa/b", "c").unwrap().namespace().is_none());
    }

    /// AN6: any one name with any one condition is enough, and no condition is met by none.
    #[test]
    fn names_match_any_to_any_and_nothing_to_none() {
        let exact = |value: &str| StringMatch::Exact { value: value.to_owned(), ignore_case: false };
        let wanted = [exact("spiffe://cluster.local/ns/default/sa/a"), exact("spiffe://cluster.local/ns/default/sa/b")];
        assert!(names_match(&wanted, ["x", "spiffe://cluster.local/ns/default/sa/b"]));
        assert!(!names_match(&wanted, ["spiffe://cluster.local/ns/default/sa/bb"]));
        assert!(!names_match(&wanted, []));
        assert!(!names_match(&[], ["spiffe://cluster.local/ns/default/sa/b"]));
    }
}
