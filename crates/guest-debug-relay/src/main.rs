//! `guest-debug-relay`: between gdb, on standard input and output, and a server.

#![forbid(unsafe_code)]

use std::env;
use std::ffi::OsString;
use std::io;
use std::net::TcpStream;
#[cfg(unix)]
use std::os::unix::net::UnixStream;
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use guest_debug_relay::run;

/// How long a command may take to end when gdb has gone.
const GOODBYE: Duration = Duration::from_secs(1);

const USAGE: &str = "\
gdb over a slow connection to a guest-debug server.

  (gdb) target remote | guest-debug-relay -- COMMAND ARGUMENT...
  (gdb) target remote | guest-debug-relay /PATH/OF/A/SOCKET
  (gdb) target remote | guest-debug-relay HOST:PORT

A COMMAND has the server on its standard input and output, such as
ssh HOST nc -N -U /PATH/OF/A/SOCKET. In gdb,
maintenance packet qGuestDebug.Saved
tells how many requests have been answered without asking the server, in hex.
";

/// Where the server is.
#[derive(Debug, PartialEq, Eq)]
enum Server {
    Tcp(String),
    #[cfg(unix)]
    Unix(OsString),
    Command(OsString, Vec<OsString>),
}

impl Server {
    /// From the arguments.
    fn parse(arguments: Vec<OsString>) -> Option<Self> {
        let mut arguments = arguments.into_iter();
        let first = arguments.next()?;
        if first == "--" {
            let program = arguments.next()?;
            return Some(Self::Command(program, arguments.collect()));
        }
        if arguments.next().is_some() {
            return None;
        }
        #[cfg(unix)]
        if first.as_encoded_bytes().contains(&b'/') {
            return Some(Self::Unix(first));
        }
        let address = first.into_string().ok().filter(|address| address.contains(':') && !address.starts_with('-'))?;
        // As gdb spells a port of this machine.
        Some(Self::Tcp(if address.starts_with(':') { format!("localhost{address}") } else { address }))
    }

    fn serve(self) -> io::Result<()> {
        let client = (io::stdin(), io::stdout());
        match self {
            Self::Tcp(address) => {
                let stream = TcpStream::connect(&address)
                    .map_err(|error| io::Error::new(error.kind(), format!("{address}: {error}")))?;
                stream.set_nodelay(true)?;
                run(client, (stream.try_clone()?, stream))
            }
            #[cfg(unix)]
            Self::Unix(path) => {
                let stream = UnixStream::connect(&path)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                run(client, (stream.try_clone()?, stream))
            }
            Self::Command(program, arguments) => {
                let mut command = Command::new(&program);
                command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
                let mut child = command
                    .spawn()
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", program.display())))?;
                let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
                    return Err(io::Error::other("it has no standard input and output"));
                };
                let ended = run(client, (output, input));
                // It has what gdb has sent last, and the end of its input.
                let deadline = Instant::now() + GOODBYE;
                while child.try_wait()?.is_none() && Instant::now() < deadline {
                    thread::sleep(Duration::from_millis(10));
                }
                let _ = child.kill();
                child.wait()?;
                ended
            }
        }
    }
}

fn main() -> ExitCode {
    let Some(server) = Server::parse(env::args_os().skip(1).collect()) else {
        eprint!("{USAGE}");
        return ExitCode::from(2);
    };
    match server.serve() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-debug-relay: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Option<Server> {
        Server::parse(arguments.iter().map(OsString::from).collect())
    }

    #[test]
    fn where_the_server_is() {
        let tcp = |address: &str| Some(Server::Tcp(address.to_owned()));
        assert_eq!(parse(&["laboratory:1234"]), tcp("laboratory:1234"));
        assert_eq!(parse(&[":1234"]), tcp("localhost:1234"));
        assert_eq!(parse(&["/run/vm/gdb.sock"]), Some(Server::Unix("/run/vm/gdb.sock".into())));
        assert_eq!(parse(&["--", "nc", "-U", "s"]), Some(Server::Command("nc".into(), vec!["-U".into(), "s".into()])));
        for wrong in [&[][..], &["--help"], &["--"], &["laboratory"], &["a:1", "b:2"]] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
