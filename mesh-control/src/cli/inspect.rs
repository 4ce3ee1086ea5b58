//! The verbs of a group of `--help`. Inspect: whether all is well, and what each process was told.

pub(super) mod bug_report;
pub(super) mod check;
pub(super) mod explain;
pub(super) mod fields;
pub(super) mod proxy_config;
pub(super) mod proxy_status;
pub(super) mod status;
