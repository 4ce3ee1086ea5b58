//! `meshctl edit`: an object in the user's editor, applied when it is closed, and opened again with what is wrong until nothing is.

use std::{ffi::OsString, fs, path::Path, process::Command};

use mesh_control::{
    api::{ApplyRequest, Item, Objects},
    diagnostic::Diagnostic,
    kinds::Key,
    store::{Applied, SourceFile},
};

use crate::cli::{
    BAD_INPUT, FAILURE, Failure, apply,
    client::{Server, escape},
    get, output, values,
};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
The editor is what MESHCTL_EDITOR, VISUAL or EDITOR names, else vi.

Example:
  meshctl edit vs reviews")]
pub(in crate::cli) struct Edit {
    /// What: KIND NAME or KIND/NAME.
    #[arg(required = true, num_args = 1..=2, value_name = "KIND NAME")]
    what: Vec<String>,
}

/// Lines that begin so are not part of the object.
const NOTE: &str = "# ";

impl Edit {
    pub(in crate::cli) async fn run(self, server: &Server) -> Result<(), Failure> {
        let key = values::key(&self.what, server.namespace())?;
        let path = format!("/objects?namespace={}&name={}", escape(&key.namespace), escape(&key.name));
        let items = server.get::<Objects>(&path).await?.items;
        let found = items.into_iter().find(|item| item.key == key);
        let Item { object, .. } = found.ok_or_else(|| Failure::new(FAILURE, get::not_found(&key)))?;
        let original = output::yaml(&object)?;
        let failed = |error: std::io::Error| Failure::new(FAILURE, format!("the editor has no file: {error}"));
        let dir = tempfile::Builder::new().prefix("meshctl-edit-").tempdir().map_err(failed)?;
        let file = dir.path().join(format!("{}.yaml", key.name));
        let (mut text, mut last) = (format!("{}{original}", head(&key, &[])), original.clone());
        loop {
            fs::write(&file, &text).map_err(failed)?;
            open(&file)?;
            let edited = without_notes(&fs::read_to_string(&file).map_err(failed)?);
            if edited.trim().is_empty() || edited == original {
                output::note("Nothing was changed.");
                return Ok(());
            }
            let source = SourceFile { name: format!("{}.yaml", key.name), text: edited.clone() };
            let failure = match server
                .post::<_, Applied>("/apply", &ApplyRequest { files: vec![source], dry_run: false })
                .await
            {
                Ok(applied) => {
                    output::diagnostics(&applied.diagnostics);
                    let line = |change: &mesh_control::store::Change| {
                        format!(
                            "{}/{} {}\n",
                            output::resource(&change.key),
                            change.key.name,
                            apply::word(change.action)
                        )
                    };
                    return output::data(&applied.changes.iter().map(line).collect::<String>());
                }
                Err(failure) => failure,
            };
            if failure.code != BAD_INPUT || edited == last {
                // The same again: the user has given up. What was written is not thrown away.
                let kept = dir.keep().join(format!("{}.yaml", key.name));
                return Err(Failure {
                    message: format!("nothing was applied; what you wrote is in {}", kept.display()),
                    ..failure
                });
            }
            text = format!("{}{edited}", head(&key, &failure.diagnostics));
            last = edited;
        }
    }
}

/// What stands above the object: what to do, and what is wrong with it.
fn head(key: &Key, found: &[Diagnostic]) -> String {
    let mut text = format!("{NOTE}{key}. It is applied when you close the editor; an empty file changes nothing.\n");
    for diagnostic in found {
        for line in diagnostic.to_string().lines() {
            text += &format!("{NOTE}{line}\n");
        }
    }
    text
}

/// The comments at the top are ours; others are the user's.
fn without_notes(text: &str) -> String {
    text.lines().skip_while(|line| line.starts_with('#')).map(|line| format!("{line}\n")).collect()
}

/// Runs the editor and waits for its end.
fn open(file: &Path) -> Result<(), Failure> {
    let named = ["MESHCTL_EDITOR", "VISUAL", "EDITOR"].iter().find_map(std::env::var_os);
    let editor = named.filter(|editor| !editor.is_empty()).unwrap_or_else(|| OsString::from("vi"));
    // Through a shell, as git and kubectl do: an editor may have arguments.
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("{} \"$1\"", editor.to_string_lossy())).arg("sh").arg(file);
    match command.status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            Err(Failure::new(FAILURE, format!("the editor {} ended badly ({status})", editor.to_string_lossy())))
        }
        Err(error) => Err(Failure::new(FAILURE, format!("the editor cannot be started: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

    use mesh_control::kinds::Kind;

    use super::*;

    #[test]
    fn notes_are_above_the_object_and_not_part_of_it() {
        let key = Key::new(Kind::VirtualService, "default", "reviews");
        let text = format!("{}a: 1\n# mine\nb: 2\n", head(&key, &[]));
        assert!(text.starts_with("# VirtualService default/reviews. "), "{text}");
        assert_eq!(without_notes(&text), "a: 1\n# mine\nb: 2\n");
    }
}
