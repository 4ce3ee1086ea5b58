//! The first matching rule of a virtual host without trying them all: an index over paths, and below each path over headers.
//!
//! Every rule stands in one list, found by a condition it cannot do without: an exact path or the longest text its path
//! must begin with (also a regular expression's, `route/index/texts.rs`), and where many rules share that, a header that
//! must have a value or begin with a text (`route/index/headers.rs`). A request looks only at the lists its own path and
//! headers lead to. Each is in rule order, and is looked through only as far as the best rule found so far, so the first
//! match wins exactly as if all were tried in turn.

use crate::{
    config::{PathMatch, RouteMatch},
    request::RequestView,
};

mod headers;
mod texts;

use headers::Headers;
use texts::{Key, Texts, literal_prefix};

/// Rules by what they ask for.
#[derive(Debug)]
pub(crate) struct Index(Option<Texts<List>>);

/// Rules of one path.
#[derive(Debug)]
enum List {
    /// In order, to be tried in turn.
    Few(Vec<u32>),
    Many(Box<Headers>),
}

impl Index {
    /// An index of rules with these conditions; a few rules are tried in turn without one.
    pub(crate) fn new(rules: &[&RouteMatch]) -> Self {
        if rules.len() < FEW { Self(None) } else { Self::of(rules) }
    }

    fn of(rules: &[&RouteMatch]) -> Self {
        let keys = rules.iter().map(|rule| path_key(&rule.path)).zip(0..);
        Self(Some(Texts::new(keys).map(|list| List::new(list, rules))))
    }

    /// The lowest of `count` rules for which `matches` holds, calling it only for rules that may match.
    pub(crate) fn first(
        &self,
        path: &str,
        view: &RequestView<'_>,
        count: usize,
        mut matches: impl FnMut(usize) -> bool,
    ) -> Option<usize> {
        let Some(texts) = &self.0 else { return (0..count).find(|at| matches(*at)) };
        let mut best = None;
        let mut look = |rules: &[u32]| {
            let before = best.unwrap_or(u32::MAX);
            let found = rules.iter().take_while(|rule| **rule < before).find(|rule| matches(**rule as usize));
            best = found.copied().or(best);
        };
        texts.visit(path, |list| match list {
            List::Few(rules) => look(rules),
            List::Many(headers) => headers.visit(view, &mut look),
        });
        best.map(|rule| rule as usize)
    }
}

impl List {
    fn new(list: Vec<u32>, rules: &[&RouteMatch]) -> Self {
        match list.len() < FEW {
            true => Self::Few(list),
            false => Self::Many(Box::new(Headers::new(&list, |rule| &rules[rule as usize].headers))),
        }
    }
}

fn path_key(path: &PathMatch) -> Key {
    match path {
        PathMatch::Exact { value, ignore_case: false } => Key::Exact(value.clone()),
        PathMatch::Prefix { value, ignore_case: false } => Key::Prefix(value.clone()),
        PathMatch::SegmentPrefix { value, ignore_case: false } => Key::Prefix(value.clone()),
        PathMatch::Regex(regex) => Key::Prefix(literal_prefix(regex.as_str())),
        _ => Key::Any,
    }
}

/// Fewer rules than this are tried in turn.
const FEW: usize = 8;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use http::request::Parts;
    use proptest::prelude::*;

    use super::*;
    use crate::{
        config::{HeaderMatch, HeaderMatcher, StringMatch},
        route::Matcher,
    };

    /// RM1: the index finds exactly what trying every rule in turn finds, whatever the mix of paths and other conditions.
    #[test]
    fn the_index_agrees_with_trying_in_turn() {
        let segment = prop::sample::select(vec!["", "/", "/a", "/ab", "/a/b", "/b", "/a/b/c", "/ab/", "b"]);
        let path = || (segment.clone(), segment.clone()).prop_map(|(a, b)| format!("{a}{b}"));
        let value = || prop::sample::select(vec!["", "a", "ab", "b", "a,b", "ba"]);
        let name = || prop::sample::select(vec!["x-a", "x-b", ":method", ":authority", "x-bin"]);
        let header = (name(), 0..10_u8, value(), 0..4_u8);
        let rule = (0..7_u8, path(), prop::collection::vec(header, 0..3), any::<bool>());
        let rules = prop::collection::vec(rule, 0..60);
        let headers = prop::collection::vec((prop::sample::select(vec!["x-a", "x-b", "x-bin"]), value()), 0..4);
        let request = (path().prop_filter("a path", |path| path.starts_with('/')), headers, any::<bool>());
        proptest!(|(rules in rules, (path, headers, grpc) in request)| {
            let wanted: Vec<_> = rules.iter().map(|(kind, value, headers, _)| route_match(*kind, value, headers)).collect();
            let matchers: Vec<_> = wanted.iter().map(|wanted| Matcher::compile(wanted, "", "").unwrap()).collect();
            let parts = parts(&path, &headers, grpc);
            let view = RequestView::of(&parts, None);
            let matches = |at: usize| rules[at].3 && matchers[at].is_match(&path, &view, 0, at);
            let in_turn = (0..rules.len()).find(|at| matches(*at));
            let wanted: Vec<_> = wanted.iter().collect();
            prop_assert_eq!(Index::of(&wanted).first(&path, &view, rules.len(), matches), in_turn);
            prop_assert_eq!(Index::new(&wanted).first(&path, &view, rules.len(), matches), in_turn);
        });
    }

    /// RM1, RM23: of ten thousand rules, only those whose path and headers can match are tried.
    #[test]
    fn rules_that_cannot_match_are_not_tried() {
        let path = |kind, value: &str| RouteMatch { path: path_match(kind, value), ..RouteMatch::default() };
        let mut rules: Vec<_> = (0..2_000).map(|n| path(0, &format!("/exact/{n}"))).collect();
        rules.extend((0..2_000).map(|n| path(2, &format!("/prefix/{n}/"))));
        rules.extend((0..2_000).map(|n| path(5, &format!("/regex/{n}-[0-9]+/.*"))));
        rules.extend(
            (0..2_000).map(|n| route_match(2, "/", &[("x-user", 0, &format!("u{n}"), 0), (":method", 0, "GET", 0)])),
        );
        rules.extend((0..2_000).map(|n| route_match(2, "/shop/", &[(&format!("x-{n}"), 9, "a", 0)])));
        rules.push(path(2, "/"));
        let rules: Vec<_> = rules.iter().collect();
        let index = Index::new(&rules);
        let matchers: Vec<_> = rules.iter().map(|rule| Matcher::compile(rule, "", "").unwrap()).collect();
        for (path, header, expected, most) in [
            ("/exact/1999", ("a", "b"), 1_999, 2),
            ("/prefix/7/x", ("a", "b"), 2_007, 2),
            ("/regex/8-77/x", ("a", "b"), 4_008, 2),
            ("/regex/8-x/x", ("a", "b"), 10_000, 2),
            ("/other", ("x-user", "u9"), 6_009, 2),
            ("/shop/1", ("x-10", "ab"), 8_010, 2),
            ("/other", ("a", "b"), 10_000, 1),
        ] {
            let parts = parts(path, &[header], false);
            let view = RequestView::of(&parts, None);
            let mut tried = 0;
            let found = index.first(path, &view, rules.len(), |at| {
                tried += 1;
                matchers[at].is_match(path, &view, 0, at)
            });
            assert_eq!(found, Some(expected), "{path} {header:?}");
            assert!(tried <= most, "{path} {header:?}: {tried} rules tried");
        }
    }

    fn parts(path: &str, headers: &[(&str, &str)], grpc: bool) -> Parts {
        let mut request = http::Request::get(format!("http://a{path}"));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if grpc {
            request = request.header("content-type", "application/grpc");
        }
        request.body(()).unwrap().into_parts().0
    }

    fn route_match(kind: u8, path: &str, headers: &[(&str, u8, &str, u8)]) -> RouteMatch {
        let header = |(name, kind, value, flags): &(&str, u8, &str, u8)| HeaderMatch {
            name: (*name).into(),
            matcher: header_matcher(*kind, value),
            invert: flags & 1 != 0,
            missing_as_empty: flags & 2 != 0,
        };
        RouteMatch { path: path_match(kind, path), headers: headers.iter().map(header).collect(), ..Default::default() }
    }

    fn header_matcher(kind: u8, text: &str) -> HeaderMatcher {
        let value = text.to_owned();
        HeaderMatcher::Value(match kind {
            0 | 8 => StringMatch::Exact { value, ignore_case: false },
            1 => StringMatch::Exact { value, ignore_case: true },
            2 | 9 => StringMatch::Prefix { value, ignore_case: false },
            3 => StringMatch::Suffix { value, ignore_case: false },
            4 => StringMatch::Contains { value, ignore_case: false },
            5 => StringMatch::Regex(format!("{text}.*").parse().unwrap()),
            6 => return HeaderMatcher::Present(text.is_empty()),
            _ => return HeaderMatcher::Range { start: 0, end: 10 },
        })
    }

    fn path_match(kind: u8, value: &str) -> PathMatch {
        let regex = |pattern: String| PathMatch::Regex(pattern.parse().unwrap());
        let text = value;
        let value = value.to_owned();
        match kind {
            0 => PathMatch::Exact { value, ignore_case: false },
            1 => PathMatch::Exact { value, ignore_case: true },
            2 => PathMatch::Prefix { value, ignore_case: false },
            3 => PathMatch::Prefix { value, ignore_case: true },
            4 => PathMatch::SegmentPrefix { value, ignore_case: false },
            5 => regex(value),
            _ => regex(format!("{text}x?(/a)*|/b.*")),
        }
    }
}
