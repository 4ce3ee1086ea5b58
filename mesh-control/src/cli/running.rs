//! The verbs of a group of `--help`. Run: a control plane, members of the mesh, the console.

pub(super) mod bootstrap;
pub(super) mod dashboard;
pub(super) mod dev;
pub(super) mod joining;
pub(super) mod place;
pub(super) mod run;
