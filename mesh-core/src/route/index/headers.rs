//! Rules of one path by a header that each cannot do without.
//!
//! Of the headers a rule needs, it is found by the one whose value the fewest others share, so that ten thousand rules
//! with `:method: GET` and a user each are told apart by the user.

use hashbrown::HashMap;
use http::HeaderName;

use super::{
    super::matcher::Value,
    texts::{Key, Texts, literal_prefix},
};
use crate::{
    config::{HeaderMatch, HeaderMatcher, HeaderSource, StringMatch},
    request::RequestView,
};

#[derive(Debug)]
pub(super) struct Headers {
    names: Vec<(HeaderSource, Texts<Vec<u32>>)>,
    /// Places in `names`, where there are so many that it is better to go by what the request has.
    places: HashMap<HeaderName, u32>,
    /// Rules that need no header.
    rest: Vec<u32>,
}

/// More names than this, and a request looks for its own headers among them instead of for them among its own.
const FEW_NAMES: usize = 8;

impl Headers {
    pub(super) fn new<'a>(rules: &[u32], conditions: impl Fn(u32) -> &'a [HeaderMatch]) -> Self {
        let mut shared: HashMap<(&str, &str), u32> = HashMap::new();
        for header in rules.iter().flat_map(|rule| conditions(*rule)).filter(|header| is_needed(header)) {
            *shared.entry((&header.name, fixed_text(header))).or_default() += 1;
        }
        let mut by_name: HashMap<&str, Vec<(Key, u32)>> = HashMap::new();
        let mut rest = Vec::new();
        for rule in rules {
            let needed = conditions(*rule).iter().filter(|header| is_needed(header));
            // What has a text of its own, then what the fewest others have.
            let rarity = |header: &&HeaderMatch| {
                let text = fixed_text(header);
                (text.is_empty(), shared.get(&(&*header.name, text)).copied().unwrap_or(0))
            };
            match needed.min_by_key(rarity) {
                Some(header) => by_name.entry(&header.name).or_default().push((key(header), *rule)),
                None => rest.push(*rule),
            }
        }
        let mut by_name: Vec<_> = by_name.into_iter().collect();
        by_name.sort_unstable_by_key(|(name, _)| *name);
        let mut names = Vec::with_capacity(by_name.len());
        for (name, keys) in by_name {
            // Names that are none were refused before.
            names.extend(HeaderSource::parse(name).map(|source| (source, Texts::new(keys.into_iter()))));
        }
        let mut places = HashMap::new();
        if names.len() > FEW_NAMES {
            for ((source, _), at) in names.iter().zip(0..) {
                if let HeaderSource::Header(name) = source {
                    places.insert(name.clone(), at);
                }
            }
        }
        Self { names, places, rest }
    }

    /// The lists of rules that this request's headers may meet.
    pub(super) fn visit(&self, view: &RequestView<'_>, look: &mut impl FnMut(&[u32])) {
        if self.places.is_empty() {
            self.names.iter().for_each(|(source, texts)| visit(source, texts, view, look));
        } else {
            for (source, texts) in self.names.iter().filter(|(source, _)| !matches!(source, HeaderSource::Header(_))) {
                visit(source, texts, view, look);
            }
            let places = view.headers.keys().filter_map(|name| self.places.get(name));
            for (source, texts) in places.filter_map(|at| self.names.get(*at as usize)) {
                visit(source, texts, view, look);
            }
        }
        look(&self.rest);
    }
}

fn visit(source: &HeaderSource, texts: &Texts<Vec<u32>>, view: &RequestView<'_>, look: &mut impl FnMut(&[u32])) {
    let mut find = |value: &[u8]| match std::str::from_utf8(value) {
        Ok(text) => texts.visit(text, |rules| look(rules)),
        // What is no text equals none and begins with none.
        Err(_) => texts.visit_rest(|rules| look(rules)),
    };
    match source.value(view) {
        Value::Headers(values) => values.for_each(|value| find(value.as_bytes())),
        value => value.joined(|value| {
            if let Some(value) = value {
                find(value);
            }
        }),
    }
}

/// Can the condition not be met without the header?
fn is_needed(header: &HeaderMatch) -> bool {
    match header.matcher {
        HeaderMatcher::Present(there) => !header.missing_as_empty && there != header.invert,
        _ => !header.missing_as_empty,
    }
}

/// A text its value must be or begin with; empty when there is none.
fn fixed_text(header: &HeaderMatch) -> &str {
    match &header.matcher {
        HeaderMatcher::Value(
            StringMatch::Exact { value, ignore_case: false } | StringMatch::Prefix { value, ignore_case: false },
        ) if !header.invert => value,
        HeaderMatcher::Value(StringMatch::Regex(regex)) if !header.invert => regex.as_str(),
        _ => "",
    }
}

fn key(header: &HeaderMatch) -> Key {
    match &header.matcher {
        _ if header.invert => Key::Any,
        HeaderMatcher::Value(StringMatch::Exact { value, ignore_case: false }) => Key::Exact(value.clone()),
        HeaderMatcher::Value(StringMatch::Prefix { value, ignore_case: false }) => Key::Prefix(value.clone()),
        HeaderMatcher::Value(StringMatch::Regex(regex)) => Key::Prefix(literal_prefix(regex.as_str())),
        _ => Key::Any,
    }
}
