use super::*;
use guest_debug::VcpuId;

fn selection() -> Selection {
    Selection { resume: None, current: Tid::of(VcpuId(0)), multiprocess: true, ahead: false, breakpoint_kind: 4 }
}

fn forwarded(body: &str) -> Option<String> {
    match check(body.as_bytes(), &mut selection()) {
        Verdict::Forward(body) | Verdict::Insert(body, ..) => String::from_utf8(body).ok(),
        _ => None,
    }
}

#[test]
fn packets_are_passed_on_in_one_spelling() {
    for (body, expected) in [
        ("M10,2:abcd", "M10,2:abcd"),
        ("p020", "p20"),
        ("Z0,1000,4", "Z0,1000,4"),
        ("z2,fff1,3", "z2,fff1,3"),
        ("c", "vCont;c"),
        ("s", "vCont;s:1;c"),
        ("S05", "vCont;s:1;c"),
        ("vCont;S05:p1.2;c:p1.-1", "vCont;s:2;c"),
        ("vCont;r1000,1010:1", "vCont;r1000,1010:1"),
        ("D;1", "D"),
        ("Tp1.2", "T2"),
        ("qSupported:swbreak+;;multiprocess+;x=1", "qSupported:multiprocess+"),
        ("qXfer:features:read:target.xml:0,fffffffff", "qXfer:features:read:target.xml:0,40000"),
    ] {
        assert_eq!(forwarded(body).as_deref(), Some(expected), "{body}");
    }
}

#[test]
fn a_read_is_cut_to_what_one_answer_holds() {
    for (args, address, length) in [("00FF,10", 0xff, 0x10), ("0,ffffffffffffffff", 0, MAX_READ)] {
        for (kind, encoding) in [("m", Encoding::Hex), ("x", Encoding::Binary)] {
            let body = format!("{kind}{args}");
            let read = Verdict::Read { address, length, encoding };
            assert_eq!(check(body.as_bytes(), &mut selection()), read, "{body}");
        }
    }
}

#[test]
fn conditions_and_commands_are_taken_off_the_packet() {
    let hex = |list: Vec<Vec<u8>>| list.iter().map(|bytes| crate::frame::to_hex(bytes)).collect::<Vec<_>>().join(" ");
    for (extension, conditions, commands) in [
        ("", "", ""),
        (";X3,220127", "220127", ""),
        (";X3,220127X1,27", "220127 27", ""),
        (";X3,220127;X1,27", "220127 27", ""),
        (";cmds:0,X1,27", "", "27"),
        (";X1,27;cmds:1,X2,2227X1,27", "27", "2227 27"),
    ] {
        let body = format!("Z0,1000,4{extension}");
        let verdict = check(body.as_bytes(), &mut selection());
        let Verdict::Insert(body, breakpoint, extension) = verdict else { panic!("{body}: {verdict:?}") };
        assert_eq!((&body[..], breakpoint), (&b"Z0,1000,4"[..], Breakpoint::Software(Gva(0x1000))));
        assert_eq!((hex(extension.conditions).as_str(), hex(extension.commands).as_str()), (conditions, commands));
    }
}

#[test]
fn malformed_packets_are_refused() {
    for body in [
        "m",
        "m1",
        "m1,",
        "m,1",
        "mg,1",
        "m11111111111111111,1",
        "m1,0",
        "x1",
        "x0,0",
        "M1,2:ab",
        "M1,1:a",
        "X1,2:}",
        "p",
        "pzz",
        "P1",
        "P1=a",
        "G123",
        "Hg-1",
        "Hgq",
        "T0",
        "T-1",
        "Z0,1",
        "Z0,1000,2",
        "Z1,1000,4;X1,0",
        "Z1,1000,4;",
        "Z1,1000,4;X1",
        "Z1,1000,4;Xzz,00",
        "Z1,1000,4;Xffffffffffffffff,00",
        "Z1,1000,4;X1,0g",
        "Z1,1000,4;X1,00Y",
        "Z1,1000,4;cmds",
        "Z1,1000,4;cmds:,X1,00",
        "Z1,1000,4;cmds:0",
        "Z1,1000,4;cmds:0,",
        "z1,1000,4;X1,00",
        "c1000",
        "s1000",
        "vCont;",
        "vCont;s",
        "vCont;t:1",
        "vCont;c:zz",
        "vCont;r1:1",
        "qRcmd,zz",
        "qThreadExtraInfo,0",
        "qXfer:features:read:target.xml:0",
    ] {
        assert_eq!(check(body.as_bytes(), &mut selection()), Verdict::Reply(REFUSED.to_vec()), "{body}");
    }
}

#[test]
fn unknown_packets_get_the_empty_answer() {
    for body in ["", "!", "vMustReplyEmpty", "qTStatus", "jThreadsInfo", "Z9,1,4", "QThreadSuffixSupported"] {
        assert_eq!(check(body.as_bytes(), &mut selection()), Verdict::Reply(Vec::new()), "{body}");
    }
}

#[test]
fn kill_is_leaving() {
    assert_eq!(check(b"k", &mut selection()), Verdict::Leave(None));
    assert_eq!(check(b"vKill;1", &mut selection()), Verdict::Leave(Some(b"OK".to_vec())));
}

#[test]
fn selected_threads_are_followed() {
    let mut selection = selection();
    assert_eq!(check(b"Hgp1.2", &mut selection), Verdict::Forward(b"Hg2".to_vec()));
    assert_eq!(check(b"qC", &mut selection), Verdict::Reply(b"QCp1.2".to_vec()));
    assert_eq!(check(b"Hcp1.3", &mut selection), Verdict::Reply(b"OK".to_vec()));
    assert_eq!(check(b"s", &mut selection), Verdict::Forward(b"vCont;s:3".to_vec()));
    assert_eq!(check(b"Hc-1", &mut selection), Verdict::Reply(b"OK".to_vec()));
    assert_eq!(check(b"s", &mut selection), Verdict::Forward(b"vCont;s:2;c".to_vec()));
}
