//! What `shift`, `fault`, `timeout` and `retry` share: the `VirtualService` that a host's requests follow is taken from the control
//! plane, changed as a user would change its YAML, and applied through the same door as any file.
//!
//! Every change can be taken back: what a shift replaced is kept in an annotation, the other verbs own their fields, and a rule
//! that was made here goes when nothing of it is left. `change.rs` has the changes themselves, without a control plane.

use clap::ValueEnum;
use mesh_control::{
    api::{ApplyRequest, DeleteRequest, Deleted, Item, Objects},
    kinds::{Key, Kind},
    store::{Applied, SourceFile},
};
use serde_json::{Value, json};

use super::{
    FAILURE, Failure, USAGE, apply,
    client::{Server, escape},
    get, output, values,
};

pub(super) mod change;
pub(super) mod fault;
pub(super) mod retry;
pub(super) mod shift;
pub(super) mod timeout;

/// Which rule, and how the change is shown.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Steering {
    /// The host whose requests are meant, such as reviews, or its rule as vs/NAME.
    #[arg(value_name = "HOST|vs/NAME")]
    host: String,
    /// Only this route of the rule, by its name.
    #[arg(long, value_name = "NAME")]
    pub(super) route: Option<String>,
    /// Change nothing: print what would be applied.
    #[arg(long)]
    pub(super) dry_run: bool,
    /// Print what is applied.
    #[arg(short, long, value_enum)]
    output: Option<Shape>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
enum Shape {
    Yaml,
    Json,
}

/// A `VirtualService`, to be changed.
#[derive(Clone, Debug)]
pub(super) struct Rule {
    key: Key,
    pub(super) object: Value,
    is_new: bool,
}

impl Steering {
    /// The rule that requests to the host follow; a new one that changes nothing yet where there is none.
    pub(super) async fn rule(&self, server: &Server) -> Result<Rule, Failure> {
        let namespace = server.namespace();
        let path = format!("/objects?kind=vs&namespace={}", escape(namespace));
        let items = server.get::<Objects>(&path).await?.items;
        if self.host.contains('/') {
            let key = values::key(std::slice::from_ref(&self.host), namespace)?;
            if key.kind != Kind::VirtualService {
                return Err(Failure::new(USAGE, "only a VirtualService can be steered, such as vs/reviews"));
            }
            let found = items.into_iter().find(|item| item.key == key);
            let item = found.ok_or_else(|| Failure::new(FAILURE, get::not_found(&key)))?;
            return Ok(Rule { key, object: item.object, is_new: false });
        }
        let wanted = values::full_host(&self.host, namespace);
        // Of two for a host the oldest counts.
        let found = items.iter().filter(|item| holds_for(item, &wanted)).min_by_key(|item| item.created);
        if let Some(item) = found {
            return Ok(Rule { key: item.key.clone(), object: item.object.clone(), is_new: false });
        }
        let name = self.host.split('.').next().unwrap_or_default();
        let key = Key::new(Kind::VirtualService, namespace, name);
        if items.iter().any(|item| item.key == key) {
            let message =
                format!("virtualservice {name:?} is there, but not for host {}; name it as vs/{name}", self.host);
            return Err(Failure::new(FAILURE, message));
        }
        let object = change::plain(name, namespace, &self.host);
        Ok(Rule { key, object, is_new: true })
    }

    /// Applies the rule as it is now, or takes it back when it was made here and says nothing any more.
    pub(super) async fn apply(&self, server: &Server, rule: &Rule) -> Result<(), Failure> {
        if change::says_nothing(&rule.object) {
            return self.delete(server, rule).await;
        }
        let applied = self.put(server, rule).await?;
        output::diagnostics(&applied.diagnostics);
        let words: String =
            applied.changes.iter().map(|change| self.line(&change.key, apply::word(change.action))).collect();
        match (self.output, self.dry_run) {
            (Some(Shape::Json), _) => output::data(&output::json(&rule.object)?)?,
            (Some(Shape::Yaml), _) | (None, true) => output::data(&output::yaml(&rule.object)?)?,
            (None, false) => return output::data(&words),
        }
        output::note(words.trim_end());
        Ok(())
    }

    /// Applies the rule without a word.
    pub(super) async fn put(&self, server: &Server, rule: &Rule) -> Result<Applied, Failure> {
        let name = format!("{}/{}", Kind::VirtualService.as_str().to_ascii_lowercase(), rule.key.name);
        let file = SourceFile { name, text: output::yaml(&rule.object)? };
        server.post("/apply", &ApplyRequest { files: vec![file], dry_run: self.dry_run }).await
    }

    async fn delete(&self, server: &Server, rule: &Rule) -> Result<(), Failure> {
        if rule.is_new {
            output::note("There is nothing to take back.");
            return Ok(());
        }
        if !self.dry_run {
            let request = DeleteRequest { keys: vec![rule.key.clone()], files: Vec::new() };
            let deleted: Deleted = server.post("/delete", &request).await?;
            output::diagnostics(&deleted.diagnostics);
        }
        output::data(&self.line(&rule.key, "deleted"))
    }

    fn line(&self, key: &Key, word: &str) -> String {
        let suffix = if self.dry_run { " (dry run)" } else { "" };
        format!("{}/{} {word}{suffix}\n", output::resource(key), key.name)
    }
}

impl Rule {
    /// The host that its requests go to, as its own routes name it.
    pub(super) fn host(&self) -> String {
        let text = |pointer: &str| self.object.pointer(pointer).and_then(Value::as_str);
        let first = text("/spec/http/0/route/0/destination/host").or_else(|| text("/spec/hosts/0"));
        values::full_host(first.unwrap_or_default(), &self.key.namespace)
    }
}

/// Whether it is the rule of calls to that host within the mesh.
fn holds_for(item: &Item, host: &str) -> bool {
    let list = |name: &str| item.object.pointer(&format!("/spec/{name}")).and_then(Value::as_array);
    let is_in_mesh = list("gateways").is_none_or(|gateways| gateways.is_empty() || gateways.contains(&json!("mesh")));
    let hosts = list("hosts").into_iter().flatten().filter_map(Value::as_str);
    is_in_mesh && hosts.map(|of| values::full_host(of, &item.key.namespace)).any(|of| of == host)
}

/// A change that cannot be made to this rule.
pub(super) fn cannot(message: String) -> Failure {
    Failure::new(FAILURE, message)
}
