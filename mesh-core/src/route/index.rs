//! The first matching rule of a virtual host without trying them all: an index over exact paths and path prefixes.
//!
//! Rules whose path must be equal stand in a hash table by that path. Rules by prefix stand in a sorted array of their
//! prefixes, each with a link to the longest other prefix it begins with: all prefixes of a path lie on the chain of the
//! last entry not after it, so one binary search finds them. What neither covers (regular expressions, ignored case) is a
//! list. Each list is in rule order, and is looked through only as far as the best rule found so far, so the first match
//! wins exactly as if all were tried in turn.

use hashbrown::HashMap;

use crate::config::PathMatch;

/// Rules by their path.
#[derive(Debug)]
pub(crate) struct Index(Option<Lists>);

#[derive(Debug, Default)]
struct Lists {
    exact: HashMap<Box<str>, Vec<u32>>,
    prefixes: Vec<Prefix>,
    rest: Vec<u32>,
}

#[derive(Debug)]
struct Prefix {
    text: Box<str>,
    /// The longest other prefix this one begins with.
    parent: Option<u32>,
    rules: Vec<u32>,
}

impl Index {
    /// An index of rules with these paths; a few rules are tried in turn without one.
    pub(crate) fn new<'a>(paths: impl ExactSizeIterator<Item = &'a PathMatch>) -> Self {
        if paths.len() < FEW { Self(None) } else { Self(Some(Lists::new(paths))) }
    }

    /// The lowest of `count` rules for which `matches` holds, calling it only for rules whose path may match.
    pub(crate) fn first(&self, path: &str, count: usize, mut matches: impl FnMut(usize) -> bool) -> Option<usize> {
        let Some(lists) = &self.0 else { return (0..count).find(|at| matches(*at)) };
        let mut best = None;
        let mut look = |rules: &[u32]| {
            let before = best.unwrap_or(u32::MAX);
            let found = rules.iter().take_while(|rule| **rule < before).find(|rule| matches(**rule as usize));
            best = found.copied().or(best);
        };
        if let Some(rules) = lists.exact.get(path) {
            look(rules);
        }
        let mut next = lists.last_not_after(path);
        while let Some(prefix) = next.and_then(|at| lists.prefixes.get(at as usize)) {
            if path.starts_with(&*prefix.text) {
                look(&prefix.rules);
            }
            next = prefix.parent;
        }
        look(&lists.rest);
        best.map(|rule| rule as usize)
    }
}

impl Lists {
    fn new<'a>(paths: impl Iterator<Item = &'a PathMatch>) -> Self {
        let mut lists = Self::default();
        let mut prefixes: Vec<(&str, u32)> = Vec::new();
        for (path, rule) in paths.zip(0..) {
            match path {
                PathMatch::Exact { value, ignore_case: false } => {
                    lists.exact.entry(value.as_str().into()).or_default().push(rule);
                }
                // Every path begins with `/`, and the asterisk form with nothing: both mean all.
                PathMatch::Prefix { value, ignore_case: false } => prefixes.push((value.as_str(), rule)),
                PathMatch::SegmentPrefix { value, ignore_case: false } => prefixes.push((value.as_str(), rule)),
                _ => lists.rest.push(rule),
            }
        }
        prefixes.sort_unstable();
        // The entries that the one at hand begins with, shortest first.
        let mut chain: Vec<u32> = Vec::new();
        for (text, rule) in prefixes {
            if let Some(last) = lists.prefixes.last_mut().filter(|last| &*last.text == text) {
                last.rules.push(rule);
                continue;
            }
            while chain.last().is_some_and(|at| !text.starts_with(&*lists.prefixes[*at as usize].text)) {
                chain.pop();
            }
            let parent = chain.last().copied();
            chain.push(lists.prefixes.len() as u32);
            lists.prefixes.push(Prefix { text: text.into(), parent, rules: vec![rule] });
        }
        lists
    }

    /// The last prefix that does not come after the path in order.
    fn last_not_after(&self, path: &str) -> Option<u32> {
        let after = self.prefixes.partition_point(|prefix| &*prefix.text <= path);
        after.checked_sub(1).map(|at| at as u32)
    }
}

/// Fewer rules than this are tried in turn.
const FEW: usize = 8;
