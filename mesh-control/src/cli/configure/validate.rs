//! `meshctl validate`: is what files say what their kinds allow? In this process; no control plane is asked.

use mesh_control::{diagnostic::Diagnostic, kinds};

use crate::cli::{BAD_INPUT, Failure, USAGE, input::Files, output};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Validate {
    #[command(flatten)]
    files: Files,
    /// Files, as with -f.
    #[arg(value_name = "FILE")]
    more: Vec<std::path::PathBuf>,
}

impl Validate {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let files = self.files.and(self.more);
        if files.is_empty() {
            return Err(Failure::new(USAGE, "nothing to validate: name a file, a directory or - with -f"));
        }
        let mut text = String::new();
        let (mut found, mut broken) = (Vec::new(), 0);
        for file in files.read()? {
            match kinds::parse(&file.name, &file.text) {
                Ok(mut parsed) => {
                    text += &format!("{:?} is valid\n", file.name);
                    found.append(&mut parsed.diagnostics);
                }
                Err(mut diagnostics) => {
                    broken += 1;
                    found.append(&mut diagnostics);
                }
            }
        }
        output::data(&text)?;
        if broken == 0 {
            output::diagnostics(&found);
            return Ok(());
        }
        let errors = found.iter().filter(|it: &&Diagnostic| it.is_error()).count();
        let plural = |count: usize| if count == 1 { "" } else { "s" };
        let message = format!("{errors} error{} in {broken} file{}", plural(errors), plural(broken));
        Err(Failure { code: BAD_INPUT, message, diagnostics: found })
    }
}
