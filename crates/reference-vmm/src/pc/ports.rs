//! Devices by port.

use super::layout::{KEYBOARD, KEYBOARD_RESET, PM_CONTROL, PM_EVENT, SERIAL, SLEEP_ENABLE};
use crate::control::Request;
use crate::serial::SerialConsole;
use std::sync::Arc;

/// What reads as there being nothing.
const NOTHING: u8 = 0xff;

/// The serial port, and what ends the machine.
#[derive(Debug)]
pub(crate) struct Ports(Arc<SerialConsole>);

impl Ports {
    /// Ports with the serial port among them.
    pub(crate) fn new(serial: Arc<SerialConsole>) -> Self {
        Self(serial)
    }

    /// The guest reads `data.len()` bytes.
    pub(crate) fn read(&self, port: u16, data: &mut [u8]) {
        match (serial(port), port) {
            (Some(offset), _) => self.0.read(offset, data),
            // Its buffers are empty: a command may be sent.
            (None, KEYBOARD) => data.fill(0),
            // No event ever.
            (None, PM_EVENT..PM_CONTROL) => data.fill(0),
            // SCI_EN: the machine is in ACPI mode.
            (None, PM_CONTROL) => data.iter_mut().zip([1, 0]).for_each(|(to, from)| *to = from),
            (None, _) => data.fill(NOTHING),
        }
    }

    /// The guest writes `data`. Answers what it asks for with that.
    pub(crate) fn write(&self, port: u16, data: &[u8]) -> Option<Request> {
        match (serial(port), port, data) {
            (Some(offset), ..) => self.0.write(offset, data),
            (None, KEYBOARD, [KEYBOARD_RESET]) => return Some(Request::Reset),
            (None, PM_CONTROL, [low, high]) if u16::from_le_bytes([*low, *high]) & SLEEP_ENABLE != 0 => {
                return Some(Request::PowerOff);
            }
            // A PC's kernel looks for many devices.
            (None, ..) => {}
        }
        None
    }
}

/// Number of the serial port's register.
fn serial(port: u16) -> Option<u64> {
    port.checked_sub(SERIAL).filter(|offset| *offset < 8).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_is_what_it_should_be() {
        let ports = Ports(Arc::new(SerialConsole::new(Box::new(std::io::sink())).unwrap()));
        let read = |port| {
            let mut data = [0x5a; 1];
            ports.read(port, &mut data);
            data[0]
        };
        assert!(ports.write(SERIAL + 7, &[0x33]).is_none());
        assert_eq!((read(SERIAL + 7), read(KEYBOARD), read(SERIAL + 8), read(0)), (0x33, 0, 0xff, 0xff));
        assert!(matches!(ports.write(KEYBOARD, &[KEYBOARD_RESET]), Some(Request::Reset)));
        assert!(ports.write(KEYBOARD, &[0xd1]).is_none());
        assert!(matches!(ports.write(PM_CONTROL, &[1, 0x20]), Some(Request::PowerOff)));
        assert!(ports.write(PM_CONTROL, &[0, 0]).is_none() && ports.write(PM_CONTROL, &[0x20]).is_none());
        assert_eq!((read(PM_EVENT), read(PM_CONTROL)), (0, 1));
    }
}
