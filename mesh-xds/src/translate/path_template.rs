//! Paths by templates: `/users/{name}/files/**` as the regular expression it means, and new paths made of its variables.
//!
//! `*` and `{name}` are one segment, `**` is any rest, `{name=...}` what the pattern says; a literal may follow the last.
//! Since both are regular expressions, nothing below translation knows templates. Source: Envoy `UriTemplateMatchConfig`
//! and `UriTemplateRewriteConfig`: at most five variables, names of at most sixteen characters, each once, and nothing
//! but literals after `**` (RM4).

use mesh_core::config::{PathMatch, PathRewrite, Regex};

use super::read::{Ignored, Within, Wrong, wrong};
use crate::proto::{
    Any,
    envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::path::{
            r#match::uri_template::v3::UriTemplateMatchConfig, rewrite::uri_template::v3::UriTemplateRewriteConfig,
        },
    },
};

const MOST_VARIABLES: usize = 5;
const LONGEST_NAME: usize = 16;
/// One segment: what RFC 3986 lets stand in one, but `*` and `=`.
const SEGMENT: &str = "[a-zA-Z0-9._~%!$&'()+,;:@=-]+";
/// Any number of segments.
const REST: &str = "[a-zA-Z0-9._~%!$&'()+,;:@=/-]*";

/// A template, read.
pub(super) struct Template {
    pattern: String,
    regex: Regex,
    variables: Vec<String>,
}

impl Template {
    /// The condition it is.
    pub(super) fn path(&self) -> PathMatch {
        PathMatch::Regex(self.regex.clone())
    }

    /// The new path that `rewrite` makes of its variables.
    fn rewrite(&self, rewrite: &str) -> Result<PathRewrite, Wrong> {
        let bad = |why: &str| wrong("path_template_rewrite", format!("{rewrite:?} {why}"));
        if !rewrite.starts_with('/') {
            return Err(bad("does not begin with `/`"));
        }
        let mut substitution = String::new();
        let mut rest = rewrite;
        while let Some((literal, after)) = rest.split_once('{') {
            substitution.push_str(&rewrite_literal(literal).ok_or_else(|| bad("has characters no path has"))?);
            let (name, after) = after.split_once('}').ok_or_else(|| bad("has an open brace"))?;
            let at = self.variables.iter().position(|variable| variable == name);
            let at = at.ok_or_else(|| bad("names a variable that the template does not have"))?;
            substitution.push_str(&format!("\\{}", at + 1));
            rest = after;
        }
        substitution.push_str(&rewrite_literal(rest).ok_or_else(|| bad("has characters no path has"))?);
        // Anchored, since a rewrite replaces wherever the expression matches.
        let pattern = format!("^{}$", self.pattern);
        let pattern = pattern.parse().map_err(|error| bad(&format!("cannot be used: {error}")))?;
        Ok(PathRewrite::Regex { pattern, substitution })
    }
}

pub(super) fn decode(policy: TypedExtensionConfig, ignored: &mut Ignored) -> Result<Template, Wrong> {
    let any = policy.typed_config.unwrap_or_default();
    let message: UriTemplateMatchConfig = open(&any, ignored)?;
    template(&message.path_template).map_err(|why| wrong("path_template", format!("{:?} {why}", message.path_template)))
}

/// The rewrite of a route whose path condition is `matched`.
pub(super) fn decode_rewrite(
    policy: TypedExtensionConfig,
    matched: Option<&Template>,
    ignored: &mut Ignored,
) -> Result<PathRewrite, Wrong> {
    let any = policy.typed_config.unwrap_or_default();
    let message: UriTemplateRewriteConfig = open(&any, ignored)?;
    let matched = matched.ok_or_else(|| wrong("", "needs a match by template beside it"))?;
    matched.rewrite(&message.path_template_rewrite)
}

fn open<M: prost::Message + prost::Name + Default>(any: &Any, ignored: &mut Ignored) -> Result<M, Wrong> {
    ignored.open(any, "").under("typed_config")
}

fn rewrite_literal(text: &str) -> Option<String> {
    text.bytes().all(|byte| byte == b'/' || is_literal(byte)).then(|| text.to_owned())
}

fn is_literal(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._~%!$&'()+,;:@-".contains(&byte)
}

fn template(text: &str) -> Result<Template, &'static str> {
    let mut reader = Reader { rest: text.strip_prefix('/').ok_or("does not begin with `/`")?, globbed: false };
    let mut pattern = String::from("/");
    let mut variables: Vec<String> = Vec::new();
    while !reader.rest.is_empty() {
        match reader.rest.strip_prefix('{') {
            None => pattern.push_str(&reader.operator_or_literal()?),
            Some(after) => {
                let (variable, after) = after.split_once('}').ok_or("has an open brace")?;
                reader.rest = after;
                let (name, inner) =
                    variable.split_once('=').map_or((variable, None), |(name, inner)| (name, Some(inner)));
                check_name(name, &variables)?;
                let inner = reader.variable(inner.unwrap_or("*"))?;
                pattern.push_str(&format!("(?P<{name}>{inner})"));
                variables.push(name.to_owned());
            }
        }
        match reader.rest.strip_prefix('/') {
            Some(after) => {
                pattern.push('/');
                reader.rest = after;
            }
            None if reader.rest.is_empty() => {}
            None => {
                // A suffix of the last segment.
                let suffix = std::mem::take(&mut reader.rest);
                if !suffix.bytes().all(is_literal) {
                    return Err("has more than a literal after an operator within a segment");
                }
                pattern.push_str(&escape(suffix));
            }
        }
    }
    let regex = pattern.parse().map_err(|_| "cannot be used")?;
    Ok(Template { pattern, regex, variables })
}

fn check_name(name: &str, others: &[String]) -> Result<(), &'static str> {
    let mut characters = name.bytes();
    let good = characters.next().is_some_and(|byte| byte.is_ascii_alphabetic())
        && characters.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    match () {
        () if !good || name.len() > LONGEST_NAME => Err("has a variable whose name is none"),
        () if others.iter().any(|other| other == name) => Err("has a variable twice"),
        () if others.len() >= MOST_VARIABLES => Err("has more than five variables"),
        () => Ok(()),
    }
}

struct Reader<'a> {
    rest: &'a str,
    /// `**` was there: no operator may follow.
    globbed: bool,
}

impl Reader<'_> {
    fn operator_or_literal(&mut self) -> Result<String, &'static str> {
        if let Some(operator) = self.operator()? {
            return Ok(operator.to_owned());
        }
        let end = self.rest.find('/').unwrap_or(self.rest.len());
        let (literal, rest) = self.rest.split_at(end);
        if literal.is_empty() || !literal.bytes().all(is_literal) {
            return Err("has a segment that is neither an operator nor a literal");
        }
        self.rest = rest;
        Ok(escape(literal))
    }

    fn operator(&mut self) -> Result<Option<&'static str>, &'static str> {
        let (operator, rest, globs) = if let Some(rest) = self.rest.strip_prefix("**") {
            (REST, rest, true)
        } else if let Some(rest) = self.rest.strip_prefix('*') {
            (SEGMENT, rest, false)
        } else {
            return Ok(None);
        };
        if self.globbed {
            return Err("has an operator after `**`");
        }
        self.globbed = globs;
        self.rest = rest;
        Ok(Some(operator))
    }

    /// The pattern within a variable: operators and literals between slashes.
    fn variable(&mut self, inner: &str) -> Result<String, &'static str> {
        let mut reader = Reader { rest: inner, globbed: self.globbed };
        let mut pattern = String::new();
        loop {
            pattern.push_str(&reader.operator_or_literal()?);
            match reader.rest.strip_prefix('/') {
                Some(after) => {
                    pattern.push('/');
                    reader.rest = after;
                }
                None if reader.rest.is_empty() => break,
                None => return Err("has more than an operator or a literal in a segment of a variable"),
            }
        }
        self.globbed = reader.globbed;
        Ok(pattern)
    }
}

/// Literals of templates have only these of what means something in a regular expression.
fn escape(literal: &str) -> String {
    let mut out = String::with_capacity(literal.len());
    for c in literal.chars() {
        if "$()+.".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic)]

    use super::*;

    /// RM4: one segment, any rest, variables with patterns of their own, and a suffix.
    #[test]
    fn templates_match_segments() {
        for (text, path, expected) in [
            ("/users/{name}", "/users/jason", true),
            ("/users/{name}", "/users/", false),
            ("/users/{name}", "/users/a/b", false),
            ("/users/*/x", "/users/a/x", true),
            ("/static/**", "/static/a/b.css", true),
            ("/static/**", "/static/", true),
            ("/static/**", "/static", false),
            ("/**.mpd", "/a/b.mpd", true),
            ("/**.mpd", "/a/bxmpd", false),
            ("/{path=v1/**}", "/v1/a/b", true),
            ("/{path=v1/*}/end", "/v1/a/end", true),
            ("/a/", "/a/", true),
            ("/a/", "/a", false),
            ("/", "/", true),
            ("/*", "/a=b", true),
            ("/*", "/a%20b-c", true),
        ] {
            assert_eq!(
                template(text).unwrap_or_else(|why| panic!("{text} {why}")).path().is_match(path),
                expected,
                "{text} {path}"
            );
        }
        for bad in [
            "a",
            "/a//b",
            "/{a",
            "/{1a}",
            "/{}",
            "/{a}/{a}",
            "/{aaaaaaaaaaaaaaaaa}",
            "/**/*",
            "/**/{a}",
            "/{a=**}/*",
            "/{a=}",
            "/{a}{b}",
            "/a=b",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "/*a/b",
        ] {
            assert!(template(bad).is_err(), "{bad}");
        }
    }

    /// RM4, RA11: a rewrite puts the variables in other places.
    #[test]
    fn rewrites_reuse_the_variables() {
        let template = template("/{lang}/articles/{rest=**}").unwrap();
        let PathRewrite::Regex { pattern, substitution } = template.rewrite("/articles/{rest}/in-{lang}").unwrap()
        else {
            panic!()
        };
        assert_eq!(pattern.rewrite("/en/articles/a/b", &substitution), "/articles/a/b/in-en");
        for bad in ["a", "/{x}", "/{lang", "/a b"] {
            assert!(template.rewrite(bad).is_err(), "{bad}");
        }
    }
}
