//! The verbs of a group of `--help`. This command: its schemas, completion, manual and version.

pub(super) mod completion;
pub(super) mod man;
pub(super) mod names;
pub(super) mod schema;
pub(super) mod version;
