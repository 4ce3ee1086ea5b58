//! The verbs of a group of `--help`. Configure: objects in, out, changed, compared and judged.

pub(super) mod analyze;
pub(super) mod apply;
pub(super) mod check_routes;
pub(super) mod delete;
pub(super) mod describe;
pub(super) mod diff;
pub(super) mod edit;
pub(super) mod get;
pub(super) mod validate;
