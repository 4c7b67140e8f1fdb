//! The server on this machine, spoken to over a real socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a helper that fails is a test that fails")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use kvm_agent::{
    Command, Endpoint, Exit, Frame, Kind, Request, ServerConfig, Signal, decode_exit, encode_hello, encode_signal,
    read_frame, serve, write_frame,
};

fn server() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || serve(&listener, ServerConfig::new("secret")));
    address
}

fn open(address: SocketAddr, request: &Request) -> TcpStream {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write_frame(&mut stream, Kind::Hello, &encode_hello("secret")).unwrap();
    assert_eq!(next(&mut stream).kind, Kind::Ok);
    let frame = request.encode();
    write_frame(&mut stream, frame.kind, &frame.payload).unwrap();
    stream
}

fn next(stream: &mut TcpStream) -> Frame {
    read_frame(stream).unwrap().expect("connection closed")
}

fn shell(script: &str) -> Request {
    Request::Exec(Command {
        argv: vec!["sh".into(), "-c".into(), script.into()],
        env: vec![("FLAVOUR".into(), "salt".into())],
        stdin: false,
    })
}

/// Output of both kinds, and the exit.
fn collect(stream: &mut TcpStream) -> (String, String, Exit) {
    let (mut out, mut err) = (Vec::new(), Vec::new());
    loop {
        let frame = next(stream);
        match frame.kind {
            Kind::Ok => {}
            Kind::Stdout => out.extend(frame.payload),
            Kind::Stderr => err.extend(frame.payload),
            Kind::Exit => {
                let text = |bytes| String::from_utf8(bytes).unwrap();
                return (text(out), text(err), decode_exit(&frame.payload).unwrap());
            }
            other => panic!("unexpected {other:?}: {}", String::from_utf8_lossy(&frame.payload)),
        }
    }
}

fn scratch(name: &str) -> PathBuf {
    let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&directory);
    fs::create_dir_all(&directory).unwrap();
    directory
}

#[test]
fn output_environment_and_exit_code_come_back() {
    let mut stream = open(server(), &shell("echo $FLAVOUR; echo bad >&2; exit 7"));
    assert_eq!(collect(&mut stream), ("salt\n".into(), "bad\n".into(), Exit::Code(7)));
}

#[test]
fn a_command_that_does_not_exist_is_an_error_with_its_name() {
    let request = Request::Exec(Command { argv: vec!["/no/such/program".into()], ..Command::default() });
    let frame = next(&mut open(server(), &request));
    assert_eq!(frame.kind, Kind::Error);
    assert!(String::from_utf8(frame.payload).unwrap().contains("/no/such/program"));
}

#[test]
fn a_large_output_is_complete() {
    let mut stream = open(server(), &shell("head -c 5000000 /dev/zero"));
    assert_eq!(collect(&mut stream).0.len(), 5_000_000);
}

#[test]
fn input_reaches_the_command_and_ends() {
    let cat = Command { argv: vec!["cat".into()], stdin: true, ..Command::default() };
    let mut stream = open(server(), &Request::Exec(cat));
    for piece in [b"one ".as_slice(), b"two", b""] {
        write_frame(&mut stream, Kind::Stdin, piece).unwrap();
    }
    assert_eq!(collect(&mut stream), ("one two".into(), String::new(), Exit::Code(0)));
    // What a command has none of, or does not read, does it no harm.
    let mut stream = open(server(), &shell("cat; sleep 0.2; echo end"));
    write_frame(&mut stream, Kind::Stdin, b"lost").unwrap();
    assert_eq!(collect(&mut stream), ("end\n".into(), String::new(), Exit::Code(0)));
    let deaf = Command { argv: vec!["true".into()], stdin: true, ..Command::default() };
    let mut stream = open(server(), &Request::Exec(deaf));
    let _ = write_frame(&mut stream, Kind::Stdin, &[b'x'; 200_000]);
    assert_eq!(collect(&mut stream).2, Exit::Code(0));
}

#[test]
fn signals_reach_the_command() {
    let mut stream = open(server(), &shell("trap 'echo caught; exit 3' TERM; echo up; while :; do sleep 0.05; done"));
    while next(&mut stream).kind != Kind::Stdout {}
    write_frame(&mut stream, Kind::Signal, &encode_signal(Signal::Term)).unwrap();
    // The shell may say on stderr that its child was signalled too.
    let (out, _, exit) = collect(&mut stream);
    assert_eq!((out.as_str(), exit), ("caught\n", Exit::Code(3)));
    let mut stream = open(server(), &shell("sleep 100"));
    write_frame(&mut stream, Kind::Signal, &encode_signal(Signal::Kill)).unwrap();
    assert_eq!(collect(&mut stream).2, Exit::Signal(9));
}

#[test]
fn closing_the_connection_kills_the_command_and_its_children() {
    let directory = scratch("closing");
    let pids = directory.join("pids");
    let script = format!("sleep 100 & echo $$ $! > {0}.part; mv {0}.part {0}; wait", pids.display());
    let stream = open(server(), &shell(&script));
    let deadline = Instant::now() + Duration::from_secs(20);
    while !pids.exists() {
        assert!(Instant::now() < deadline);
        thread::sleep(Duration::from_millis(10));
    }
    drop(stream);
    for pid in fs::read_to_string(&pids).unwrap().split_whitespace() {
        // A zombie that nobody has waited for yet is dead as well.
        let alive = || fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z"));
        while alive() {
            assert!(Instant::now() < deadline, "process {pid} is still there");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn files_go_in_and_out() {
    let path = scratch("files").join("sub/dir/file");
    let name = path.to_str().unwrap().to_owned();
    let address = server();
    assert_eq!(next(&mut open(address, &Request::Stat { path: name.clone() })).kind, Kind::Error);

    let content: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
    let mut stream = open(address, &Request::Put { path: name.clone(), mode: 0o751 });
    for piece in content.chunks(kvm_agent::CHUNK) {
        write_frame(&mut stream, Kind::Data, piece).unwrap();
    }
    write_frame(&mut stream, Kind::End, &[]).unwrap();
    assert_eq!(next(&mut stream).kind, Kind::Ok);
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o751);

    let size = next(&mut open(address, &Request::Stat { path: name.clone() }));
    assert_eq!(size.payload, (content.len() as u64).to_le_bytes());
    let mut stream = open(address, &Request::Get { path: name });
    let mut read = Vec::new();
    loop {
        let frame = next(&mut stream);
        match frame.kind {
            Kind::Data => read.extend(frame.payload),
            Kind::End => break,
            other => panic!("unexpected {other:?}"),
        }
    }
    assert!(read == content);
}

#[test]
fn an_upload_that_breaks_off_leaves_no_file() {
    let path = scratch("broken").join("file");
    let mut stream = open(server(), &Request::Put { path: path.to_str().unwrap().into(), mode: 0o644 });
    write_frame(&mut stream, Kind::Data, b"half").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut rest = Vec::new();
    stream.read_to_end(&mut rest).unwrap();
    assert!(!path.exists());
}

#[test]
fn a_file_comes_from_a_piece_of_a_disk() {
    let directory = scratch("import");
    let (disk, path) = (directory.join("disk"), directory.join("sub/file"));
    fs::write(&disk, b"0123456789").unwrap();
    let request = |length| Request::Import {
        path: path.to_str().unwrap().into(),
        mode: 0o700,
        device: disk.to_str().unwrap().into(),
        offset: 2,
        length,
    };
    let address = server();
    assert_eq!(next(&mut open(address, &request(9))).kind, Kind::Error, "the disk is too short");
    assert_eq!(fs::read_dir(directory.join("sub")).unwrap().count(), 0);
    assert_eq!(next(&mut open(address, &request(5))).kind, Kind::Ok);
    assert_eq!(fs::read(&path).unwrap(), b"23456");
}

#[test]
fn a_connection_carries_a_unix_socket() {
    let path = scratch("connect").join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut text = String::new();
        peer.read_to_string(&mut text).unwrap();
        peer.write_all(text.to_uppercase().as_bytes()).unwrap();
    });
    let mut stream = open(server(), &Request::Connect(Endpoint::Unix(path.to_str().unwrap().into())));
    assert_eq!(next(&mut stream).kind, Kind::Ok);
    stream.write_all(b"hello").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!(text, "HELLO");
}

#[test]
fn a_wrong_token_gets_nothing() {
    let mut stream = TcpStream::connect(server()).unwrap();
    write_frame(&mut stream, Kind::Hello, &encode_hello("guess")).unwrap();
    assert_eq!(next(&mut stream).kind, Kind::Error);
    let frame = shell("echo no").encode();
    let _ = write_frame(&mut stream, frame.kind, &frame.payload);
    assert!(!matches!(read_frame(&mut stream), Ok(Some(_))));
}
