//! The small values configuration is made of: strings to match, regular expressions, fractions.

use std::{fmt, str::FromStr, sync::OnceLock};

use serde::{Deserialize, Serialize};

/// How a string is compared. Source: Envoy `StringMatcher`.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StringMatch {
    /// Equal.
    Exact {
        /// The value.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// Begins with the value; the value is never empty.
    Prefix {
        /// The value.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// Ends with the value; the value is never empty.
    Suffix {
        /// The value.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// Contains the value; the value is never empty.
    Contains {
        /// The value.
        value: String,
        /// ASCII case does not count.
        ignore_case: bool,
    },
    /// The whole string matches; case-insensitivity does not apply (Envoy `StringMatcher.ignore_case`).
    Regex(Regex),
}

/// A regular expression in RE2 syntax that matches whole strings, checked and size-limited when made.
#[derive(Clone)]
pub struct Regex {
    /// Matches whole texts only.
    anchored: regex::Regex,
    /// As written, made when first needed: only rewrites do.
    unanchored: OnceLock<Option<regex::Regex>>,
    pattern: String,
}

impl Regex {
    /// The largest compiled program accepted, so that a control plane cannot exhaust memory (OP15).
    pub const SIZE_LIMIT: usize = 1 << 20;

    /// Does the whole of `text` match?
    pub fn is_match(&self, text: &str) -> bool {
        self.anchored.is_match(text)
    }

    /// The expression as written.
    pub fn as_str(&self) -> &str {
        &self.pattern
    }

    /// Replaces every occurrence of the expression *as written* (unanchored) in `text`; `\1` in `substitution` is a group,
    /// `\0` the whole, and `\\` a backslash. A substitution with any other escape, or with a group that the expression
    /// does not have, replaces nothing, as in RE2.
    ///
    /// Source: Envoy `RegexMatchAndSubstitute`.
    pub fn rewrite(&self, text: &str, substitution: &str) -> String {
        let regex = self.unanchored.get_or_init(|| build(&self.pattern).ok());
        let template = regex.as_ref().and_then(|regex| to_template(substitution, regex.captures_len()));
        match (regex, template) {
            (Some(regex), Some(template)) => regex.replace_all(text, template.as_str()).into_owned(),
            _ => text.to_owned(),
        }
    }
}

fn build(pattern: &str) -> Result<regex::Regex, regex::Error> {
    regex::RegexBuilder::new(pattern).size_limit(Regex::SIZE_LIMIT).build()
}

/// Turns RE2's `\1` into the `${1}` of the `regex` crate and protects literal `$`; `None` if it is no substitution for an
/// expression of that many `groups`, the whole included.
fn to_template(substitution: &str, groups: usize) -> Option<String> {
    let mut out = String::with_capacity(substitution.len() + 8);
    let mut chars = substitution.chars();
    while let Some(c) = chars.next() {
        match c {
            '$' => out.push_str("$$"),
            '\\' => match chars.next()? {
                '\\' => out.push('\\'),
                digit => {
                    let group = digit.to_digit(10).filter(|group| (*group as usize) < groups)?;
                    out.push_str("${");
                    out.push(char::from_digit(group, 10)?);
                    out.push('}');
                }
            },
            other => out.push(other),
        }
    }
    Some(out)
}

impl FromStr for Regex {
    type Err = RegexError;

    fn from_str(pattern: &str) -> Result<Self, RegexError> {
        let error = |error: regex::Error| RegexError { pattern: pattern.to_owned(), reason: error.to_string() };
        // Checked alone first: `a)(b` would otherwise become valid inside the group.
        build(pattern).map_err(error)?;
        let anchored = build(&format!(r"\A(?:{pattern})\z")).map_err(error)?;
        Ok(Self { anchored, unanchored: OnceLock::new(), pattern: pattern.to_owned() })
    }
}

impl fmt::Debug for Regex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Regex").field(&self.pattern).finish()
    }
}

impl PartialEq for Regex {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern
    }
}

impl Serialize for Regex {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.pattern)
    }
}

impl<'de> Deserialize<'de> for Regex {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A regular expression that cannot be used.
#[derive(Clone, Debug, PartialEq)]
pub struct RegexError {
    pattern: String,
    reason: String,
}

impl fmt::Display for RegexError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "regular expression {:?} cannot be used: {}", self.pattern, self.reason)
    }
}

impl std::error::Error for RegexError {}

/// A share of requests. Source: Envoy `FractionalPercent`; denominators 100, 10 000 and 1 000 000.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Fraction {
    /// How many ...
    pub numerator: u32,
    /// ... out of this many. Never zero.
    pub denominator: u32,
}

impl Fraction {
    /// Every request.
    pub const ALL: Self = Self { numerator: 100, denominator: 100 };
    /// No request.
    pub const NONE: Self = Self { numerator: 0, denominator: 100 };

    /// A percentage with up to four decimals, as Istio's `Percent`; over 100 counts as 100, below 0 as 0.
    pub fn percent(value: f64) -> Self {
        if value.fract() == 0.0 {
            return Self { numerator: value.clamp(0.0, 100.0) as u32, denominator: 100 };
        }
        Self { numerator: (value.clamp(0.0, 100.0) * 10_000.0).round() as u32, denominator: 1_000_000 }
    }

    /// Is the request that drew the random `bits` within the share? Strictly below, so 0 % never and 100 % always.
    ///
    /// Envoy compares with `<`; the text of gRFC A28 and grpc-go use `<=`, by which 0 % still matches one in D (RM12).
    pub fn hit(self, bits: u64) -> bool {
        // Multiply-shift maps 64 random bits evenly onto 0..denominator.
        let drawn = ((u128::from(bits) * u128::from(self.denominator)) >> 64) as u32;
        drawn < self.numerator
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn regex_matches_the_whole_string_only() {
        let regex: Regex = "a|bc".parse().unwrap();
        assert!(regex.is_match("a"));
        assert!(regex.is_match("bc"));
        assert!(!regex.is_match("ac"));
        assert!("a)(b".parse::<Regex>().is_err());
        assert!("(".parse::<Regex>().unwrap_err().to_string().contains("\"(\""));
    }

    #[test]
    fn regex_rewrite_understands_re2_groups() {
        let regex: Regex = "^/service/([^/]+)(/.*)$".parse().unwrap();
        assert_eq!(regex.rewrite("/service/foo/v1/api", r"\2/instance/\1"), "/v1/api/instance/foo");
        let regex: Regex = "x".parse().unwrap();
        assert_eq!(regex.rewrite("axb", "$1"), "a$1b");
        for (substitution, expected) in
            [(r"<\0>", "a<x>b"), (r"\\", r"a\b"), (r"\1", "axb"), (r"\x", "axb"), (r"\", "axb")]
        {
            assert_eq!(regex.rewrite("axb", substitution), expected, "{substitution}");
        }
    }

    /// OP15: a regular expression whose program would be too large is refused when made.
    #[test]
    fn a_huge_regex_is_refused() {
        let error = "(?:a{1000}){1000}".parse::<Regex>().unwrap_err().to_string();
        assert!(error.contains("size limit"), "{error}");
    }

    #[test]
    fn zero_percent_never_and_hundred_percent_always_hit() {
        for bits in [0, 1, u64::MAX / 2, u64::MAX] {
            assert!(!Fraction::NONE.hit(bits));
            assert!(Fraction::ALL.hit(bits));
        }
        assert!(Fraction::percent(50.0).hit(0));
        assert!(!Fraction::percent(50.0).hit(u64::MAX));
        assert_eq!(Fraction::percent(0.5), Fraction { numerator: 5_000, denominator: 1_000_000 });
        assert!(Fraction { numerator: 500, denominator: 100 }.hit(u64::MAX), "over 100 % is always");
    }
}
