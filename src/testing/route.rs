//! What an assertion expects of a route, and what it found.

use std::fmt;

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
#[non_exhaustive]
pub enum Expected {
    /// It goes to one of these services, `HOST` or `HOST/SUBSET`, in these shares.
    Shares(Vec<(String, u32)>),
    /// It is answered in the service's place, with this status.
    Status(u16),
}

impl Expected {
    /// What a rule says of its clusters: their split, or the only one.
    pub(super) fn of_clusters(weights: Vec<(String, u32)>, only: &str) -> Self {
        let weights = if weights.is_empty() { vec![(only.to_owned(), 1)] } else { weights };
        Self::Shares(weights.into_iter().map(|(cluster, weight)| (service(&cluster), weight)).collect())
    }

    fn takes(&self, found: &Self) -> bool {
        match (self, found) {
            (Self::Status(expected), Self::Status(found)) => expected == found,
            (Self::Shares(expected), Self::Shares(found)) => {
                // The only destination of a rule has all of it, whatever its weight is written as.
                let alone = expected.len() == 1 && found.len() == 1;
                let same = |(expected, found): (&(String, u32), &(String, u32))| {
                    is(&expected.0, &found.0) && (alone || expected.1 == found.1)
                };
                expected.len() == found.len() && expected.iter().zip(found).all(same)
            }
            _ => false,
        }
    }
}

impl From<&str> for Expected {
    fn from(service: &str) -> Self {
        Self::Shares(vec![(service.to_owned(), 1)])
    }
}

impl From<u16> for Expected {
    fn from(status: u16) -> Self {
        Self::Status(status)
    }
}

impl<const N: usize> From<[(&str, u32); N]> for Expected {
    fn from(shares: [(&str, u32); N]) -> Self {
        Self::Shares(shares.into_iter().map(|(service, weight)| (service.to_owned(), weight)).collect())
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "an answer with status {status}"),
            Self::Shares(shares) => {
                let alone = shares.len() == 1;
                for (at, (service, weight)) in shares.iter().enumerate() {
                    f.write_str(if at == 0 { "" } else { ", " })?;
                    f.write_str(service)?;
                    if !alone {
                        write!(f, " {weight}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

/// What became of a request, and why.
#[derive(Clone, Debug)]
pub struct Routed {
    pub(super) outcome: Expected,
    pub(super) why: String,
}

impl Routed {
    /// What became of it.
    pub fn outcome(&self) -> &Expected {
        &self.outcome
    }

    /// The decision, rule by rule, as `meshctl explain` tells it.
    pub fn why(&self) -> &str {
        &self.why
    }

    /// Asserts what became of it.
    ///
    /// # Panics
    ///
    /// It is something else.
    #[track_caller]
    pub fn assert(&self, expected: impl Into<Expected>) {
        let expected = expected.into();
        assert!(expected.takes(&self.outcome), "expected {expected}, found {}:\n{}", self.outcome, self.why);
    }
}

/// `reviews.default.svc.cluster.local/v2` of Istio's name of a cluster, `outbound|9080|v2|reviews.default.svc.cluster.local`.
fn service(cluster: &str) -> String {
    let parts: Vec<&str> = cluster.split('|').collect();
    match parts.as_slice() {
        [_, _, "", host] => (*host).to_owned(),
        [_, _, subset, host] => format!("{host}/{subset}"),
        _ => cluster.to_owned(),
    }
}

/// Whether a destination as somebody wrote it means this one.
fn is(written: &str, found: &str) -> bool {
    let (written_host, written_subset) = written.split_once('/').unwrap_or((written, ""));
    let (host, subset) = found.split_once('/').unwrap_or((found, ""));
    let rest = host.strip_prefix(written_host);
    subset == written_subset && rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_may_be_written_short() {
        let found = service("outbound|9080|v2|reviews.default.svc.cluster.local");
        for (written, means) in [
            ("reviews/v2", true),
            ("reviews.default/v2", true),
            ("reviews.default.svc.cluster.local/v2", true),
            ("reviews", false),
            ("reviews/v1", false),
            ("review/v2", false),
            ("reviews.def/v2", false),
        ] {
            assert_eq!(is(written, &found), means, "{written}");
        }
    }
}
