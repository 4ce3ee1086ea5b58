//! `meshctl schema`: the fields of the kinds that are taken, for editors and for people.

use std::{fs, path::PathBuf};

use clap::ValueEnum;
use mesh_control::kinds::{Kind, schema};
use serde_json::Value;

use crate::cli::{FAILURE, Failure, get, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl schema vs
  meshctl schema dr -o fields | grep outlier
  meshctl schema --output-dir schemas    # then, above a document: # yaml-language-server: $schema=schemas/virtualservice.json")]
pub(in crate::cli) struct Schema {
    /// Of which kind; without, the kinds there are.
    kind: Option<String>,
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = Format::Json)]
    output: Format,
    /// Write the schemas of all kinds into this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "kind")]
    output_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Format {
    /// JSON Schema.
    Json,
    Yaml,
    /// A line a field: its path and its type.
    Fields,
}

impl Schema {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        if let Some(dir) = &self.output_dir {
            let failure = |error: std::io::Error| Failure::new(FAILURE, format!("{}: {error}", dir.display()));
            fs::create_dir_all(dir).map_err(failure)?;
            for kind in Kind::ALL {
                // Two kinds are called Gateway.
                let file = match kind {
                    Kind::KubeGateway => "gateway.gateway.networking.k8s.io".to_owned(),
                    kind => kind.as_str().to_ascii_lowercase(),
                };
                fs::write(dir.join(format!("{file}.json")), output::json(&schema(kind))?).map_err(failure)?;
            }
            return Ok(());
        }
        let Some(word) = &self.kind else {
            let rows = Kind::ALL.map(|kind| {
                let group = kind.group();
                let version = if group.is_empty() { "v1".to_owned() } else { format!("{group}/v1") };
                vec![kind.plural(), kind.short().to_owned(), version, kind.as_str().to_owned()]
            });
            return output::data(&output::table(&["NAME", "SHORT NAME", "APIVERSION", "KIND"], &rows));
        };
        let schema = schema(get::kind(word)?);
        output::data(&match self.output {
            Format::Json => output::json(&schema)?,
            Format::Yaml => output::yaml(&schema)?,
            Format::Fields => {
                let mut rows = Vec::new();
                fields(&schema, "", &mut rows);
                output::table(&["FIELD", "TYPE"], &rows)
            }
        })
    }
}

fn fields(schema: &Value, path: &str, rows: &mut Vec<Vec<String>>) {
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let items = field.get("items");
        let inner = items.unwrap_or(field);
        let mut kind = match inner.get("enum").and_then(Value::as_array) {
            Some(words) => words.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("|"),
            None => {
                inner.get("type").or_else(|| inner.get("const")).and_then(Value::as_str).unwrap_or("any").to_owned()
            }
        };
        if items.is_some() {
            kind = format!("list of {kind}");
        }
        if field.get("description").is_some() {
            kind += ", without effect";
        }
        rows.push(vec![path.clone(), kind]);
        fields(inner, &path, rows);
        if let Some(others) = inner.get("additionalProperties").filter(|others| others.is_object()) {
            fields(others, &format!("{path}.*"), rows);
        }
    }
}
