//! `meshctl authz check`: which policies are about a workload, and what they say of a made-up request.

use std::{collections::BTreeMap, net::IpAddr};

use clap::{Subcommand, ValueEnum};
use mesh_control::api::{AuthzChecked, AuthzRequest, AuthzVerdict, MadeUp};
use serde_json::Value;

use crate::cli::{Failure, client::Server, output, values};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Authz {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Print the policies that are about a workload, and with --path or --method what they say of such a request.
    Check(Check),
}

#[derive(Debug, clap::Args)]
struct Check {
    /// The workload, by instance, workload or label app.
    workload: String,
    /// Its port, if it has several.
    #[arg(long)]
    port: Option<u16>,
    /// The method of the request; GET if only its path is said.
    #[arg(long)]
    method: Option<String>,
    /// The path of the request, with its query.
    #[arg(long)]
    path: Option<String>,
    /// The host asked for; the workload's name if not said.
    #[arg(long)]
    host: Option<String>,
    /// A header of the request; may be repeated.
    #[arg(short = 'H', long = "header", value_name = "NAME:VALUE", value_parser = values::header)]
    headers: Vec<(String, String)>,
    /// Who asks: an identity (spiffe://... or cluster.local/ns/NAMESPACE/sa/ACCOUNT), NAMESPACE/ACCOUNT, or a namespace.
    #[arg(long, value_name = "IDENTITY")]
    from: Option<String>,
    /// A claim of the verified token, its value as JSON or text; a dot goes deeper; may be repeated.
    #[arg(long = "claim", value_name = "NAME=VALUE", value_parser = claim)]
    claims: Vec<(String, Value)>,
    /// The address at the other end of the connection.
    #[arg(long)]
    ip: Option<IpAddr>,
    /// The caller's address as trusted proxies tell it; the same as --ip if not said.
    #[arg(long)]
    remote_ip: Option<IpAddr>,
    /// The name asked for in the TLS handshake.
    #[arg(long, default_value = "")]
    server_name: String,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    Table,
    Json,
}

impl Authz {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let Verb::Check(check) = self.verb;
        check.run(server).await
    }
}

impl Check {
    async fn run(self, server: &Server) -> Result<(), Failure> {
        let format = self.output;
        let checked: AuthzChecked = server.post("/authz/check", &self.question()).await?;
        if format == Format::Json {
            return output::data(&output::json(&checked)?);
        }
        let port = checked.port.map_or_else(String::new, |port| format!(", port {port}"));
        let mtls = checked.mtls.map_or_else(
            || "mutual TLS by port".to_owned(),
            |mode| format!("mutual TLS {}", format!("{mode:?}").to_uppercase()),
        );
        let mut text = format!("{}{port}: {mtls}\n\n", checked.workload);
        if checked.policies.is_empty() {
            text.push_str("No policy is about it: every request passes that gets a connection.\n");
        } else {
            let header = ["ACTION", "KIND", "POLICY", "RULES", "DRY-RUN", "SOURCE"];
            let rows = checked.policies.iter().map(|row| {
                vec![
                    row.action.clone(),
                    row.object.kind.to_string(),
                    format!("{}/{}", row.object.namespace, row.object.name),
                    row.rules.to_string(),
                    if row.dry_run { "yes" } else { "no" }.to_owned(),
                    format!("{}:{}", row.file, row.line),
                ]
            });
            text.push_str(&output::table(&header, &rows.collect::<Vec<_>>()));
        }
        if let Some(verdict) = &checked.verdict {
            text.push('\n');
            text.push_str(&told(verdict));
        }
        output::data(&text)
    }

    fn question(self) -> AuthzRequest {
        let asks = self.method.is_some()
            || self.path.is_some()
            || self.host.is_some()
            || self.from.is_some()
            || !self.headers.is_empty()
            || !self.claims.is_empty()
            || self.ip.is_some()
            || self.remote_ip.is_some();
        let mut claims = BTreeMap::new();
        for (name, value) in self.claims {
            put(&mut claims, &name, value);
        }
        let request = MadeUp {
            method: self.method.unwrap_or_else(|| "GET".to_owned()),
            path: self.path.unwrap_or_else(|| "/".to_owned()),
            host: self.host.unwrap_or_default(),
            headers: self.headers,
            from: self.from,
            claims: (!claims.is_empty()).then_some(claims),
            ip: self.ip,
            remote_ip: self.remote_ip,
            server_name: self.server_name,
        };
        AuthzRequest { workload: self.workload, port: self.port, request: asks.then_some(request) }
    }
}

fn told(verdict: &AuthzVerdict) -> String {
    let rows: Vec<Vec<String>> =
        verdict.steps.iter().map(|step| vec![step.action.clone(), step.says.clone()]).collect();
    let steps = if rows.is_empty() { String::new() } else { output::table(&["ASKED", "SAYS"], &rows) + "\n" };
    let word = if verdict.allowed { "allowed".to_owned() } else { format!("refused with {}", verdict.status) };
    format!("{steps}{word}: {}\n", verdict.reason)
}

/// `a.b=c` is what `a` holds under `b`.
fn put(claims: &mut BTreeMap<String, Value>, name: &str, value: Value) {
    match name.split_once('.') {
        None => drop(claims.insert(name.to_owned(), value)),
        Some((first, rest)) => {
            let entry = claims.entry(first.to_owned()).or_insert_with(|| Value::Object(serde_json::Map::new()));
            let mut inner: BTreeMap<String, Value> = match std::mem::take(entry) {
                Value::Object(map) => map.into_iter().collect(),
                _ => BTreeMap::new(),
            };
            put(&mut inner, rest, value);
            *entry = Value::Object(inner.into_iter().collect());
        }
    }
}

fn claim(text: &str) -> Result<(String, Value), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => {
            Ok((name.to_owned(), serde_json::from_str(value).unwrap_or_else(|_| Value::from(value))))
        }
        _ => Err(r#"a claim is NAME=VALUE, as in iss=https://issuer.example or groups=["dev"]"#.to_owned()),
    }
}
