//! Things found by a text: it is equal to theirs, or begins with theirs.
//!
//! What must be equal stands in a hash table. Prefixes stand in a sorted array, each with a link to the longest other
//! prefix it begins with: all prefixes of a text lie on the chain of the longest one. That is found by hash: one pass over the
//! text gives the hash of its beginning at every length that some prefix has, and the longest that is known is it. Where
//! prefixes have very many lengths a binary search finds the last entry not after the text, whose chain they lie on too.

use hashbrown::{HashMap, HashTable};

use crate::rng::mix;

/// What a text must be like.
#[derive(Debug)]
pub(super) enum Key {
    Exact(String),
    Prefix(String),
    Any,
}

#[derive(Debug)]
pub(super) struct Texts<T> {
    exact: HashMap<Box<str>, T>,
    prefixes: Vec<Prefix<T>>,
    lengths: Lengths,
    /// Found by every text.
    rest: Option<T>,
}

#[derive(Debug)]
struct Prefix<T> {
    text: Box<str>,
    /// The longest other prefix this one begins with.
    parent: Option<u32>,
    found: T,
}

impl Texts<Vec<u32>> {
    /// Numbers by their keys; in each list they stand in the order given.
    pub(super) fn new(keys: impl Iterator<Item = (Key, u32)>) -> Self {
        let mut exact: HashMap<Box<str>, Vec<u32>> = HashMap::new();
        let mut prefixes: Vec<(String, u32)> = Vec::new();
        let mut rest = Vec::new();
        for (key, number) in keys {
            match key {
                Key::Exact(text) => exact.entry(text.into()).or_default().push(number),
                Key::Prefix(text) if !text.is_empty() => prefixes.push((text, number)),
                _ => rest.push(number),
            }
        }
        prefixes.sort_unstable();
        let prefixes = chain(prefixes);
        Self { exact, lengths: Lengths::new(&prefixes), prefixes, rest: (!rest.is_empty()).then_some(rest) }
    }
}

fn chain(sorted: Vec<(String, u32)>) -> Vec<Prefix<Vec<u32>>> {
    let mut prefixes: Vec<Prefix<Vec<u32>>> = Vec::new();
    // The entries that the one at hand begins with, shortest first.
    let mut chain: Vec<u32> = Vec::new();
    for (text, number) in sorted {
        if let Some(last) = prefixes.last_mut().filter(|last| *last.text == *text) {
            last.found.push(number);
            continue;
        }
        while chain.last().is_some_and(|at| !text.starts_with(&*prefixes[*at as usize].text)) {
            chain.pop();
        }
        let parent = chain.last().copied();
        chain.push(prefixes.len() as u32);
        prefixes.push(Prefix { text: text.into(), parent, found: vec![number] });
    }
    prefixes
}

impl<T> Texts<T> {
    /// The same keys for other things.
    pub(super) fn map<U>(self, mut other: impl FnMut(T) -> U) -> Texts<U> {
        Texts {
            exact: self.exact.into_iter().map(|(text, found)| (text, other(found))).collect(),
            prefixes: self
                .prefixes
                .into_iter()
                .map(|Prefix { text, parent, found }| Prefix { text, parent, found: other(found) })
                .collect(),
            lengths: self.lengths,
            rest: self.rest.map(other),
        }
    }

    /// Everything whose key this text meets.
    pub(super) fn visit(&self, text: &str, mut visit: impl FnMut(&T)) {
        if let Some(found) = self.exact.get(text) {
            visit(found);
        }
        let mut next = match &self.lengths {
            Lengths::Few(few) => few.longest(text.as_bytes(), &self.prefixes),
            Lengths::Many => self.last_not_after(text),
        };
        while let Some(prefix) = next.and_then(|at| self.prefixes.get(at as usize)) {
            if text.starts_with(&*prefix.text) {
                visit(&prefix.found);
            }
            next = prefix.parent;
        }
        self.visit_rest(visit);
    }

    /// Everything whose key any text meets.
    pub(super) fn visit_rest(&self, mut visit: impl FnMut(&T)) {
        if let Some(found) = &self.rest {
            visit(found);
        }
    }

    /// The last prefix that does not come after the text in order.
    fn last_not_after(&self, text: &str) -> Option<u32> {
        let after = self.prefixes.partition_point(|prefix| &*prefix.text <= text);
        after.checked_sub(1).map(|at| at as u32)
    }
}

/// The lengths that prefixes have.
#[derive(Debug)]
enum Lengths {
    Few(Few),
    Many,
}

/// Prefixes by hash.
#[derive(Debug)]
struct Few {
    /// Shortest first; at most [`MOST_LENGTHS`].
    lengths: Vec<usize>,
    places: HashTable<u32>,
}

impl Lengths {
    fn new<T>(prefixes: &[Prefix<T>]) -> Self {
        let mut lengths: Vec<_> = prefixes.iter().map(|prefix| prefix.text.len()).collect();
        lengths.sort_unstable();
        lengths.dedup();
        if lengths.len() > MOST_LENGTHS {
            return Self::Many;
        }
        let hash = |at: u32| prefixes.get(at as usize).map_or(0, |prefix| mix(hash(BASIS, prefix.text.as_bytes())));
        let mut places = HashTable::with_capacity(prefixes.len());
        for at in 0..prefixes.len() as u32 {
            places.insert_unique(hash(at), at, |at| hash(*at));
        }
        Self::Few(Few { lengths, places })
    }
}

impl Few {
    /// The longest prefix that the text begins with.
    fn longest<T>(&self, text: &[u8], prefixes: &[Prefix<T>]) -> Option<u32> {
        let mut heads = [(0, &[][..]); MOST_LENGTHS];
        let mut count = 0;
        let (mut so_far, mut done) = (BASIS, 0);
        for (head, length) in heads.iter_mut().zip(&self.lengths) {
            let Some(more) = text.get(done..*length) else { break };
            (so_far, done) = (hash(so_far, more), *length);
            *head = (mix(so_far), &text[..done]);
            count += 1;
        }
        heads[..count].iter().rev().find_map(|(hash, head)| {
            let is_it = |at: &u32| prefixes.get(*at as usize).is_some_and(|prefix| prefix.text.as_bytes() == *head);
            self.places.find(*hash, is_it).copied()
        })
    }
}

/// FNV-1a: the hash of a text can be gone on with.
fn hash(so_far: u64, more: &[u8]) -> u64 {
    more.iter().fold(so_far, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

const BASIS: u64 = 0xcbf2_9ce4_8422_2325;

/// With more, looking each of them up costs more than a binary search.
const MOST_LENGTHS: usize = 16;

/// A text that whatever a regular expression matches as a whole must begin with; it may be shorter than it could be.
pub(super) fn literal_prefix(pattern: &str) -> String {
    let pattern = pattern.strip_prefix('^').unwrap_or(pattern);
    let mut out = String::new();
    if may_be_either(pattern) {
        return out;
    }
    let mut chars = pattern.chars().peekable();
    while let Some(c) = chars.next() {
        let literal = match c {
            '\\' => match chars.next() {
                Some(c) if r"./-$^+*?()[]{}|\".contains(c) => c,
                _ => break,
            },
            c if r".^$|()[]{}*+?".contains(c) => break,
            c => c,
        };
        // What follows may say that this character need not be there.
        if chars.peek().is_some_and(|next| "*+?{".contains(*next)) {
            break;
        }
        out.push(literal);
    }
    out
}

/// May the expression as a whole be one of several? Parentheses are counted only where no class of characters can hold
/// some; in doubt it may.
fn may_be_either(pattern: &str) -> bool {
    let mut depth = 0_u32;
    let mut class = false;
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => {
                chars.next();
            }
            '[' => class = true,
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            '|' if depth == 0 || class => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RM23: the prefixes of a text are found, longest first, whether they have few lengths or many.
    #[test]
    fn prefixes_of_a_text_are_found_at_any_length() {
        for most in [3, MOST_LENGTHS + 3] {
            let prefixes = (1..=most).map(|length| Key::Prefix("a".repeat(length)));
            let texts = Texts::new(prefixes.chain([Key::Prefix("b".into()), Key::Any]).zip(0..));
            assert_eq!(matches!(texts.lengths, Lengths::Many), most > MOST_LENGTHS);
            for (text, expected) in [
                ("aa", vec![1, 0, most + 1]),
                ("aac", vec![1, 0, most + 1]),
                ("", vec![most + 1]),
                ("bc", vec![most, most + 1]),
            ] {
                let mut found = Vec::new();
                texts.visit(text, |numbers| found.extend(numbers.iter().map(|number| *number as usize)));
                assert_eq!(found, expected, "{text}");
            }
        }
    }

    /// RM23: how much of a regular expression is fixed.
    #[test]
    fn prefixes_of_expressions_are_what_every_match_begins_with() {
        for (pattern, expected) in [
            ("/api/v1", "/api/v1"),
            ("^/api/v[0-9]+/x", "/api/v"),
            (r"/a\.b/.*", "/a.b/"),
            ("/ab*", "/a"),
            ("/ab?c", "/a"),
            ("/ab+", "/a"),
            ("/ab{2}", "/a"),
            ("/a|/b", ""),
            ("/a(b|c)", "/a"),
            ("/a[(]|/b", ""),
            (r"/a\|b", "/a|b"),
            ("(?i)/a", ""),
            (r"/a\d", "/a"),
            (r"/a\b", "/a"),
            ("", ""),
        ] {
            assert_eq!(literal_prefix(pattern), expected, "{pattern}");
        }
    }
}
