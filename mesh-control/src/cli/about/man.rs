//! `meshctl man`: the manual, made of the same grammar as `--help`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use clap_mangen::Man as Page;

use crate::cli::{FAILURE, Failure, USAGE, output};

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl man get | man -l -
  meshctl man --output-dir ~/.local/share/man/man1")]
pub(in crate::cli) struct Man {
    /// Of which command, such as proxy-config cluster; meshctl itself without.
    command: Vec<String>,
    /// Write the pages of all commands into this directory instead.
    #[arg(long, value_name = "DIR", conflicts_with = "command")]
    output_dir: Option<PathBuf>,
}

impl Man {
    pub(in crate::cli) fn run(self) -> Result<(), Failure> {
        let mut command = crate::cli::command();
        command.build();
        if let Some(dir) = &self.output_dir {
            let failure = |error: io::Error| Failure::new(FAILURE, format!("{}: {error}", dir.display()));
            fs::create_dir_all(dir).map_err(failure)?;
            return write_all(&command, "meshctl", dir).map_err(failure);
        }
        let (mut shown, mut name) = (&command, "meshctl".to_owned());
        for word in &self.command {
            let next = shown.find_subcommand(word);
            shown = next.ok_or_else(|| Failure::new(USAGE, format!("{name} has no command {word:?}")))?;
            name = format!("{name}-{}", shown.get_name());
        }
        let page = page(shown, &name).map_err(|error| Failure::new(FAILURE, error.to_string()))?;
        output::data(&String::from_utf8_lossy(&page))
    }
}

fn page(command: &clap::Command, name: &str) -> io::Result<Vec<u8>> {
    let mut page = Vec::new();
    // Neither a date nor a version: the page of a version is the same whenever it is made.
    Page::new(command.clone().display_name(name.to_owned())).title(name).source("meshctl").render(&mut page)?;
    Ok(page)
}

fn write_all(command: &clap::Command, name: &str, dir: &Path) -> io::Result<()> {
    fs::write(dir.join(format!("{name}.1")), page(command, name)?)?;
    for verb in command.get_subcommands().filter(|verb| verb.get_name() != "help") {
        write_all(verb, &format!("{name}-{}", verb.get_name()), dir)?;
    }
    Ok(())
}
