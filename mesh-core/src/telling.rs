//! What is told of requests, compiled: which are traced, what lines of logs look like, which labels metrics have.
//!
//! Deciding and formatting only. What there is to tell is asked of [`Facts`]; writing is the caller's.
//! The operators of log lines are in `operator.rs`, the conditions (a part of CEL) in `expression.rs`.

use std::{collections::BTreeMap, fmt::Write as _};

use crate::config;

mod expression;
mod operator;

pub use expression::Expression;
pub use operator::{Fact, Facts, Format, Operator};

/// What is told of the requests of one port.
#[derive(Debug, Default)]
pub struct Telling {
    /// Which requests are traced; `None` is as the process's environment says.
    pub tracing: Option<Tracing>,
    /// The logs a request is written to; `None` is as the process's environment says.
    pub logs: Option<Vec<Log>>,
    /// Changes of metrics, in order.
    pub metrics: Vec<Change>,
}

/// Which requests are traced, and what is added to their spans.
#[derive(Debug)]
pub struct Tracing {
    client: f64,
    random: f64,
    overall: f64,
    tags: Vec<(String, Tag)>,
}

#[derive(Debug)]
enum Tag {
    Literal(String),
    Environment(String, String),
    Fact(Operator, String),
    Format(Format),
}

/// Who asks for a trace.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asked {
    /// Nobody.
    No,
    /// The caller, by `x-client-trace-id`.
    Client,
    /// Somebody of the mesh, by `x-envoy-force-trace`.
    Forced,
}

impl Tracing {
    /// Is a trace that begins here wanted? `bits` are 64 random ones. Source: Envoy `Tracing` of the connection manager.
    pub fn samples(&self, asked: Asked, bits: u64) -> bool {
        // Two draws that do not depend on each other, of 32 bits each.
        let (first, second) = (bits >> 32, bits & 0xffff_ffff);
        let within = |draw: u64, percent: f64| (draw as f64) < percent / 100.0 * 4_294_967_296.0;
        let wanted = match asked {
            Asked::Forced => true,
            Asked::Client => within(first, self.client) || within(first, self.random),
            Asked::No => within(first, self.random),
        };
        wanted && within(second, self.overall)
    }

    /// Do spans go out at all?
    pub fn reports(&self) -> bool {
        self.overall > 0.0
    }

    /// What is added to a span of a request. `variable` reads the process's environment.
    pub fn tags(&self, facts: &impl Facts, variable: impl Fn(&str) -> Option<String>) -> Vec<(String, String)> {
        let value = |tag: &Tag| match tag {
            Tag::Literal(text) => Some(text.clone()),
            Tag::Environment(name, default) => variable(name).or_else(|| some(default)),
            Tag::Fact(operator, default) => facts.fact(operator).map(|fact| fact.to_string()).or_else(|| some(default)),
            Tag::Format(format) => some(&format.text(facts)),
        };
        self.tags.iter().filter_map(|(name, tag)| Some((name.clone(), value(tag)?))).collect()
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// A log of requests.
#[derive(Debug)]
pub struct Log {
    /// It goes to standard error instead of standard output.
    pub to_stderr: bool,
    form: Form,
    filter: Option<Expression>,
}

#[derive(Debug)]
enum Form {
    Text(Format),
    Json(BTreeMap<String, Format>),
}

impl Log {
    /// The line for a request, without its end; `None` when this log does not want it.
    pub fn line(&self, facts: &impl Facts) -> Option<String> {
        if self.filter.as_ref().is_some_and(|filter| !filter.holds(facts)) {
            return None;
        }
        Some(match &self.form {
            Form::Text(format) => {
                let line = format.text(facts);
                line.strip_suffix('\n').map(str::to_owned).unwrap_or(line)
            }
            Form::Json(fields) => {
                let mut line = String::from("{");
                for (at, (name, format)) in fields.iter().enumerate() {
                    let comma = if at == 0 { "" } else { "," };
                    let _ = write!(line, "{comma}{}:{}", operator::quoted(name), format.json(facts));
                }
                line.push('}');
                line
            }
        })
    }
}

/// A change of metrics.
#[derive(Debug)]
pub struct Change {
    /// Which metric; empty is all.
    pub name: String,
    /// Labels and where their values come from.
    pub labels: Vec<(String, Expression)>,
    /// Labels left out.
    pub without: Vec<String>,
    /// It is not told at all.
    pub drop: bool,
}

impl Telling {
    /// Of a configuration; what cannot be read of it is left out, as [`check`] says beforehand.
    pub fn new(config: &config::Telling) -> Self {
        Self {
            tracing: config.tracing.as_ref().map(tracing),
            logs: config.access_log.as_ref().map(|logs| logs.iter().filter_map(|log| log_of(log).ok()).collect()),
            metrics: config.metrics.iter().filter_map(|change| change_of(change).ok()).collect(),
        }
    }

    /// Is there a log to write to?
    pub fn is_logging(&self) -> Option<bool> {
        self.logs.as_ref().map(|logs| !logs.is_empty())
    }
}

/// What cannot be read of a configuration, as sentences.
pub fn check(config: &config::Telling) -> Vec<String> {
    let tags = config.tracing.iter().flat_map(|tracing| &tracing.tags);
    let tags = tags.filter_map(|tag| match &tag.value {
        config::TagValue::Format(text) => Format::parse(text).err(),
        _ => None,
    });
    let logs = config.access_log.iter().flatten().filter_map(|log| log_of(log).err());
    tags.chain(logs).chain(config.metrics.iter().filter_map(|change| change_of(change).err())).collect()
}

fn tracing(config: &config::Tracing) -> Tracing {
    let tag = |tag: &config::CustomTag| {
        let value = match &tag.value {
            config::TagValue::Literal(text) => Tag::Literal(text.clone()),
            config::TagValue::Environment { name, default } => Tag::Environment(name.clone(), default.clone()),
            config::TagValue::Header { name, default } => {
                Tag::Fact(Operator::Request(name.to_ascii_lowercase(), None), default.clone())
            }
            config::TagValue::Format(text) => Tag::Format(Format::parse(text).ok()?),
        };
        Some((tag.name.clone(), value))
    };
    let config::Tracing { client, random, overall, tags } = config;
    Tracing { client: *client, random: *random, overall: *overall, tags: tags.iter().filter_map(tag).collect() }
}

fn log_of(config: &config::AccessLog) -> Result<Log, String> {
    let form = match &config.format {
        config::LogFormat::Default => Form::Text(Format::parse(operator::DEFAULT)?),
        config::LogFormat::Text(text) => Form::Text(Format::parse(text)?),
        config::LogFormat::Json(fields) => Form::Json(
            fields
                .iter()
                .map(|(name, text)| Ok((name.clone(), Format::parse(text)?)))
                .collect::<Result<_, String>>()?,
        ),
    };
    let to_stderr = match config.path.as_str() {
        "/dev/stdout" => false,
        "/dev/stderr" => true,
        path => return Err(format!("{path:?} is not supported: a log goes to /dev/stdout or /dev/stderr")),
    };
    Ok(Log { to_stderr, form, filter: config.filter.as_deref().map(Expression::parse).transpose()? })
}

fn change_of(config: &config::MetricChange) -> Result<Change, String> {
    let label = |(name, text): (&String, &String)| Ok((name.clone(), Expression::parse(text)?));
    Ok(Change {
        name: config.name.clone(),
        labels: config.labels.iter().map(label).collect::<Result<_, String>>()?,
        without: config.without.clone(),
        drop: config.drop,
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
                Operator::ResponseCode => Fact::Number(503),
                Operator::Method => Fact::Text("GET".into()),
                Operator::Request(name, _) if name == "user" => Fact::Text("jason \"j\"\n".into()),
                Operator::Request(name, _) if name == ":path" => Fact::Text("/a".into()),
                _ => return None,
            })
        }
    }

    /// TE14: a trace that begins is drawn by the caller's or the random share, and then by the overall one; a forced one is
    /// drawn by the overall share alone.
    #[test]
    fn shares_of_traces_are_drawn() {
        let tracing = |client, random, overall| tracing(&config::Tracing { client, random, overall, tags: Vec::new() });
        let low = 0;
        let high = u64::MAX;
        for (it, asked, bits, expected) in [
            (tracing(0.0, 0.0, 100.0), Asked::No, low, false),
            (tracing(0.0, 0.0, 100.0), Asked::Forced, high, true),
            (tracing(100.0, 0.0, 100.0), Asked::Client, high, true),
            (tracing(0.0, 0.0, 100.0), Asked::Client, low, false),
            (tracing(0.0, 100.0, 100.0), Asked::No, high, true),
            (tracing(100.0, 100.0, 0.0), Asked::Forced, low, false),
            (tracing(0.0, 50.0, 100.0), Asked::No, 0x7fff_ffff << 32, true),
            (tracing(0.0, 50.0, 100.0), Asked::No, 0x8000_0000 << 32, false),
        ] {
            assert_eq!(it.samples(asked, bits), expected, "{it:?} {asked:?} {bits:x}");
        }
        assert!(!tracing(100.0, 100.0, 0.0).reports());
    }

    /// TE15: tags come from where they are said to, with a default or not at all.
    #[test]
    fn tags_have_values_or_defaults_or_are_left_out() {
        let header =
            |name: &str, default: &str| config::TagValue::Header { name: name.into(), default: default.into() };
        let environment =
            |name: &str, default: &str| config::TagValue::Environment { name: name.into(), default: default.into() };
        let tags = [
            ("literal", config::TagValue::Literal("x".into())),
            ("header", header("User", "nobody")),
            ("absent", header("other", "nobody")),
            ("gone", header("other", "")),
            ("variable", environment("ZONE", "")),
            ("unset", environment("NONE", "default")),
            ("format", config::TagValue::Format("%REQ(:METHOD)%-%RESPONSE_CODE%".into())),
        ];
        let tags = tags.map(|(name, value)| config::CustomTag { name: name.into(), value }).to_vec();
        let tracing = tracing(&config::Tracing { tags, ..Default::default() });
        let found = tracing.tags(&Seen, |name| (name == "ZONE").then(|| "a".to_owned()));
        let found: Vec<(&str, &str)> = found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(
            found,
            [
                ("literal", "x"),
                ("header", "jason \"j\"\n"),
                ("absent", "nobody"),
                ("variable", "a"),
                ("unset", "default"),
                ("format", "GET-503")
            ]
        );
    }

    /// TE16: lines are text or JSON with the types of what is told, and only of requests the filter holds for.
    #[test]
    fn logs_have_forms_and_filters() {
        let log = |format: config::LogFormat, filter: Option<&str>| {
            log_of(&config::AccessLog { format, filter: filter.map(str::to_owned), ..Default::default() })
        };
        let text =
            config::LogFormat::Text("%REQ(:METHOD)% %REQ(:PATH)% %RESPONSE_CODE% \"%REQ(USER)%\" %DURATION%\n".into());
        let line = log(text.clone(), None).unwrap().line(&Seen);
        assert_eq!(line.as_deref(), Some("GET /a 503 \"jason \\\"j\\\"\\n\" -"));
        let fields = [
            ("code", "%RESPONSE_CODE%"),
            ("user", "%REQ(USER)%"),
            ("none", "%DURATION%"),
            ("both", "%REQ(:METHOD)% x"),
        ];
        let fields = fields.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        let line = log(config::LogFormat::Json(fields), None).unwrap().line(&Seen);
        assert_eq!(line.as_deref(), Some(r#"{"both":"GET x","code":503,"none":null,"user":"jason \"j\"\n"}"#));
        assert_eq!(log(text.clone(), Some("response.code < 400")).unwrap().line(&Seen), None);
        assert!(log(text.clone(), Some("response.code >= 400")).unwrap().line(&Seen).is_some());
        assert!(log(text, Some("nobody.knows == 1")).unwrap_err().contains("nobody.knows"));
        assert!(log(config::LogFormat::Text("%WHAT%".into()), None).unwrap_err().contains("WHAT"));
        let elsewhere = config::AccessLog { path: "/var/log/x".into(), ..Default::default() };
        assert!(log_of(&elsewhere).unwrap_err().contains("/dev/stdout"));
    }
}
