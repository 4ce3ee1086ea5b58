//! From an authority to its virtual host: exact domain, longest `*.suffix`, longest `prefix.*`, then `*`.
//!
//! Every kind is a hash lookup; wildcards cost one a distinct length. Hosts are compared in lower case. Source: Envoy
//! `VirtualHost.domains`.

use hashbrown::HashMap;

use crate::{config::RouteTable, error::CompileError};

/// The domains of a route table, each with the place of its virtual host.
#[derive(Debug, Default)]
pub(crate) struct Domains {
    exact: HashMap<Box<str>, usize>,
    /// By length, longest first, without the `*`.
    suffixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    /// By length, longest first, without the `*`.
    prefixes: Vec<(usize, HashMap<Box<str>, usize>)>,
    any: Option<usize>,
}

impl Domains {
    pub(crate) fn compile(table: &RouteTable) -> Result<Self, CompileError> {
        let mut domains = Self::default();
        for (at, host) in table.virtual_hosts.iter().enumerate() {
            for domain in &host.domains {
                let domain = domain.to_ascii_lowercase();
                if domains.insert(&domain, at).is_some() {
                    let resource = format!("route table {:?}", table.name);
                    let field = format!("virtual_hosts[{:?}].domains", host.name);
                    let message = format!("{domain:?} occurs twice; give it to one virtual host");
                    return Err(CompileError::new(&resource, field, message));
                }
            }
        }
        domains.suffixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        domains.prefixes.sort_by_key(|(length, _)| std::cmp::Reverse(*length));
        Ok(domains)
    }

    fn insert(&mut self, domain: &str, at: usize) -> Option<usize> {
        if domain == "*" {
            return self.any.replace(at);
        }
        if let Some(suffix) = domain.strip_prefix('*') {
            return of_length(&mut self.suffixes, suffix.len()).insert(suffix.into(), at);
        }
        if let Some(prefix) = domain.strip_suffix('*') {
            return of_length(&mut self.prefixes, prefix.len()).insert(prefix.into(), at);
        }
        self.exact.insert(domain.into(), at)
    }

    /// The place of the virtual host that takes this authority.
    pub(crate) fn find(&self, authority: &str) -> Option<usize> {
        let mut buffer = [0; LONGEST];
        let lower = lower_case(authority, &mut buffer);
        let host = lower.as_deref().unwrap_or(authority);
        if let Some(at) = self.exact.get(host) {
            return Some(*at);
        }
        // A wildcard stands for at least one character.
        for (length, suffixes) in &self.suffixes {
            let start = host.len().checked_sub(*length).filter(|start| *start > 0);
            if let Some(at) = start.and_then(|start| host.get(start..)).and_then(|suffix| suffixes.get(suffix)) {
                return Some(*at);
            }
        }
        for (length, prefixes) in &self.prefixes {
            let prefix = host.get(..*length).filter(|_| host.len() > *length);
            if let Some(at) = prefix.and_then(|prefix| prefixes.get(prefix)) {
                return Some(*at);
            }
        }
        self.any
    }
}

/// Does the domain take the authority, whether or not another takes it more exactly?
pub(crate) fn domain_takes(domain: &str, authority: &str) -> bool {
    let (domain, authority) = (domain.to_ascii_lowercase(), authority.to_ascii_lowercase());
    match (domain.strip_prefix('*'), domain.strip_suffix('*')) {
        (Some(""), _) => true,
        (Some(suffix), _) => authority.len() > suffix.len() && authority.ends_with(suffix),
        (None, Some(prefix)) => authority.len() > prefix.len() && authority.starts_with(prefix),
        (None, None) => domain == authority,
    }
}

fn of_length(maps: &mut Vec<(usize, HashMap<Box<str>, usize>)>, length: usize) -> &mut HashMap<Box<str>, usize> {
    let at = match maps.iter().position(|(of, _)| *of == length) {
        Some(at) => at,
        None => {
            maps.push((length, HashMap::new()));
            maps.len() - 1
        }
    };
    &mut maps[at].1
}

/// The host in lower case, on the stack where it fits; `None` when it is so already, as nearly always.
fn lower_case<'a>(host: &str, buffer: &'a mut [u8; LONGEST]) -> Option<std::borrow::Cow<'a, str>> {
    if !host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return None;
    }
    let Some(target) = buffer.get_mut(..host.len()) else { return Some(host.to_ascii_lowercase().into()) };
    target.copy_from_slice(host.as_bytes());
    target.make_ascii_lowercase();
    std::str::from_utf8(target).ok().map(Into::into)
}

/// The longest DNS name with a port fits.
const LONGEST: usize = 264;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::*;
    use crate::config::VirtualHost;

    /// NR3: exact before longest suffix before longest prefix before any; case does not count; a wildcard is never empty.
    #[test]
    fn the_most_exact_domain_wins() {
        let domains = [
            "reviews",
            "reviews:9080",
            "*.example.com",
            "*.shop.example.com",
            "*-v1.example.com",
            "example.*",
            "example.co.*",
            "*",
        ];
        let table = Domains::compile(&table(&domains.map(|domain| vec![domain]))).unwrap();
        for (authority, expected) in [
            ("reviews", "reviews"),
            ("REVIEWS:9080", "reviews:9080"),
            ("reviews:9081", "*"),
            ("a.example.com", "*.example.com"),
            ("a.shop.example.com", "*.shop.example.com"),
            ("a-v1.example.com", "*-v1.example.com"),
            (".example.com", "*"),
            ("example.com", "example.*"),
            ("example.co.uk", "example.co.*"),
            ("example.", "*"),
            ("other", "*"),
            ("", "*"),
        ] {
            assert_eq!(table.find(authority).map(|at| domains[at]), Some(expected), "{authority}");
            assert!(domain_takes(expected, authority), "{authority}");
        }
        let long = format!("{}.EXAMPLE.com", "a".repeat(300));
        assert_eq!(table.find(&long).map(|at| domains[at]), Some("*.example.com"));
    }

    /// NR3: no host for what no domain takes, and an error that names a domain given twice.
    #[test]
    fn without_a_wildcard_an_unknown_host_is_none_and_a_domain_is_given_once() {
        let none = Domains::compile(&table(&[vec!["a"], vec!["b", "*.b"]])).unwrap();
        assert_eq!((none.find("c"), none.find("x.b")), (None, Some(1)));
        let error = Domains::compile(&table(&[vec!["a"], vec!["A"]])).unwrap_err();
        assert!(error.to_string().contains("\"a\" occurs twice"), "{error}");
    }

    fn table(hosts: &[Vec<&str>]) -> RouteTable {
        let host = |domains: &Vec<&str>| {
            Arc::new(VirtualHost {
                domains: domains.iter().map(|d| (*d).to_owned()).collect(),
                ..VirtualHost::default()
            })
        };
        RouteTable { virtual_hosts: hosts.iter().map(host).collect(), ..RouteTable::default() }
    }
}
