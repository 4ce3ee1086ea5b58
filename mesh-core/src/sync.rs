//! The atomics that live cells are made of, and the lock around what is told of them: the standard library's, or those of a
//! model checker when built with `--cfg loom`.
//!
//! Every atomic of this crate is named here and nowhere else, so that the models run the very code that requests run.

#[cfg(not(loom))]
pub(crate) use std::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};

#[cfg(loom)]
pub(crate) use loom::sync::{
    Mutex,
    atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
};
