//! `meshctl completion`: a script that completes verbs, options and their values in a shell.

use clap_complete::{Shell, generate};

use super::{Failure, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(meshctl completion bash)
  meshctl completion zsh > \"${fpath[1]}/_meshctl\"
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
pub(super) struct Completion {
    /// Of which shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(super) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut super::command(), "meshctl", &mut script);
        output::data(&String::from_utf8_lossy(&script))
    }
}
