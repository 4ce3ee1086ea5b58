//! `meshctl delete`: by name, or everything that files name.

use mesh_control::{
    api::{DeleteRequest, Deleted},
    kinds::Key,
};

use crate::cli::{FAILURE, Failure, USAGE, apply, client::Server, get, input::Files, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Delete {
    /// What is to go, such as vs or virtualservice.
    kind: Option<String>,
    /// Which.
    names: Vec<String>,
    #[command(flatten)]
    files: Files,
}

impl Delete {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let deleted: Deleted = server.post("/delete", &self.request(server.namespace())?).await?;
        output::diagnostics(&deleted.diagnostics);
        let mut text = String::new();
        for change in &deleted.changes {
            let key = &change.key;
            text += &format!("{} {:?} {}\n", output::resource(key), key.name, apply::word(change.action));
        }
        output::data(&text)?;
        let missing: Vec<String> = deleted.missing.iter().map(get::not_found).collect();
        if missing.is_empty() { Ok(()) } else { Err(Failure::new(FAILURE, missing.join("\n       "))) }
    }

    fn request(&self, namespace: &str) -> Result<DeleteRequest, Failure> {
        match (&self.kind, self.files.is_empty()) {
            (Some(_), false) => Err(Failure::new(USAGE, "give either a kind and names or -f, not both")),
            (None, true) => Err(Failure::new(USAGE, "nothing to delete: give a kind and a name, or files with -f")),
            (None, false) => Ok(DeleteRequest { files: self.files.read()?, keys: Vec::new() }),
            (Some(word), true) => {
                let kind = get::kind(word)?;
                if self.names.is_empty() {
                    return Err(Failure::new(USAGE, format!("which of the {}? give a name", kind.plural())));
                }
                let key = |name: &String| Key::new(kind, namespace, name);
                Ok(DeleteRequest { keys: self.names.iter().map(key).collect(), files: Vec::new() })
            }
        }
    }
}
