//! `kvm-agent PORT TOKEN_FILE`: serves `cargo xtask` inside the emulated KVM host.

use std::error::Error;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;

use kvm_agent::{ServerConfig, serve};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("kvm-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(port), Some(token_file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: kvm-agent PORT TOKEN_FILE".into());
    };
    let token = fs::read_to_string(&token_file).map_err(|error| format!("{token_file}: {error}"))?;
    // All addresses: the host's network has no other machine on it than the one that started it.
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port.parse()?))?;
    println!("kvm-agent: ready");
    serve(&listener, ServerConfig { token: token.trim().to_owned(), commands_die_with_agent: false })?;
    Ok(())
}
