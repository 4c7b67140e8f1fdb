//! Whatever a client sends, the session neither panics nor hangs, and goes on unless the client asked to leave.

use super::*;
use guest_debug_relay::{Outgoing, Relay};
use mock::{MockVm, VIRTUAL};
use proptest::prelude::*;
use std::time::Instant;

#[path = "../../tests/common/mock.rs"]
#[allow(dead_code, reason = "shared with the integration tests")]
mod mock;

/// Beginnings of packets, so that arbitrary bytes get past the first look.
const PREFIXES: [&str; 35] = [
    "",
    "QGuestDebug.Ahead:",
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

/// What a client gets that sends these after gdb's greeting, directly or through a relay, and how many answers were the relay's.
fn conversation(bodies: &[&str], mut relay: Option<Relay>) -> (String, String) {
    let vm = MockVm::new(2);
    let mut stub = attached(&vm);
    let mut got = Vec::new();
    let mut talk = |body: Option<&str>| {
        let (mut sent, mut out, mut back) = (Vec::new(), Outgoing::default(), Vec::new());
        match body {
            // Some clients do not wait for answers.
            Some(bodies) => bodies.split('|').for_each(|body| encode(body.as_bytes(), &mut sent)),
            None => sent.push(0x03),
        }
        match &mut relay {
            Some(relay) => relay.from_client(&sent, Instant::now(), &mut out),
            None => out.server = sent,
        }
        stub.receive(&out.server, &mut back).unwrap();
        if body.is_none() {
            stub.vm_event(&mut back).unwrap();
        }
        match &mut relay {
            Some(relay) => relay.from_server(&back, Instant::now(), &mut out),
            None => out.client = back,
        }
        got.extend(&out.client);
        (String::from_utf8_lossy(&out.client).into_owned(), stub.is_running())
    };
    talk(Some("qSupported:multiprocess+;swbreak+;hwbreak+"));
    talk(Some("QStartNoAckMode"));
    for body in bodies {
        if talk(Some(body)).1 {
            talk(None);
        }
    }
    let (saved, _) = talk(Some("qGuestDebug.Saved"));
    got.truncate(got.len() - saved.len());
    (String::from_utf8_lossy(&got).into_owned(), saved)
}

#[test]
fn gdbs_questions_after_a_step_are_answered_by_the_relay() {
    let step = ["vCont;s:p1.1;c", "mffff800008000004,4", "qXfer:threads:read::0,1000", "mffff800008000000,40", "p0"];
    let next = ["vCont;s:p1.1;c", "mffff800008000008,4", "qXfer:threads:read::0,1000", "mffff800008000000,40", "p0"];
    let bodies = [step, next].concat();
    let (direct, relayed) = (conversation(&bodies, None), conversation(&bodies, Some(Relay::new())));
    assert_eq!(direct.0, relayed.0);
    assert_eq!((direct.1.as_str(), relayed.1.as_str()), ("$#00", "$4#34"), "all four of the second step's");
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    /// Whatever a client does, a relay changes nothing of what it gets.
    #[test]
    fn a_relay_is_not_noticed(bodies in prop::collection::vec(prop::sample::select(vec![
        "vCont;s:p1.1;c", "vCont;s:p1.2", "vCont;c", "vCont;rffff800008000000,ffff800008000010:p1.1;c", "s",
        "mffff800008000000,40", "mffff800008000004,4", "mffff800008000008,4", "mffff800008001004,4", "xffff800008000000,40",
        "m0,40", "mffff80000807ffc0,80", "g", "p0", "p20", "p22", "pffff", "qXfer:threads:read::0,1000", "qXfer:threads:read::10,20",
        "Mffff800008000004,2:abcd", "P0=0102030405060708", "P20=000000080080ffff", "Hgp1.1", "Hgp1.2", "Hg0", "qC", "?",
        "Z1,ffff800008000008,4", "z1,ffff800008000008,4", "Z0,ffff800008000010,4", "qRcmd,7068797320206f6e", "qRcmd,68656c70",
        "qRcmd,70687973206f6e", "qRcmd,70687973206f6666", "nonsense", "",
        "vCont;s:p1.1;c|Mffff800008000004,2:abcd", "vCont;s:p1.1;c|Hgp1.2", "vCont;s:p1.1;c|vCont;s:p1.2", "p0|p20|g",
        "vCont;s:p1.1;c|mffff800008000004,4|g",
    ]), 0..60)) {
        let (direct, relayed) = (conversation(&bodies, None), conversation(&bodies, Some(Relay::new())));
        prop_assert_eq!(direct.0, relayed.0);
    }
}
