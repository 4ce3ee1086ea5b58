//! `meshctl completion`: a script that completes verbs, options and their values in a shell; in bash, zsh and fish names of objects and workloads too,
//! which `meshctl names` tells.

use clap_complete::{Shell, generate};

use crate::cli::{Failure, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  source <(meshctl completion bash)
  meshctl completion zsh > \"${fpath[1]}/_meshctl\"
  meshctl completion fish > ~/.config/fish/completions/meshctl.fish")]
pub(in crate::cli) struct Completion {
    /// Of which shell.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completion {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let mut script = Vec::new();
        generate(self.shell, &mut crate::cli::command(), "meshctl", &mut script);
        output::data(&(String::from_utf8_lossy(&script).into_owned() + names(self.shell)))
    }
}

/// What completes names. Where no control plane answers, nothing is added to what stands in the script before.
fn names(shell: Shell) -> &'static str {
    match shell {
        Shell::Bash => {
            r#"
_meshctl_and_names() {
    _meshctl "$@"
    local cur="${COMP_WORDS[COMP_CWORD]}" names
    [[ "$cur" == -* ]] && return 0
    names="$(command meshctl --quiet names -- "${COMP_WORDS[@]:1:COMP_CWORD-1}" 2>/dev/null)"
    [[ -n "$names" ]] && COMPREPLY=($(compgen -W "$names" -- "$cur"))
    return 0
}
complete -F _meshctl_and_names -o bashdefault -o default meshctl
"#
        }
        Shell::Zsh => {
            r#"
_meshctl_and_names() {
    local -a names
    [[ "${words[CURRENT]}" != -* ]] && names=(${(f)"$(command meshctl --quiet names -- ${words[2,CURRENT-1]} 2>/dev/null)"})
    if (( ${#names} )); then compadd -a names; else _meshctl "$@"; fi
}
compdef _meshctl_and_names meshctl
"#
        }
        Shell::Fish => {
            r#"
complete -c meshctl -f -a '(command meshctl --quiet names -- (commandline -opc)[2..-1] 2>/dev/null)'
"#
        }
        _ => "",
    }
}
