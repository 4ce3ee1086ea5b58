//! A service account: the name of an identity, as Kubernetes and SPIFFE write it.

use std::fmt;

use super::CaError;

/// Namespace and service account, both checked when made, so that neither can smuggle a path into a SPIFFE id.
#[derive(Clone, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct ServiceAccount {
    namespace: String,
    name: String,
}

impl ServiceAccount {
    /// Checks both names.
    ///
    /// # Errors
    ///
    /// When one is not a DNS name (RFC 1123), which is what Kubernetes allows.
    pub fn new(namespace: &str, name: &str) -> Result<Self, CaError> {
        if !is_dns_name(namespace) || namespace.contains('.') {
            return Err(CaError::Name(namespace.to_owned(), "namespace"));
        }
        if !is_dns_name(name) {
            return Err(CaError::Name(name.to_owned(), "service account"));
        }
        Ok(Self { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// Reads `system:serviceaccount:NAMESPACE:NAME`, the subject of Kubernetes' tokens.
    pub fn from_subject(subject: &str) -> Option<Self> {
        let (namespace, name) = subject.strip_prefix("system:serviceaccount:")?.split_once(':')?;
        Self::new(namespace, name).ok()
    }

    /// `system:serviceaccount:default:bookinfo-reviews`.
    pub fn subject(&self) -> String {
        format!("system:serviceaccount:{}:{}", self.namespace, self.name)
    }

    /// `spiffe://cluster.local/ns/default/sa/bookinfo-reviews`.
    pub fn spiffe_id(&self, trust_domain: &str) -> String {
        format!("spiffe://{trust_domain}/ns/{}/sa/{}", self.namespace, self.name)
    }

    /// `default`.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// `bookinfo-reviews`.
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// `default/bookinfo-reviews`.
impl fmt::Display for ServiceAccount {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn is_dns_name(name: &str) -> bool {
    let alphanumeric = |byte: Option<&u8>| byte.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    name.len() <= 253
        && name.split('.').all(|label| {
            let label = label.as_bytes();
            alphanumeric(label.first())
                && alphanumeric(label.last())
                && label.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use super::*;

    #[test]
    fn subjects_and_ids_have_the_shape_of_kubernetes_and_spiffe() {
        let account = ServiceAccount::from_subject("system:serviceaccount:default:bookinfo-reviews").unwrap();
        assert_eq!(account.to_string(), "default/bookinfo-reviews");
        assert_eq!(account.subject(), "system:serviceaccount:default:bookinfo-reviews");
        assert_eq!(account.spiffe_id("cluster.local"), "spiffe://cluster.local/ns/default/sa/bookinfo-reviews");
    }

    #[test]
    fn names_that_could_escape_the_id_are_refused() {
        for (namespace, name) in
            [("", "a"), ("a", ""), ("a/b", "c"), ("a", "b/../c"), ("a.b", "c"), ("A", "b"), ("a", "-b"), ("a", "b:c")]
        {
            assert!(ServiceAccount::new(namespace, name).is_err(), "{namespace:?} {name:?}");
        }
        for subject in ["", "default:a", "system:serviceaccount:default", "system:serviceaccount:a:b:c"] {
            assert_eq!(ServiceAccount::from_subject(subject), None, "{subject}");
        }
        assert!(ServiceAccount::new("istio-system", "a.b-1").is_ok());
    }
}
