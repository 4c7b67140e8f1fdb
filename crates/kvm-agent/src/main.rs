//! `kvm-agent DEVICE TOKEN_FILE`: serves `cargo xtask` inside the emulated KVM host, over a virtio-serial port or a serial port. A
//! terminal has to be in raw mode.

use std::error::Error;
use std::fs::{self, File};
use std::io::IsTerminal;
use std::net::{Ipv4Addr, TcpListener};
use std::process::ExitCode;
use std::thread;

use kvm_agent::{Capacity, HeldVm, ServerConfig, serve, serve_line};

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
    let (Some(path), Some(token_file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: kvm-agent DEVICE TOKEN_FILE".into());
    };
    let _vm = HeldVm::new().map_err(|error| format!("/dev/kvm: {error}"))?;
    let token = fs::read_to_string(&token_file).map_err(|error| format!("{token_file}: {error}"))?;
    let device = File::options().read(true).write(true).open(&path).map_err(|error| format!("{path}: {error}"))?;
    let capacity = if device.is_terminal() { Capacity::SERIAL } else { Capacity::VIRTIO };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    // An idle machine that is emulated may take its time for ours many times as fast.
    thread::spawn(move || serve(&listener, ServerConfig { hello_timeout: None, ..ServerConfig::new(token.trim()) }));
    println!("kvm-agent: ready");
    Ok(serve_line(device.try_clone()?, device, capacity, address)?)
}
