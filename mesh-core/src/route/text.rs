//! Whether a text or a path meets a condition: equal, begins, ends, contains or matches, with or without ASCII case.
//!
//! Source: Envoy `StringMatcher`, `RouteMatch.path_specifier`.

use crate::config::{PathMatch, StringMatch};

impl StringMatch {
    /// Does `text` meet the condition?
    pub fn is_match(&self, text: &str) -> bool {
        let (text, fold) = (text.as_bytes(), self.ignores_case());
        let same = |a: &[u8], b: &[u8]| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        match self {
            Self::Exact { value, .. } => same(text, value.as_bytes()),
            Self::Prefix { value, .. } => text.get(..value.len()).is_some_and(|head| same(head, value.as_bytes())),
            Self::Suffix { value, .. } => {
                text.len().checked_sub(value.len()).is_some_and(|start| same(&text[start..], value.as_bytes()))
            }
            Self::Contains { value, .. } => {
                value.is_empty() || text.windows(value.len()).any(|window| same(window, value.as_bytes()))
            }
            Self::Regex(regex) => std::str::from_utf8(text).is_ok_and(|text| regex.is_match(text)),
        }
    }

    fn ignores_case(&self) -> bool {
        match self {
            Self::Exact { ignore_case, .. }
            | Self::Prefix { ignore_case, .. }
            | Self::Suffix { ignore_case, .. }
            | Self::Contains { ignore_case, .. } => *ignore_case,
            Self::Regex(_) => false,
        }
    }
}

impl PathMatch {
    /// Does the path, without its query, meet the condition?
    pub fn is_match(&self, path: &str) -> bool {
        let same = |a: &[u8], b: &[u8], fold: bool| if fold { a.eq_ignore_ascii_case(b) } else { a == b };
        let path_bytes = path.as_bytes();
        let begins = |value: &str, fold| path_bytes.get(..value.len()).is_some_and(|h| same(h, value.as_bytes(), fold));
        match self {
            Self::Exact { value, ignore_case } => same(path_bytes, value.as_bytes(), *ignore_case),
            Self::Prefix { value, ignore_case } => begins(value, *ignore_case),
            Self::SegmentPrefix { value, ignore_case } => {
                begins(value, *ignore_case) && matches!(path_bytes.get(value.len()), None | Some(b'/'))
            }
            Self::Regex(regex) => regex.is_match(path),
        }
    }
}
