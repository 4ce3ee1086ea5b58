//! Bookinfo through the front door. The four services alone first: their unit tests stand beside them and run here,
//! because an example has no test run of its own.

#[path = "../examples/bookinfo/services.rs"]
mod services;
