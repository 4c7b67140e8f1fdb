//! Whatever a client sends, the session neither panics nor hangs, and goes on unless the client asked to leave.

use super::*;
use mock::{MockVm, VIRTUAL};
use proptest::prelude::*;

#[path = "../../tests/common/mock.rs"]
#[allow(dead_code, reason = "shared with the integration tests")]
mod mock;

/// Beginnings of packets, so that arbitrary bytes get past the first look.
const PREFIXES: [&str; 34] = [
    "",
    "qSearch:memory:",
    "qXfer:threads:read::",
    "?",
    "g",
    "G",
    "Hg",
    "Hc",
    "m",
    "M",
    "X",
    "p",
    "P",
    "T",
    "Z0,",
    "Z1,",
    "Z2,",
    "Z1,1000,4;X",
    "Z1,1000,4;cmds:0,X3,2201",
    "z0,",
    "z4,",
    "vCont;",
    "vCont?",
    "c",
    "s",
    "C",
    "S",
    "qSupported",
    "qXfer:features:read:",
    "qXfer:features:read:target.xml:",
    "qRcmd,",
    "qThreadExtraInfo,",
    "qAttached",
    "QStartNoAckMode",
];

fn attached(vm: &MockVm) -> Stub<'_, guest_debug::Arm64, MockVm> {
    vm.attach().unwrap();
    Stub::new(vm).unwrap()
}

/// One whose client has let the guest run.
fn running(vm: &MockVm) -> Stub<'_, guest_debug::Arm64, MockVm> {
    let mut stub = attached(vm);
    let mut packet = Vec::new();
    encode(b"vCont;c", &mut packet);
    stub.receive(&packet, &mut Vec::new()).unwrap();
    assert!(stub.is_running());
    stub
}

/// A packet's body: a known beginning, then bytes that are likely to mean something, or any bytes.
fn body() -> impl Strategy<Value = Vec<u8>> {
    let address = prop_oneof![Just(VIRTUAL), Just(u64::MAX), any::<u64>()].prop_map(|n| format!("{n:x}").into_bytes());
    let token = prop_oneof![
        address,
        any::<u8>().prop_map(|n| format!("{n:x}").into_bytes()),
        prop::sample::select(vec![
            ",",
            ":",
            ";",
            "X",
            "27",
            "cmds:",
            "=",
            ".",
            "p1.",
            "-1",
            "0",
            "+",
            "c",
            "s",
            "r",
            "x",
            "target.xml"
        ])
        .prop_map(|text| text.as_bytes().to_vec()),
    ];
    let likely = prop::collection::vec(token, 0..8).prop_map(|tokens| tokens.concat());
    let rest = prop_oneof![likely, prop::collection::vec(any::<u8>(), 0..64)];
    (prop::sample::select(PREFIXES.to_vec()), rest)
        .prop_map(|(prefix, rest)| [prefix.as_bytes(), &rest].concat())
        .prop_filter("it means to end the session", |body| !leaves(body))
}

/// Whether a packet is one of those that end a session: chance finds them too.
fn leaves(body: &[u8]) -> bool {
    matches!(body, b"k" | b"D" | [b'D', b';', ..] | b"vKill") || body.starts_with(b"vKill;")
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    /// gdbstub gets nothing that it would end the session for.
    #[test]
    fn no_packet_ends_a_session_but_the_ones_that_mean_to(bodies in prop::collection::vec(body(), 1..8)) {
        let vm = MockVm::new(2);
        let mut stub = attached(&vm);
        let mut out = Vec::new();
        for body in bodies {
            let mut packet = Vec::new();
            encode(&body, &mut packet);
            stub.receive(&packet, &mut out)
                .map_err(|end| TestCaseError::fail(format!("{:?}: {end}", String::from_utf8_lossy(&body))))?;
            if stub.is_running() {
                stub.receive(&[0x03], &mut out).map_err(|end| TestCaseError::fail(end.to_string()))?;
                stub.vm_event(&mut out).map_err(|end| TestCaseError::fail(end.to_string()))?;
            }
            prop_assert!(!stub.is_running());
        }
        out.clear();
        stub.receive(b"$qC#b4", &mut out).map_err(|end| TestCaseError::fail(end.to_string()))?;
        prop_assert!(String::from_utf8_lossy(&out).contains("$QC"));
    }

    /// Bytes without any order. Only leaving and too much talk while the guest runs may end it.
    #[test]
    fn arbitrary_bytes_neither_panic_nor_hang(chunks in prop::collection::vec(any::<Vec<u8>>(), 0..20)) {
        let vm = MockVm::new(1);
        let mut stub = attached(&vm);
        let mut out = Vec::new();
        for chunk in chunks {
            if let Err(end) = stub.receive(&chunk, &mut out) {
                prop_assert_eq!(end, End::Detached);
                return Ok(());
            }
        }
    }
}

/// The same for every short combination of a beginning and words, without leaving it to chance.
#[test]
fn no_short_packet_ends_a_session() {
    const WORDS: [&str; 15] =
        ["", ",", ":", ";", "=", "-1", "0", "1", "4", "p1.", "fffffffffffffffff", "c", "s", "r", "x"];
    let vm = MockVm::new(2);
    let mut stub = attached(&vm);
    let mut out = Vec::new();
    for prefix in PREFIXES {
        for n in 0..WORDS.len().pow(3) {
            let word = |place: u32| WORDS[n / WORDS.len().pow(place) % WORDS.len()];
            let body = format!("{prefix}{}{}{}", word(0), word(1), word(2));
            let mut packet = Vec::new();
            encode(body.as_bytes(), &mut packet);
            packet.push(0x03);
            let result = stub.receive(&packet, &mut out).and_then(|()| stub.vm_event(&mut out));
            assert_eq!(result, Ok(()), "{body}");
            assert!(!stub.is_running(), "{body}");
            out.clear();
        }
    }
}

#[test]
fn the_longest_packet_that_is_announced_is_taken() {
    let vm = MockVm::new(1);
    let mut stub = attached(&vm);
    let mut body = b"qRcmd,".to_vec();
    body.resize(PACKET_SIZE - 4, b'0');
    let mut packet = Vec::new();
    encode(&body, &mut packet);
    assert_eq!(packet.len(), PACKET_SIZE);
    let mut out = Vec::new();
    stub.receive(&packet, &mut out).unwrap();
    assert!(out.ends_with(b"$OK#9a"), "{}", String::from_utf8_lossy(&out));
}

#[test]
fn messages_that_are_not_read_are_dropped_and_counted() {
    let vm = MockVm::new(1);
    let mut stub = running(&vm);
    let mut out = Vec::new();
    let texts = vec!["x".repeat(4096); 100];
    vm.state().messages = guest_debug::Messages { texts, dropped: 7 };
    stub.vm_event(&mut out).unwrap();
    let shown = out.iter().filter(|byte| **byte == b'$').count();
    assert!(out.len() < MAX_BACKLOG + 2 * 8300, "{} bytes", out.len());
    assert!((30..40).contains(&shown), "{shown} of them were shown");
    // What is read makes room, and the next look says what is missing.
    out.clear();
    stub.vm_event(&mut out).unwrap();
    let mut expected = Vec::new();
    let dropped = 7 + 100 - shown;
    show(
        format!("{dropped} messages of breakpoints were dropped: there was no room for them\n").as_bytes(),
        &mut expected,
    );
    assert_eq!(String::from_utf8_lossy(&out), String::from_utf8_lossy(&expected));
}

#[test]
fn what_was_printed_before_a_stop_is_shown_before_it() {
    let vm = MockVm::new(1);
    let mut stub = running(&vm);
    let mut out = Vec::new();
    vm.state().messages.texts = vec!["before\n".to_owned()];
    vm.stop(VmEvent::Stopped(StopEvent { vcpu: guest_debug::VcpuId(0), reason: StopReason::Interrupt }));
    stub.vm_event(&mut out).unwrap();
    let text = String::from_utf8_lossy(&out).into_owned();
    let (message, stop) = text.split_once('#').unwrap();
    assert_eq!(message, format!("$O{}", to_hex(b"before\n")));
    assert!(stop.contains("$T02"), "{stop}");
}
