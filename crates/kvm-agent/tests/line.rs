//! Connections over one line, from the client's sockets to the server's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use kvm_agent::{
    Capacity, Command, Endpoint, Exit, Kind, LineClient, Request, ServerConfig, decode_exit, encode_hello, read_frame,
    serve, serve_line, write_frame,
};
use proptest::prelude::*;

const PATIENCE: Duration = Duration::from_secs(30);

const CAPACITIES: [Capacity; 2] = [Capacity::SERIAL, Capacity::VIRTIO];

/// A line whose far end connects to `server`.
fn line_to(capacity: Capacity, server: SocketAddr) -> LineClient {
    let (here, there) = UnixStream::pair().unwrap();
    thread::spawn(move || serve_line(there.try_clone().unwrap(), there, capacity, server));
    LineClient::attach(here.try_clone().unwrap(), here, capacity).unwrap()
}

/// A connection that goes over the line.
fn connect(line: &LineClient) -> TcpStream {
    let (ours, carried) = pair();
    line.carry(carried).unwrap();
    ours.set_read_timeout(Some(PATIENCE)).unwrap();
    ours
}

fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    (ours, listener.accept().unwrap().0)
}

/// A server that gives each connection to a thread.
fn server(body: impl Fn(TcpStream) + Clone + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let body = body.clone();
            thread::spawn(move || body(stream.unwrap()));
        }
    });
    address
}

fn echoes(mut stream: TcpStream) {
    let mut buffer = [0; 4096];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        stream.write_all(&buffer[..length]).unwrap();
    }
}

fn ask(stream: &mut TcpStream, text: &[u8]) -> Vec<u8> {
    stream.write_all(text).unwrap();
    let mut answer = vec![0; text.len()];
    stream.read_exact(&mut answer).unwrap();
    answer
}

#[test]
fn the_agents_own_server_answers_over_the_line() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || serve(&listener, ServerConfig::new("secret")));
    let mut stream = connect(&line_to(Capacity::SERIAL, address));
    write_frame(&mut stream, Kind::Hello, &encode_hello("secret")).unwrap();
    let shell = Command { argv: ["sh", "-c", "seq 20000; exit 3"].map(Into::into).to_vec(), ..Command::default() };
    let frame = Request::Exec(shell).encode();
    write_frame(&mut stream, frame.kind, &frame.payload).unwrap();
    let mut output = Vec::new();
    let exit = loop {
        let frame = read_frame(&mut stream).unwrap().expect("the connection ended");
        match frame.kind {
            Kind::Stdout => output.extend(frame.payload),
            Kind::Exit => break decode_exit(&frame.payload).unwrap(),
            other => assert_eq!(other, Kind::Ok),
        }
    };
    assert_eq!((output.len(), exit), (108_894, Exit::Code(3)));
    assert!(output.ends_with(b"\n19999\n20000\n"));
}

#[test]
fn connections_share_the_line_and_end_by_themselves() {
    for capacity in CAPACITIES {
        let line = line_to(capacity, server(echoes));
        let mut streams: Vec<_> = (0..20).map(|_| connect(&line)).collect();
        for round in 0..3_u8 {
            for (n, stream) in (0..).zip(&mut streams) {
                let text = [n, round].repeat(1000);
                assert_eq!(ask(stream, &text), text);
            }
        }
        for mut stream in streams {
            // The end of one direction is passed on, and what is under way still comes.
            stream.write_all(&[9; 3000]).unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest).unwrap();
            assert_eq!(rest, [9; 3000]);
        }
    }
}

#[test]
fn a_socket_that_nobody_reads_holds_up_itself_only() {
    for capacity in CAPACITIES {
        let line = line_to(
            capacity,
            server(|mut stream| {
                let mut first = [0];
                stream.read_exact(&mut first).unwrap();
                match first {
                    // Takes nothing more.
                    [b'd'] => thread::sleep(PATIENCE),
                    // Sends more than fits anywhere.
                    [b't'] => while stream.write_all(&[b'x'; 65536]).is_ok() {},
                    _ => echoes(stream),
                }
            }),
        );
        let (mut deaf, mut talkative) = (connect(&line), connect(&line));
        deaf.write_all(b"d").unwrap();
        deaf.set_write_timeout(Some(Duration::from_millis(200))).unwrap();
        while deaf.write_all(&[b'x'; 65536]).is_ok() {}
        talkative.write_all(b"t").unwrap();
        let mut stream = connect(&line);
        stream.write_all(b"e").unwrap();
        for _ in 0..100 {
            assert_eq!(ask(&mut stream, b"are you there?"), b"are you there?");
        }
    }
}

#[test]
fn a_channel_goes_to_any_socket_of_the_far_end() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let line = line_to(Capacity::VIRTIO, gone);
    let open = |port: u16| {
        let (ours, carried) = pair();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        line.connect(carried, Endpoint::Tcp(port)).map(|()| ours)
    };
    // Who speaks first is the socket's own matter.
    let greets = server(|mut stream| {
        stream.write_all(b"welcome").unwrap();
        echoes(stream);
    });
    for _ in 0..20 {
        let mut stream = open(greets.port()).unwrap();
        let mut welcome = [0; 7];
        stream.read_exact(&mut welcome).unwrap();
        assert_eq!(&welcome, b"welcome");
        let text = vec![5; 3 << 20];
        let mut writer = stream.try_clone().unwrap();
        let sent = text.clone();
        let writing = thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        writing.join().unwrap();
        assert!(answer == text, "{} bytes of {}", answer.len(), text.len());
    }
    let error = open(gone.port()).unwrap_err();
    assert!(error.to_string().contains("refused"), "{error}");
    assert!(open(greets.port()).is_ok(), "one that is refused is its own matter");
}

#[test]
fn a_server_that_is_gone_ends_the_connection() {
    let gone = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap();
    let line = line_to(Capacity::VIRTIO, gone);
    for _ in 0..2 {
        let mut stream = connect(&line);
        assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    }
}

#[test]
fn the_lines_end_is_the_end_of_its_connections() {
    let (here, there) = UnixStream::pair().unwrap();
    let agent = there.try_clone().unwrap();
    let address = server(echoes);
    let served = thread::spawn(move || serve_line(agent.try_clone().unwrap(), agent, Capacity::VIRTIO, address));
    let line = LineClient::attach(here.try_clone().unwrap(), here, Capacity::VIRTIO).unwrap();
    let mut stream = connect(&line);
    assert_eq!(ask(&mut stream, b"hello"), b"hello");
    there.shutdown(Shutdown::Both).unwrap();
    assert!(!matches!(stream.read(&mut [0]), Ok(1..)));
    assert!(served.join().unwrap().is_err());
    let (mut ours, carried) = pair();
    assert!(line.carry(carried).is_err() || !matches!(ours.read(&mut [0]), Ok(1..)));
}

#[test]
fn what_a_machine_prints_before_is_no_greeting() {
    let (here, mut there) = UnixStream::pair().unwrap();
    let address = server(echoes);
    there.write_all(b"kvm-agent: li\0 booting\r\nkvm-kvm-agent: lin").unwrap();
    thread::spawn(move || serve_line(there.try_clone().unwrap(), there, Capacity::SERIAL, address));
    let line = LineClient::attach(here.try_clone().unwrap(), here, Capacity::SERIAL).unwrap();
    assert_eq!(ask(&mut connect(&line), b"hello"), b"hello");

    assert!(LineClient::attach(&b"no greeting"[..], Vec::new(), Capacity::SERIAL).is_err());
    assert!(LineClient::attach(std::io::repeat(b'k'), Vec::new(), Capacity::SERIAL).is_err());
}

/// Bytes of packets that are right, wrong, or out of place.
fn packets() -> impl Strategy<Value = Vec<u8>> {
    let right = (0..9_u8, 0..3_u8, 0..600_u16).prop_map(|(kind, channel, length)| {
        let length = match kind {
            1 | 2 | 7 => length,
            3 => 4,
            _ => 0,
        };
        let [low, high] = length.to_le_bytes();
        [&[kind, channel, 0, low, high][..], &vec![1; length.into()]].concat()
    });
    prop::collection::vec(right, 0..40).prop_map(|packets| packets.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn whatever_comes_ends_the_line_at_most(bytes in prop_oneof![packets(), prop::collection::vec(any::<u8>(), 0..2000)]) {
        let address = server(echoes);
        // The end of `bytes` is the line's.
        prop_assert!(serve_line(&bytes[..], std::io::sink(), Capacity::SERIAL, address).is_err());
        let greeted = [&b"kvm-agent: line 2\n"[..], &bytes].concat();
        let line = LineClient::attach(std::io::Cursor::new(greeted), std::io::sink(), Capacity::SERIAL).unwrap();
        let (mut ours, carried) = pair();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        // It may have come in front of the end.
        if line.carry(carried).is_ok() {
            let mut rest = Vec::new();
            let _ = ours.read_to_end(&mut rest);
        }
    }
}
