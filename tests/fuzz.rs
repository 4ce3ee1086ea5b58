//! Bytes from outside never end the process: everything that decodes them is fed what a seed makes of good input.
//!
//! A run is a function of its seed. Input is made three ways: messages with random fields by the descriptors of the protocol,
//! good input of each kind mutated, and the corpus: every file under `tests/fuzz/corpus/TARGET` is replayed first. A run of
//! `cargo test` takes some thousand inputs; the long one is
//!
//! ```text
//! MESH_FUZZ=10000000 cargo test --release --test fuzz -- --nocapture
//! ```
//!
//! and `MESH_FUZZ_SEED` another seed. What panics, or takes longer than two seconds, is written to a file that the message
//! names; it belongs into the corpus once mended.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "fuzz/input.rs"]
mod input;
#[path = "fuzz/targets.rs"]
mod targets;

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
    time::Duration,
};

use cpu_time::ThreadTime;
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::{
    input::{Makers, mutate},
    targets::{Target, all},
};

/// No input takes more of a processor; what the machine does beside it does not count.
const LONGEST: Duration = Duration::from_secs(2);

/// OP15: no input ends the process or holds it up.
#[test]
fn no_input_ends_the_process() {
    let number = |name: &str| std::env::var(name).ok().map(|value| value.parse::<u64>().unwrap());
    let (count, seed) = (number("MESH_FUZZ").unwrap_or(3_000), number("MESH_FUZZ_SEED").unwrap_or(1));
    let makers = Makers::new();
    let targets = all();
    for target in &targets {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target.name);
        for file in fs::read_dir(folder).into_iter().flatten() {
            feed(target, &fs::read(file.unwrap().path()).unwrap(), "the corpus");
        }
        for good in &target.good {
            feed(target, good, "good input");
        }
    }
    let mut rng = SmallRng::seed_from_u64(seed);
    for n in 0..count {
        let target = &targets[(n % targets.len() as u64) as usize];
        let mut bytes = match target.message {
            Some(message) if target.good.is_empty() || rng.random_bool(0.6) => makers.message(message, &mut rng),
            _ => target.good[rng.random_range(0..target.good.len())].clone(),
        };
        if target.message.is_none() || rng.random_bool(0.5) {
            let other = target.good.get(rng.random_range(0..target.good.len().max(1)));
            mutate(&mut bytes, other.map_or(&[], Vec::as_slice), &mut rng);
        }
        feed(target, &bytes, &format!("input {n} of seed {seed}"));
        if count > 100_000 && n % (count / 20) == 0 {
            println!("{n} of {count}");
        }
    }
}

fn feed(target: &Target, bytes: &[u8], from: &str) {
    let began = ThreadTime::now();
    let ended = catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)));
    let took = began.elapsed();
    if ended.is_ok() && took < LONGEST {
        return;
    }
    let file = std::env::temp_dir().join(format!("mesh-fuzz-{}", target.name));
    fs::write(&file, bytes).unwrap();
    let what = if ended.is_ok() { format!("took {took:?}") } else { "panicked".to_owned() };
    panic!("{} {what} on {from}, which is in {}", target.name, file.display());
}
