use super::*;
use crate::packet::encode_notification;

/// With a run of four, as gdbstub shortens it.
const STOP: &str = "T05thread:p01.02;1f:0040000a0080f* ;20:583412080080f* ;";
const PC: &str = "mffff800008123458,4";

/// A relay whose server is played by the test.
struct Ends {
    relay: Relay,
    now: Instant,
}

fn packet(body: &str) -> Vec<u8> {
    let mut out = Vec::new();
    encode(body.as_bytes(), &mut out);
    out
}

/// Bodies of the packets in a stream.
fn bodies(stream: &[u8]) -> Vec<String> {
    let body = |piece: Piece| match piece {
        Piece::Packet(packet) => String::from_utf8_lossy(packet.body()).into_owned(),
        Piece::Between(bytes) => format!("{bytes:?}"),
    };
    Splitter::default().push(stream).into_iter().map(body).collect()
}

impl Ends {
    /// Past the greeting, with a server that answers ahead.
    fn greeted() -> Self {
        let mut ends = Self { relay: Relay::new(), now: Instant::now() };
        assert_eq!(ends.client("qSupported:swbreak+").1, ["qSupported:swbreak+;guest-debug.ahead+"]);
        assert_eq!(ends.server("PacketSize=1000;guest-debug.ahead+;x+"), ["PacketSize=1000;x+"]);
        ends.client("QStartNoAckMode");
        ends.server("OK");
        ends
    }

    /// Stopped, and the client has asked something.
    fn stopped(asked: &[&str]) -> Self {
        let mut ends = Self::greeted();
        ends.client("vCont;s:p1.2");
        assert_eq!(ends.server(STOP), [STOP]);
        for request in asked {
            assert_eq!(ends.client(request).1, [*request]);
            assert_eq!(ends.server("00"), ["00"]);
        }
        ends
    }

    /// The same after one more step, in front of which these are answered.
    fn ahead(requests: &[&str]) -> Self {
        let mut ends = Self::stopped(requests);
        let (_, sent) = ends.client("vCont;s:p1.2");
        assert_eq!(sent.len(), 2, "{sent:?}");
        assert_eq!(ends.server("OK"), [""; 0]);
        for (n, request) in requests.iter().enumerate() {
            ends.answered(request, &format!("{n:02x}"));
        }
        assert_eq!(ends.server(STOP), [STOP]);
        ends
    }

    fn answered(&mut self, request: &str, answer: &str) {
        let mut stream = Vec::new();
        encode_notification(format!("{}{request}", ahead::ANSWER).as_bytes(), &mut stream);
        stream.extend(packet(answer));
        let mut out = Outgoing::default();
        self.relay.from_server(&stream, self.now, &mut out);
        assert_eq!(out, Outgoing::default());
    }

    /// What the client and the server get of a packet of the client.
    fn client(&mut self, body: &str) -> (Vec<String>, Vec<String>) {
        let mut out = Outgoing::default();
        self.relay.from_client(&packet(body), self.now, &mut out);
        (bodies(&out.client), bodies(&out.server))
    }

    /// What the client gets of a packet of the server.
    fn server(&mut self, body: &str) -> Vec<String> {
        let mut out = Outgoing::default();
        self.relay.from_server(&packet(body), self.now, &mut out);
        assert!(out.server.is_empty());
        bodies(&out.client)
    }
}

fn answer(text: &str) -> (Vec<String>, Vec<String>) {
    (vec![text.to_owned()], Vec::new())
}

fn passed_on(text: &str) -> (Vec<String>, Vec<String>) {
    (Vec::new(), vec![text.to_owned()])
}

#[test]
fn what_was_asked_is_wished_for_and_answered_here() {
    let mut ends = Ends::stopped(&[PC, "g", "qXfer:threads:read::0,1000"]);
    let (_, sent) = ends.client("vCont;s:p1.2");
    let wishes = "QGuestDebug.Ahead:m@20,4;g;qXfer:threads:read::0,1000";
    assert_eq!(sent, [wishes, "vCont;s:p1.2"]);
    // The answer to that is nobody's business.
    assert!(ends.server("OK").is_empty());
    ends.answered("g", "0011");
    assert_eq!(ends.server(STOP), [STOP]);
    assert_eq!(ends.client("g"), answer("0011"));
    assert_eq!(ends.client("g"), answer("0011"));
    assert_eq!(ends.client("p1"), passed_on("p1"));
    assert_eq!(ends.server("33"), ["33"]);
    assert_eq!(ends.client("qGuestDebug.Saved"), answer("2"));
    // Nothing new to wish for but the register.
    assert_eq!(ends.client("vCont;c").1, ["QGuestDebug.Ahead:g;p1;m@20,4;qXfer:threads:read::0,1000", "vCont;c"]);
    ends.server("OK");
    ends.server(STOP);
    assert_eq!(ends.client("vCont;c").1, ["vCont;c"], "the server knows already");
}

#[test]
fn what_is_not_asked_any_longer_is_not_wished_for() {
    let mut ends = Ends::ahead(&["p7"]);
    for _ in 1..STOPS {
        ends.client("vCont;c");
        ends.server(STOP);
    }
    assert_eq!(ends.client("vCont;c").1, ["QGuestDebug.Ahead:", "vCont;c"]);
}

#[test]
fn an_answer_does_not_outlive_what_may_change_it() {
    for change in ["M1000,1:00", "P1=00", "G00", "qRcmd,00", "Hgp1.1", "X0,0:", "unheard of"] {
        let mut ends = Ends::ahead(&[PC]);
        assert_eq!(ends.client(change), passed_on(change));
        ends.server("OK");
        assert_eq!(ends.client(PC), passed_on(PC), "{change}");
    }
    for harmless in ["Z1,1000,4", "z1,1000,4", "Hgp1.2", "p99"] {
        let mut ends = Ends::ahead(&[PC]);
        ends.client(harmless);
        ends.server("OK");
        assert_eq!(ends.client(PC), answer("00"), "{harmless}");
    }
    for resume in ["vCont;c", "c", "s", "C05", "S05"] {
        let mut ends = Ends::ahead(&[PC]);
        ends.client(resume);
        ends.server(STOP);
        assert_eq!(ends.client(PC), passed_on(PC), "{resume}");
    }
}

#[test]
fn an_answer_is_good_for_a_moment() {
    let mut ends = Ends::ahead(&[PC]);
    ends.now += FRESH - Duration::from_millis(1);
    assert_eq!(ends.client(PC), answer("00"));
    ends.now += Duration::from_millis(1);
    assert_eq!(ends.client(PC), passed_on(PC));
}

#[test]
fn answers_come_in_the_order_of_requests() {
    let mut ends = Ends::ahead(&[PC]);
    assert_eq!(ends.client("p99"), passed_on("p99"));
    // The server's answer to the first one is on its way.
    assert_eq!(ends.client(PC), passed_on(PC));
    assert_eq!(ends.server("99"), ["99"]);
    assert_eq!(ends.server("77"), ["77"]);
    assert_eq!(ends.client(PC), answer("00"));
}

#[test]
fn text_for_the_user_is_no_answer() {
    let mut ends = Ends::ahead(&[PC]);
    ends.client("p99");
    assert_eq!(ends.server("O6869"), ["O6869"]);
    assert_eq!(ends.client(PC), passed_on(PC), "p99 has no answer yet");
}

#[test]
fn a_server_that_knows_nothing_of_it_is_told_nothing() {
    let mut ends = Ends { relay: Relay::new(), now: Instant::now() };
    ends.client("qSupported:swbreak+");
    assert_eq!(ends.server("PacketSize=1000"), ["PacketSize=1000"]);
    ends.client("QStartNoAckMode");
    ends.server("OK");
    for _ in 0..3 {
        assert_eq!(ends.client("vCont;c"), passed_on("vCont;c"));
        assert_eq!(ends.server(STOP), [STOP]);
        assert_eq!(ends.client("g"), passed_on("g"));
        assert_eq!(ends.server("00"), ["00"]);
    }
    let mut notification = Vec::new();
    encode_notification(b"guest-debug.ahead:g", &mut notification);
    let mut out = Outgoing::default();
    ends.relay.from_server(&notification, ends.now, &mut out);
    assert_eq!(out.client, notification, "whatever that is");
}

#[test]
fn a_server_that_refuses_is_left_alone() {
    let mut ends = Ends::ahead(&["g"]);
    ends.client("p1");
    ends.server("00");
    assert_eq!(ends.client("vCont;c").1.len(), 2);
    assert!(ends.server("E16").is_empty());
    // It may go on with what it was told before.
    ends.answered("g", "11");
    assert_eq!(ends.server(STOP), [STOP]);
    ends.client("p2");
    ends.server("00");
    assert_eq!(ends.client("vCont;c"), passed_on("vCont;c"));
}

#[test]
fn what_is_sent_behind_a_resume_spoils_the_answers_in_front_of_its_stop() {
    for behind in ["M1000,1:00", "Hgp1.1", "vCont;c"] {
        let mut ends = Ends::ahead(&[PC]);
        ends.client("vCont;c");
        assert_eq!(ends.client(behind), passed_on(behind), "and no wishes");
        ends.answered(PC, "00");
        ends.server(STOP);
        ends.server("OK");
        assert_eq!(ends.client(PC), passed_on(PC), "{behind}");
        ends.server("00");
        // From the next one on all is well.
        ends.client("vCont;c");
        ends.answered(PC, "11");
        ends.server(STOP);
        assert_eq!(ends.client(PC), answer("11"), "{behind}");
    }
}

#[test]
fn a_packet_that_was_sent_twice_confuses_nobody() {
    let mut ends = Ends { relay: Relay::new(), now: Instant::now() };
    ends.client("qSupported:swbreak+");
    ends.server("guest-debug.ahead+");
    // The server has asked for it again, and answers once.
    ends.client("?");
    ends.client("?");
    ends.server("T05");
    ends.client("QStartNoAckMode");
    ends.server("OK");
    ends.client("QStartNoAckMode");
    ends.server("OK");
    ends.client("vCont;c");
    ends.server(STOP);
    ends.client("g");
    ends.server("00");
    assert_eq!(ends.client("vCont;c").1, ["QGuestDebug.Ahead:g", "vCont;c"]);
    assert!(ends.server("OK").is_empty());
    assert_eq!(ends.server(STOP), [STOP]);
}

#[test]
fn what_is_kept_is_bounded() {
    let mut ends = Ends::stopped(&[]);
    ends.client("vCont;c");
    ends.answered(&format!("m1000,{}4", "0".repeat(100)), "00");
    ends.answered("g", &"0".repeat(MAX_ANSWER));
    for n in 0..2 * MAX_WISHES {
        ends.answered(&format!("p{n:x}"), "00");
    }
    assert_eq!(ends.relay.answers.len(), MAX_WISHES);
    assert!(ends.relay.answers.keys().all(|request| request.first() == Some(&b'p')));
    ends.server(STOP);
    // Answers for a client that takes none pile up no further than this.
    let mut out = Outgoing { client: vec![0; MAX_UNSENT], ..Outgoing::default() };
    ends.relay.from_client(&packet("p1"), ends.now, &mut out);
    assert_eq!((out.client.len(), bodies(&out.server)), (MAX_UNSENT, vec!["p1".to_owned()]));
}

#[test]
fn acknowledgements_and_interrupts_are_passed_on() {
    let mut relay = Relay::new();
    let mut out = Outgoing::default();
    relay.from_client(b"+\x03-", Instant::now(), &mut out);
    relay.from_server(b"+", Instant::now(), &mut out);
    assert_eq!((&out.server[..], &out.client[..]), (&b"+\x03-"[..], &b"+"[..]));
}

#[test]
fn before_acknowledgements_are_off_nothing_is_answered_here() {
    let mut ends = Ends { relay: Relay::new(), now: Instant::now() };
    ends.client("qSupported:swbreak+");
    ends.server("guest-debug.ahead+");
    ends.client("vCont;c");
    ends.server(STOP);
    ends.client("g");
    ends.server("00");
    assert_eq!(ends.client("vCont;c"), passed_on("vCont;c"));
    assert_eq!(ends.client("qGuestDebug.Saved"), passed_on("qGuestDebug.Saved"));
}

#[test]
fn registers_and_thread_of_a_stop() {
    let stop = stop_of(format!("{STOP}21:c5030000;swbreak:;").as_bytes()).unwrap();
    assert_eq!(stop.thread, b"p1.2");
    assert_eq!(stop.registers, [(0x1f, 0xffff_8000_0a00_4000), (0x20, 0xffff_8000_0812_3458)]);
    assert!(stop_of(b"W00").is_none());
    assert!(stop_of(b"T0").is_none());
}
