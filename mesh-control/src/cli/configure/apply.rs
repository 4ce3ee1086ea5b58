//! `meshctl apply`: files in, one line per object out, all or nothing.

use mesh_control::{
    api::ApplyRequest,
    store::{Action, Applied},
};

use crate::cli::{Failure, USAGE, client::Server, input::Files, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Apply {
    #[command(flatten)]
    files: Files,
    /// Only say what would happen.
    #[arg(long)]
    dry_run: bool,
}

impl Apply {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        if self.files.is_empty() {
            return Err(Failure::new(USAGE, "nothing to apply: name a file, a directory or - with -f"));
        }
        let request = ApplyRequest { files: self.files.read()?, dry_run: self.dry_run };
        let applied: Applied = server.post("/apply", &request).await.map_err(|mut failure: Failure| {
            let errors = failure.diagnostics.iter().filter(|diagnostic| diagnostic.is_error()).count();
            if errors > 0 {
                let plural = if errors == 1 { "" } else { "s" };
                failure.message = format!("nothing was applied because of {errors} error{plural}");
            }
            failure
        })?;
        output::diagnostics(&applied.diagnostics);
        let suffix = if self.dry_run { " (dry run)" } else { "" };
        let mut text = String::new();
        for change in &applied.changes {
            let key = &change.key;
            text += &format!("{}/{} {}{suffix}\n", output::resource(key), key.name, word(change.action));
        }
        if applied.changes.is_empty() {
            output::note("There is no object in what was applied.");
        }
        output::data(&text)
    }
}

pub(in crate::cli) fn word(action: Action) -> &'static str {
    match action {
        Action::Created => "created",
        Action::Configured => "configured",
        Action::Unchanged => "unchanged",
        Action::Deleted => "deleted",
    }
}
