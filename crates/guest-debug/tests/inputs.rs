//! Hostile inputs, without a fuzzer: the seeds of the fuzz targets and mutations of them, the same at every run.

#![cfg(all(feature = "envelope", feature = "versionize"))]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

#[allow(dead_code, reason = "nothing runs here")]
mod fake;
mod hostile;

use std::path::Path;

/// Mutations of each seed.
const MUTATIONS: u64 = 300;

/// Gives a target its seeds, and what comes of them.
fn feed(name: &str, target: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty());
    let seeds: Vec<_> = paths.iter().map(|path| std::fs::read(path).unwrap()).collect();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for seed in &seeds {
        target(seed);
        for _ in 0..MUTATIONS {
            target(&mutated(seed, &seeds, &mut random));
        }
    }
}

#[test]
fn json() {
    feed("json", hostile::json);
}

#[test]
fn versioned() {
    feed("versioned", hostile::versioned);
}

#[test]
fn envelope() {
    feed("envelope", hostile::envelope);
}

#[test]
fn session() {
    feed("session", hostile::session);
}

#[test]
fn expression() {
    feed("expression", hostile::expression);
}

fn mutated(seed: &[u8], others: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..1 + random.below(4) {
        let at = random.below(bytes.len() + 1);
        match random.below(5) {
            0 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte ^= 1 << random.below(8)),
            1 => bytes.iter_mut().skip(at).take(1).for_each(|byte| *byte = random.below(256) as u8),
            2 => bytes.truncate(at),
            3 => {
                let other = &others[random.below(others.len())];
                bytes.truncate(at);
                bytes.extend(other.iter().skip(at));
            }
            _ => {
                let end = (at + random.below(16)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

/// Xorshift64, of Marsaglia: enough to choose with, and the same everywhere.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % limit.max(1) as u64) as usize
    }
}
