//! Messages of the services that a server asks before it lets a request in, made of plain values and read into them.
//!
//! Whoever sends them has connections of its own; nothing here does.

pub mod ext_authz;
pub mod rate_limit;
