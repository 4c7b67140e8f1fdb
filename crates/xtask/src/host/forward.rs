//! A local port whose connections end in the host.

use std::net::{Ipv4Addr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use kvm_agent::Endpoint;

use super::client::Client;
use crate::progress::note;

/// Accepts connections on a port of the loopback address until it is dropped.
pub struct Forward {
    port: u16,
    closed: Arc<AtomicBool>,
}

impl Forward {
    pub(super) fn start(client: Client, endpoint: Endpoint) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on the loopback address")?;
        let port = listener.local_addr()?.port();
        let closed = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&closed);
        thread::spawn(move || {
            for accepted in listener.incoming() {
                if seen.load(Ordering::SeqCst) {
                    break;
                }
                let Ok(local) = accepted else { continue };
                let (client, endpoint) = (client.clone(), endpoint.clone());
                thread::spawn(move || {
                    let carried = client.carry(local, &endpoint);
                    if let Err(error) = carried {
                        note(format!("a connection to {endpoint:?} in the host failed: {error:#}"));
                    }
                });
            }
        });
        Ok(Self { port, closed })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.closed.store(true, Ordering::SeqCst);
        // Wakes the thread that accepts.
        let _ = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}
