//! The user's terminal as the guest's serial console.

use crate::control::{Control, Request};
use crate::serial::SerialConsole;
use std::fs::File;
use std::io::{self, IsTerminal, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::thread;
use vmm_sys_util::terminal::Terminal;

const CTRL_A: u8 = 1;

/// Raw mode of a terminal, as long as this lives: keys reach the guest one by one, Ctrl-C too.
#[derive(Debug)]
pub struct RawMode(());

impl RawMode {
    /// Puts the terminal on stdin in raw mode; `None` when stdin is no terminal.
    pub fn enter() -> Option<Self> {
        if !io::stdin().is_terminal() {
            return None;
        }
        match io::stdin().lock().set_raw_mode() {
            Ok(()) => Some(Self(())),
            Err(error) => {
                log::warn!("the terminal stays in line mode: {error}");
                None
            }
        }
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        if let Err(error) = io::stdin().lock().set_canon_mode() {
            log::warn!("the terminal stays in raw mode: {error}; `stty sane` restores it");
        }
    }
}

/// The process's input, without the lock of [`io::stdin`]: a read that blocks would keep [`RawMode`] from its end.
///
/// # Errors
///
/// Whatever keeps the descriptor from being duplicated.
pub fn stdin() -> io::Result<File> {
    Ok(File::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Passes what is read from `input` to the guest, on a thread of its own that ends with the input or the process.
///
/// With `escape`, Ctrl-A x ends the VM, and Ctrl-A Ctrl-A is one Ctrl-A.
pub fn forward(mut input: impl Read + Send + 'static, serial: Arc<SerialConsole>, control: Arc<Control>, escape: bool) {
    let body = move || {
        let (mut filter, mut buffer) = (Escape::default(), [0; 64]);
        loop {
            let read = match input.read(&mut buffer) {
                Ok(0) => return,
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return log::warn!("no more input: {error}"),
            };
            if !escape {
                serial.input(read);
                continue;
            }
            let (bytes, quit) = filter.pass(read);
            serial.input(&bytes);
            if quit {
                return control.request(Request::Quit);
            }
        }
    };
    if let Err(error) = thread::Builder::new().name("console".to_owned()).spawn(body) {
        log::warn!("the guest gets no input: {error}");
    }
}

/// Takes the user's commands to the VMM out of the input.
#[derive(Debug, Default)]
struct Escape {
    pending: bool,
}

impl Escape {
    /// What goes to the guest, and whether the VM shall end.
    fn pass(&mut self, input: &[u8]) -> (Vec<u8>, bool) {
        let mut passed = Vec::with_capacity(input.len());
        for byte in input {
            match (std::mem::take(&mut self.pending), *byte) {
                (false, CTRL_A) => self.pending = true,
                (true, b'x' | b'X') => return (passed, true),
                (true, CTRL_A) | (false, _) => passed.push(*byte),
                (true, other) => passed.extend([CTRL_A, other]),
            }
        }
        (passed, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escapes() {
        let mut escape = Escape::default();
        assert_eq!(escape.pass(b"ab\x03"), (b"ab\x03".to_vec(), false));
        assert_eq!(escape.pass(b"a\x01"), (b"a".to_vec(), false));
        assert_eq!(escape.pass(b"\x01b"), (b"\x01b".to_vec(), false));
        assert_eq!(escape.pass(b"\x01y"), (b"\x01y".to_vec(), false));
        assert_eq!(escape.pass(b"c\x01xd"), (b"c".to_vec(), true));
    }

    #[test]
    fn input_ends_the_vm_only_where_escapes_are_on() {
        let serial = Arc::new(SerialConsole::new(Box::new(io::sink())).unwrap());
        let control = Arc::new(Control::new(1));
        forward(&b"\x01x"[..], serial.clone(), control.clone(), true);
        assert!(matches!(control.wait_request(), Request::Quit));
        serial.reset();
        forward(&b"\x01x"[..], serial.clone(), control, false);
        let mut data = [0];
        while data != *b"x" {
            serial.read(0, &mut data);
        }
    }
}
