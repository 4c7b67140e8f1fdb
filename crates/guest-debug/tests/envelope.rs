//! The envelope: each way in which one can be bad.

#![cfg(feature = "envelope")]
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use guest_debug::state::envelope::*;
use guest_debug::state::*;
use proptest::prelude::*;

fn sample() -> GuestDebugState {
    GuestDebugState {
        version: STATE_VERSION,
        architecture: Architecture::Aarch64,
        attached: true,
        held: false,
        selected_vcpu: None,
        hardware: vec![0x1000],
        watches: Vec::new(),
        software: Vec::new(),
        vcpus: vec![VcpuDebugState { mode: VcpuMode::Running, told: None }],
        reported: None,
        pending: Vec::new(),
        put_aside: Vec::new(),
        rules: vec![RuleState {
            breakpoint: BreakpointState::Hardware(0x1000),
            // X0 is 5.
            conditions: vec![vec![0x26, 0, 0, 0x22, 5, 0x13, 0x27]],
            commands: Vec::new(),
            ignore: 3,
            reached: 2,
            hits: 1,
        }],
    }
}

fn sealed() -> Vec<u8> {
    seal(&sample()).unwrap()
}

/// Bytes with `patch` at `offset`, and a checksum that is right again.
fn patched(offset: usize, patch: &[u8]) -> Vec<u8> {
    resum(sealed(), offset, patch)
}

fn resum(mut bytes: Vec<u8>, offset: usize, patch: &[u8]) -> Vec<u8> {
    bytes[offset..offset + patch.len()].copy_from_slice(patch);
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..24]);
    hasher.update(&bytes[28..]);
    let sum = hasher.finalize().to_le_bytes();
    bytes[24..28].copy_from_slice(&sum);
    bytes
}

#[test]
fn what_was_sealed_is_opened_and_nothing_behind_it_is_read() {
    let mut bytes = sealed();
    bytes.extend(b"next");
    let mut reader = &bytes[..];
    assert_eq!(open(&mut reader).unwrap(), sample());
    assert_eq!(reader, b"next");
}

/// What version 1 wrote is read for ever.
#[test]
fn golden_version_1() {
    let golden: &[u8] = include_bytes!("data/state-v1.envelope");
    assert_eq!(open(golden).unwrap(), GuestDebugState { version: 1, rules: Vec::new(), ..sample() });
}

/// What version 2 wrote is read for ever, and is still what is written.
#[test]
fn golden_version_2() {
    let golden: &[u8] = include_bytes!("data/state-v2.envelope");
    assert_eq!(open(golden).unwrap(), sample());
    assert_eq!(sealed(), golden);
}

#[test]
fn truncated() {
    let bytes = sealed();
    for length in 0..bytes.len() {
        let error = open(&bytes[..length]).unwrap_err();
        assert!(matches!(error, EnvelopeError::Truncated { found, .. } if found == length as u64), "{error}");
    }
}

#[test]
fn magic() {
    let error = open(&patched(0, b"GDBGSTAX")[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Magic { found } if found == *b"GDBGSTAX"), "{error}");
}

#[test]
fn envelope_version() {
    let error = open(&patched(8, &[2, 0])[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::EnvelopeVersion { found: 2 }), "{error}");
}

#[test]
fn architecture() {
    let error = open(&patched(10, &[3, 0])[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Architecture { found: 3 }), "{error}");
    let error = open(&patched(10, &[2, 0])[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Mismatch { field: "architecture" }), "{error}");
}

#[test]
fn an_older_reader_refuses_a_newer_state_before_decoding_it() {
    for found in [0, STATE_VERSION + 1] {
        let mut bytes = patched(12, &found.to_le_bytes());
        bytes.truncate(28);
        let error = open(&bytes[..]).unwrap_err();
        assert!(matches!(error, EnvelopeError::StateVersion { found: it } if it == found), "{error}");
    }
    let lying = seal(&GuestDebugState { version: STATE_VERSION + 1, ..sample() }).unwrap();
    let error = open(&resum(lying, 12, &1_u32.to_le_bytes())[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Payload(_)), "{error}");
    assert!(error.to_string().contains("the state has version 3, this build reads 1 to 2"), "{error}");
}

#[test]
fn too_long() {
    let error = open(&patched(16, &(MAX_PAYLOAD + 1).to_le_bytes())[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::TooLong { found } if found == MAX_PAYLOAD + 1), "{error}");
    let software = SoftwareState { physical: 0, original: [0; 4], names: vec![u64::MAX; 1 << 20] };
    let error = seal(&GuestDebugState { software: vec![software], ..sample() }).unwrap_err();
    assert!(matches!(error, EnvelopeError::TooLong { .. }), "{error}");
}

#[test]
fn any_flipped_bit_is_found() {
    let bytes = sealed();
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert!(open(&bad[..]).is_err(), "bit {bit}");
    }
    let mut bad = bytes;
    *bad.last_mut().unwrap() ^= 1;
    assert!(matches!(open(&bad[..]), Err(EnvelopeError::Checksum { .. })));
}

#[test]
fn payload() {
    let error = open(&patched(28, b"[")[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Payload(_)), "{error}");
    let error = open(&patched(30, b"\xff")[..]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Text { offset: 2 }), "{error}");
}

proptest! {
    #[test]
    fn any_bytes_are_refused_without_panic(bytes: Vec<u8>, at in 0..200_usize, patch: [u8; 2]) {
        prop_assert!(open(&bytes[..]).is_err());
        let _ = open(&patched(at, &patch)[..]);
    }
}
