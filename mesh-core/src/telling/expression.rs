//! Conditions and values in the part of CEL that Istio's Telemetry needs: attributes, comparisons, `&&`, `||`, `!`, `has`,
//! `startsWith` and its like, and `condition ? one : other`.
//!
//! A comparison with something there is not is false, as it is an error in CEL. Source: Istio "Telemetry", Envoy "Attributes".

use regex::Regex;

use super::operator::{Fact, Facts, Operator};

/// Longer expressions and deeper ones are refused.
const LONGEST: usize = 4096;
const DEEPEST: usize = 32;

/// A compiled expression.
#[derive(Debug)]
pub struct Expression(Node);

#[derive(Debug)]
enum Node {
    Number(i64),
    Text(String),
    Truth(bool),
    Fact(Operator),
    Not(Box<Self>),
    And(Box<Self>, Box<Self>),
    Or(Box<Self>, Box<Self>),
    Compare(Box<Self>, Comparison, Box<Self>),
    Has(Box<Self>),
    Call(Box<Self>, Method),
    Choice(Box<Self>, Box<Self>, Box<Self>),
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug)]
enum Method {
    StartsWith(String),
    EndsWith(String),
    Contains(String),
    Matches(Regex),
}

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Number(i64),
    Text(String),
    Truth(bool),
}

impl Expression {
    /// Reads it.
    ///
    /// # Errors
    ///
    /// What cannot be read, or an attribute nobody knows; as a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > LONGEST {
            return Err(format!("an expression of {} bytes is too long", text.len()));
        }
        let failed = |why: String| format!("{text:?}: {why}");
        let words = words(text).map_err(failed)?;
        let mut reader = Reader { words: &words, at: 0, depth: 0 };
        let node = reader.choice().map_err(failed)?;
        match reader.peek() {
            None => Ok(Self(node)),
            Some(word) => Err(failed(format!("{word:?} is too much"))),
        }
    }

    /// Is it true of a request? What is no truth is not.
    pub fn holds(&self, facts: &impl Facts) -> bool {
        self.0.value(facts) == Some(Value::Truth(true))
    }

    /// Its value as text; `None` when there is none.
    pub fn text(&self, facts: &impl Facts) -> Option<String> {
        Some(match self.0.value(facts)? {
            Value::Number(number) => number.to_string(),
            Value::Text(text) => text,
            Value::Truth(truth) => truth.to_string(),
        })
    }
}

impl Node {
    fn holds(&self, facts: &impl Facts) -> bool {
        self.value(facts) == Some(Value::Truth(true))
    }

    fn value(&self, facts: &impl Facts) -> Option<Value> {
        Some(match self {
            Self::Number(number) => Value::Number(*number),
            Self::Text(text) => Value::Text(text.clone()),
            Self::Truth(truth) => Value::Truth(*truth),
            Self::Fact(operator) => match facts.fact(operator)? {
                Fact::Number(number) => Value::Number(i64::try_from(number).unwrap_or(i64::MAX)),
                Fact::Truth(truth) => Value::Truth(truth),
                Fact::Text(text) => Value::Text(text.into_owned()),
            },
            Self::Not(node) => match node.value(facts)? {
                Value::Truth(truth) => Value::Truth(!truth),
                _ => return None,
            },
            Self::And(one, other) => Value::Truth(one.holds(facts) && other.holds(facts)),
            Self::Or(one, other) => Value::Truth(one.holds(facts) || other.holds(facts)),
            Self::Compare(one, comparison, other) => {
                let order = match (one.value(facts)?, other.value(facts)?) {
                    (Value::Number(one), Value::Number(other)) => one.cmp(&other),
                    (Value::Text(one), Value::Text(other)) => one.cmp(&other),
                    (Value::Truth(one), Value::Truth(other)) => one.cmp(&other),
                    // Of different kinds: never equal, and no order.
                    _ => return Some(Value::Truth(*comparison == Comparison::NotEqual)),
                };
                Value::Truth(match comparison {
                    Comparison::Equal => order.is_eq(),
                    Comparison::NotEqual => order.is_ne(),
                    Comparison::Less => order.is_lt(),
                    Comparison::LessOrEqual => order.is_le(),
                    Comparison::Greater => order.is_gt(),
                    Comparison::GreaterOrEqual => order.is_ge(),
                })
            }
            Self::Has(node) => Value::Truth(node.value(facts).is_some()),
            Self::Call(node, method) => {
                let Value::Text(text) = node.value(facts)? else { return None };
                Value::Truth(match method {
                    Method::StartsWith(start) => text.starts_with(start.as_str()),
                    Method::EndsWith(end) => text.ends_with(end.as_str()),
                    Method::Contains(part) => text.contains(part.as_str()),
                    Method::Matches(regex) => regex.is_match(&text),
                })
            }
            Self::Choice(condition, one, other) => {
                return if condition.holds(facts) { one.value(facts) } else { other.value(facts) };
            }
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
enum Word {
    Name(String),
    Text(String),
    Number(i64),
    Sign(&'static str),
}

const SIGNS: [&str; 20] =
    ["&&", "||", "==", "!=", "<=", ">=", "<", ">", "!", "(", ")", "[", "]", ".", ",", "?", ":", "-", "+", "|"];

fn words(text: &str) -> Result<Vec<Word>, String> {
    let (mut words, mut rest) = (Vec::new(), text.trim_start());
    while let Some(first) = rest.chars().next() {
        let end = |of: fn(char) -> bool| rest.find(|c: char| !of(c)).unwrap_or(rest.len());
        let taken = if first.is_ascii_alphabetic() || first == '_' {
            let end = end(|c| c.is_ascii_alphanumeric() || c == '_');
            words.push(Word::Name(rest.get(..end).unwrap_or_default().to_owned()));
            end
        } else if first.is_ascii_digit() {
            let end = end(|c| c.is_ascii_digit());
            let number = rest.get(..end).unwrap_or_default();
            words.push(Word::Number(number.parse().map_err(|_| format!("{number} is too large"))?));
            end
        } else if first == '"' || first == '\'' {
            let mut value = String::new();
            let mut chars = rest.char_indices().skip(1);
            let end = loop {
                match chars.next() {
                    None => return Err("a text does not end".to_owned()),
                    Some((at, c)) if c == first => break at + 1,
                    Some((_, '\\')) => match chars.next() {
                        Some((_, 'n')) => value.push('\n'),
                        Some((_, 't')) => value.push('\t'),
                        Some((_, c)) => value.push(c),
                        None => return Err("a text does not end".to_owned()),
                    },
                    Some((_, c)) => value.push(c),
                }
            };
            words.push(Word::Text(value));
            end
        } else {
            let sign = SIGNS.iter().find(|sign| rest.starts_with(**sign));
            let sign = sign.ok_or_else(|| format!("{first:?} is not supported"))?;
            words.push(Word::Sign(sign));
            sign.len()
        };
        rest = rest.get(taken..).unwrap_or_default().trim_start();
    }
    Ok(words)
}

struct Reader<'a> {
    words: &'a [Word],
    at: usize,
    depth: usize,
}

impl Reader<'_> {
    fn peek(&self) -> Option<&Word> {
        self.words.get(self.at)
    }

    fn takes(&mut self, sign: &str) -> bool {
        let is = matches!(self.peek(), Some(Word::Sign(it)) if *it == sign);
        self.at += usize::from(is);
        is
    }

    fn demand(&mut self, sign: &str) -> Result<(), String> {
        if self.takes(sign) { Ok(()) } else { Err(format!("{sign:?} is missing")) }
    }

    fn choice(&mut self) -> Result<Node, String> {
        self.depth += 1;
        if self.depth > DEEPEST {
            return Err("it is too deep".to_owned());
        }
        let condition = self.or()?;
        let node = if self.takes("?") {
            let one = self.choice()?;
            self.demand(":")?;
            Node::Choice(Box::new(condition), Box::new(one), Box::new(self.choice()?))
        } else {
            condition
        };
        self.depth -= 1;
        Ok(node)
    }

    fn or(&mut self) -> Result<Node, String> {
        let mut node = self.and()?;
        while self.takes("||") {
            node = Node::Or(Box::new(node), Box::new(self.and()?));
        }
        Ok(node)
    }

    fn and(&mut self) -> Result<Node, String> {
        let mut node = self.comparison()?;
        while self.takes("&&") {
            node = Node::And(Box::new(node), Box::new(self.comparison()?));
        }
        Ok(node)
    }

    fn comparison(&mut self) -> Result<Node, String> {
        let node = self.unary()?;
        let signs = [
            ("==", Comparison::Equal),
            ("!=", Comparison::NotEqual),
            ("<=", Comparison::LessOrEqual),
            (">=", Comparison::GreaterOrEqual),
            ("<", Comparison::Less),
            (">", Comparison::Greater),
        ];
        for (sign, comparison) in signs {
            if self.takes(sign) {
                return Ok(Node::Compare(Box::new(node), comparison, Box::new(self.unary()?)));
            }
        }
        Ok(node)
    }

    fn unary(&mut self) -> Result<Node, String> {
        let (mut negations, mut node) = (0, None);
        while self.takes("!") {
            negations += 1;
        }
        if self.takes("-") {
            let Some(Word::Number(number)) = self.peek() else { return Err("a number is missing".to_owned()) };
            node = Some(Node::Number(-number));
            self.at += 1;
        }
        let node = match node {
            Some(node) => node,
            None => self.primary()?,
        };
        Ok(if negations % 2 == 1 { Node::Not(Box::new(node)) } else { node })
    }

    fn primary(&mut self) -> Result<Node, String> {
        let word = self.peek().cloned().ok_or("something is missing at its end")?;
        self.at += 1;
        Ok(match word {
            Word::Number(number) => Node::Number(number),
            Word::Text(text) => Node::Text(text),
            Word::Sign("(") => {
                let node = self.choice()?;
                self.demand(")")?;
                node
            }
            Word::Sign(sign) => return Err(format!("{sign:?} cannot stand there")),
            Word::Name(name) => match name.as_str() {
                "true" => Node::Truth(true),
                "false" => Node::Truth(false),
                "has" => {
                    self.demand("(")?;
                    let node = self.choice()?;
                    self.demand(")")?;
                    Node::Has(Box::new(node))
                }
                _ => self.attribute(name)?,
            },
        })
    }

    /// `request.headers['x']`, `response.code`, and what is asked of it.
    fn attribute(&mut self, mut path: String) -> Result<Node, String> {
        let (mut key, mut method) = (None, None);
        loop {
            if self.takes(".") {
                let Some(Word::Name(name)) = self.peek().cloned() else { return Err("a name is missing".to_owned()) };
                self.at += 1;
                if self.takes("(") {
                    let Some(Word::Text(text)) = self.peek().cloned() else {
                        return Err(format!("{name} takes a text"));
                    };
                    self.at += 1;
                    self.demand(")")?;
                    method = Some(match name.as_str() {
                        "startsWith" => Method::StartsWith(text),
                        "endsWith" => Method::EndsWith(text),
                        "contains" => Method::Contains(text),
                        "matches" => Method::Matches(Regex::new(&text).map_err(|error| error.to_string())?),
                        _ => return Err(format!("{name} is not supported")),
                    });
                    break;
                }
                path = format!("{path}.{name}");
            } else if self.takes("[") {
                let Some(Word::Text(text)) = self.peek().cloned() else { return Err("a text is missing".to_owned()) };
                self.at += 1;
                self.demand("]")?;
                key = Some(text);
            } else {
                break;
            }
        }
        let node = Node::Fact(operator(&path, key.as_deref())?);
        Ok(match method {
            Some(method) => Node::Call(Box::new(node), method),
            None => node,
        })
    }
}

/// What an attribute asks for. Source: Envoy "Attributes", Istio's of metadata exchange.
fn operator(path: &str, key: Option<&str>) -> Result<Operator, String> {
    let label = |name: &str| Operator::Label(name.to_owned());
    Ok(match (path, key) {
        ("request.headers", Some(":method")) | ("request.method", None) => Operator::Method,
        ("request.headers", Some(name)) => Operator::Request(name.to_ascii_lowercase(), None),
        ("request.path", None) => Operator::Request(":path".to_owned(), None),
        ("request.url_path", None) => Operator::PathWithoutQuery,
        ("request.host", None) => Operator::Request(":authority".to_owned(), None),
        ("request.useragent", None) => Operator::Request("user-agent".to_owned(), None),
        ("request.referer", None) => Operator::Request("referer".to_owned(), None),
        ("request.id", None) => Operator::Request("x-request-id".to_owned(), None),
        ("request.protocol", None) => Operator::Protocol,
        ("request.size" | "request.total_size", None) => Operator::BytesReceived,
        ("request.duration", None) => Operator::Duration,
        ("response.code", None) => Operator::ResponseCode,
        ("response.code_details", None) => Operator::ResponseCodeDetails,
        ("response.flags", None) => Operator::ResponseFlags,
        ("response.grpc_status", None) => Operator::GrpcStatus,
        ("response.size" | "response.total_size", None) => Operator::BytesSent,
        ("response.headers", Some(name)) => Operator::Response(name.to_ascii_lowercase()),
        ("connection.mtls", None) => Operator::MutualTls,
        ("connection.uri_san_peer_certificate", None) => Operator::PeerUriSan,
        ("source.address", None) => Operator::RemoteAddress,
        ("upstream.address", None) => Operator::UpstreamHost,
        ("upstream.request_attempt_count", None) => Operator::AttemptCount,
        ("xds.cluster_name", None) => Operator::UpstreamCluster,
        ("xds.route_name", None) => Operator::RouteName,
        ("source.workload.name" | "node.metadata.WORKLOAD_NAME", None) => label("source_workload"),
        ("source.workload.namespace", None) => label("source_workload_namespace"),
        ("source.principal", None) => label("source_principal"),
        ("destination.workload.name", None) => label("destination_workload"),
        ("destination.workload.namespace", None) => label("destination_workload_namespace"),
        ("destination.principal", None) => label("destination_principal"),
        ("destination.service.name", None) => label("destination_service_name"),
        ("destination.service.host", None) => label("destination_service"),
        ("api.version" | "api.name", None) => Operator::Nothing,
        (path, Some(key)) => return Err(format!("{path}[{key:?}] is not known")),
        (path, None) => return Err(format!("{path} is not known")),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    struct Seen;

    impl Facts for Seen {
        fn fact(&self, operator: &Operator) -> Option<Fact<'_>> {
            Some(match operator {
                Operator::ResponseCode => Fact::Number(404),
                Operator::Method => Fact::Text("POST".into()),
                Operator::PathWithoutQuery => Fact::Text("/api/v1/products".into()),
                Operator::MutualTls => Fact::Truth(true),
                Operator::Request(name, _) if name == "user" => Fact::Text("jason".into()),
                _ => return None,
            })
        }
    }

    /// TE10, TE16: conditions are true of what they say, false of what there is not, and read or refused as a whole.
    #[test]
    fn conditions_hold_or_do_not() {
        for (text, expected) in [
            ("true", true),
            ("response.code >= 400 && response.code < 500", true),
            ("response.code == 200 || request.method == 'POST'", true),
            ("!(response.code == 404)", false),
            ("!connection.mtls", false),
            ("connection.mtls == true", true),
            ("request.headers['User'] == \"jason\"", true),
            ("request.headers['other'] == 'x'", false),
            ("has(request.headers['other'])", false),
            ("!has(request.headers['other'])", true),
            ("request.url_path.startsWith('/api/')", true),
            ("request.url_path.matches('^/api/v[0-9]+/')", true),
            ("request.url_path.endsWith('x') || request.url_path.contains('v1')", true),
            ("response.code == '404'", false),
            ("response.code != '404'", true),
            ("response.code > -1", true),
            ("response.code", false),
            ("response.code == 404 ? request.method == 'GET' : true", false),
        ] {
            assert_eq!(Expression::parse(text).unwrap().holds(&Seen), expected, "{text}");
        }
        let class =
            Expression::parse("response.code >= 500 ? 'bad' : (response.code >= 400 ? 'asked' : 'good')").unwrap();
        assert_eq!(class.text(&Seen).as_deref(), Some("asked"));
        assert_eq!(Expression::parse("request.headers['other']").unwrap().text(&Seen), None);
        for bad in [
            "",
            "response.code ==",
            "response.nothing == 1",
            "a b",
            "(true",
            "request.headers['x'",
            "'x",
            "1 @ 2",
            "request.method.what('x')",
            "request.method.matches('(')",
            "has(",
            "true true",
            "- true",
        ] {
            assert!(Expression::parse(bad).is_err(), "{bad}");
        }
        assert!(Expression::parse(&"(".repeat(100)).is_err());
        assert!(Expression::parse(&"1".repeat(5000)).is_err());
    }
}
