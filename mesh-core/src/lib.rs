//! What a service mesh decides for one request: pure policy, without I/O, clock or async.

pub mod config;
