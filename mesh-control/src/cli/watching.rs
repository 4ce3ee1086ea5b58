//! `--watch` of what is read again and again: on a terminal each look replaces the last, elsewhere they follow each other.

use super::{Failure, output};

#[derive(Clone, Copy, Debug, clap::Args)]
pub(super) struct Watching {
    /// Go on, until interrupted.
    #[arg(short, long)]
    pub(super) watch: bool,
}

/// Prints one look.
pub(super) fn look(text: &str, is_first: bool) -> Result<(), Failure> {
    if output::is_terminal() {
        // Clears what is shown, and begins at the top.
        return output::data(&format!("\u{1b}[2J\u{1b}[H{text}"));
    }
    output::data(&if is_first { text.to_owned() } else { format!("\n{text}") })
}
