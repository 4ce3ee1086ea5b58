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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RM1: the index finds exactly what trying every rule in turn finds, whatever the mix of paths and other conditions.
    #[test]
    fn the_index_agrees_with_trying_in_turn() {
        let segment = prop::sample::select(vec!["", "/", "/a", "/ab", "/a/b", "/b", "/a/b/c", "/ab/", "b"]);
        let path = || (segment.clone(), segment.clone()).prop_map(|(a, b)| format!("{a}{b}"));
        let rule = (0..5_u8, path(), any::<bool>());
        let rules = prop::collection::vec(rule, 0..40);
        proptest!(|(rules in rules, path in path())| {
            let paths: Vec<_> = rules.iter().map(|(kind, value, _)| path_match(*kind, value)).collect();
            let other: Vec<_> = rules.iter().map(|(_, _, holds)| *holds).collect();
            let matches = |at: usize| paths[at].is_match(&path) && other[at];
            let in_turn = (0..paths.len()).find(|at| matches(*at));
            let lists = Index(Some(Lists::new(paths.iter())));
            prop_assert_eq!(lists.first(&path, paths.len(), matches), in_turn);
            prop_assert_eq!(Index::new(paths.iter()).first(&path, paths.len(), matches), in_turn);
        });
    }

    /// RM1, RM23: of ten thousand rules, only those whose path can match are tried.
    #[test]
    fn rules_of_other_paths_are_not_tried() {
        let mut paths: Vec<_> = (0..5_000).map(|n| path_match(0, &format!("/exact/{n}"))).collect();
        paths.extend((0..5_000).map(|n| path_match(2, &format!("/prefix/{n}/"))));
        paths.push(path_match(2, "/"));
        let index = Index::new(paths.iter());
        for (path, expected, most) in [
            ("/exact/4999", Some(4_999), 2),
            ("/prefix/7/x", Some(5_007), 2),
            ("/other", Some(10_000), 1),
            ("x", None, 0),
        ] {
            let mut tried = 0;
            let found = index.first(path, paths.len(), |at| {
                tried += 1;
                paths[at].is_match(path)
            });
            assert_eq!(found, expected, "{path}");
            assert!(tried <= most, "{path}: {tried} rules tried");
        }
    }

    fn path_match(kind: u8, value: &str) -> PathMatch {
        let value = value.to_owned();
        match kind {
            0 => PathMatch::Exact { value, ignore_case: false },
            1 => PathMatch::Exact { value, ignore_case: true },
            2 => PathMatch::Prefix { value, ignore_case: false },
            3 => PathMatch::Prefix { value, ignore_case: true },
            _ => PathMatch::SegmentPrefix { value, ignore_case: false },
        }
    }
}
