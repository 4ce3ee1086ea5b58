//! `meshctl`: parses the command line and calls one function per verb.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
