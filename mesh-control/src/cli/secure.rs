//! The verbs of a group of `--help`. Secure: who may do what, certificates, identities.

pub(super) mod authz;
pub(super) mod cert;
pub(super) mod workload;
