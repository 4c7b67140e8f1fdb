//! The user's terminal as the console of a guest in the host.

use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::mem;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context as _, Result};
use vmm_sys_util::terminal::Terminal;

use crate::host::HostInput;
use crate::progress::note;

/// Sends what is typed to the guest as long as this lives. On a terminal each key goes at once, Ctrl-C too, and
/// `Ctrl-A x` leaves.
pub struct Console {
    raw: bool,
    left: Arc<AtomicBool>,
}

impl Console {
    /// Whether somebody types.
    pub fn is_terminal() -> bool {
        io::stdin().is_terminal()
    }

    /// Starts to send.
    ///
    /// # Errors
    /// If the terminal does not do as it is told.
    pub fn start(input: HostInput) -> Result<Self> {
        // Not through `io::stdin`: a read there holds its lock, which the terminal's modes need.
        let stdin = File::from(io::stdin().as_fd().try_clone_to_owned().context("cannot duplicate standard input")?);
        let console = Self { raw: Self::is_terminal(), left: Arc::default() };
        if console.raw {
            io::stdin().lock().set_raw_mode().context("cannot set the terminal's mode")?;
        }
        let (escape, left) = (console.raw.then(Escape::default), Arc::clone(&console.left));
        // It ends with its input, with the guest, or with this process.
        thread::spawn(move || {
            if let Err(error) = forward(stdin, escape, &left, |bytes| input.write(bytes)) {
                note(format!("the guest gets no more input: {error:#}"));
            }
        });
        Ok(console)
    }

    /// Whether the user has left.
    pub fn is_left(&self) -> bool {
        self.left.load(Ordering::SeqCst)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if self.raw
            && let Err(error) = io::stdin().lock().set_canon_mode()
        {
            note(format!("the terminal stays in raw mode ({error}); `stty sane` restores it"));
        }
    }
}

/// Sends all input in pieces, and an empty piece at its end.
fn forward(
    mut input: impl Read,
    mut escape: Option<Escape>,
    left: &AtomicBool,
    mut send: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let mut buffer = [0; 4096];
    loop {
        let length = match input.read(&mut buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            other => other?,
        };
        let bytes = match &mut escape {
            Some(escape) => escape.filter(&buffer[..length], left),
            None => buffer[..length].to_vec(),
        };
        if length == 0 || !bytes.is_empty() {
            send(&bytes)?;
        }
        if length == 0 || left.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
}

const CTRL_A: u8 = 1;

/// Finds the user's keys for us among those for the guest, as QEMU and reference-vmm have them.
#[derive(Default)]
struct Escape {
    /// The last key was Ctrl-A.
    pending: bool,
}

impl Escape {
    /// What is for the guest; sets `left` if the user wants to leave. `Ctrl-A Ctrl-A` is one Ctrl-A.
    fn filter(&mut self, keys: &[u8], left: &AtomicBool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(keys.len() + 1);
        for &key in keys {
            match (mem::take(&mut self.pending), key) {
                (false, CTRL_A) => self.pending = true,
                (true, b'x') => left.store(true, Ordering::SeqCst),
                (true, CTRL_A) | (false, _) => bytes.push(key),
                (true, _) => bytes.extend([CTRL_A, key]),
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time, as a terminal does.
    struct Keys(&'static [u8]);

    impl Read for Keys {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let length = self.0.len().min(1);
            buffer[..length].copy_from_slice(&self.0[..length]);
            self.0 = &self.0[length..];
            Ok(length)
        }
    }

    fn sent(input: impl Read, escape: Option<Escape>) -> (Vec<Vec<u8>>, bool) {
        let (mut pieces, left) = (Vec::new(), AtomicBool::new(false));
        let send = |bytes: &[u8]| {
            pieces.push(bytes.to_vec());
            Ok(())
        };
        forward(input, escape, &left, send).unwrap();
        (pieces, left.into_inner())
    }

    #[test]
    fn keys_go_one_by_one_until_the_user_leaves() {
        let (pieces, left) = sent(Keys(b"a\x03\x01\x01\x01nb\x01xc"), Some(Escape::default()));
        assert_eq!((pieces.concat().as_slice(), left), (b"a\x03\x01\x01nb".as_slice(), true));
    }

    #[test]
    fn input_that_nobody_types_goes_as_it_is_and_ends() {
        let (pieces, left) = sent(b"a\x01xb".as_slice(), None);
        assert_eq!((pieces, left), (vec![b"a\x01xb".to_vec(), Vec::new()], false));
    }
}
