//! What the guest reaches outside RAM and the in-kernel GIC.

use crate::layout::SERIAL;
use crate::serial::SerialConsole;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// At most one line about unknown addresses in this time.
const LOG_INTERVAL: Duration = Duration::from_secs(1);

/// The devices by address. What nobody answers reads as zero and ignores writes.
#[derive(Debug)]
pub struct MmioBus {
    serial: Arc<SerialConsole>,
    unknown: AtomicU64,
    last_line: Mutex<Option<Instant>>,
}

impl MmioBus {
    /// A bus with the serial port on it.
    pub fn new(serial: Arc<SerialConsole>) -> Self {
        Self { serial, unknown: AtomicU64::new(0), last_line: Mutex::new(None) }
    }

    /// The guest reads `data.len()` bytes.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match SERIAL.offset(address) {
            Some(offset) => self.serial.read(offset, data),
            None => {
                data.fill(0);
                self.report("read", address, data.len());
            }
        }
    }

    /// The guest writes `data`.
    pub fn write(&self, address: u64, data: &[u8]) {
        match SERIAL.offset(address) {
            Some(offset) => self.serial.write(offset, data),
            None => self.report("write", address, data.len()),
        }
    }

    fn report(&self, access: &str, address: u64, length: usize) {
        let count = self.unknown.fetch_add(1, Ordering::Relaxed) + 1;
        let mut last_line = self.last_line.lock().unwrap_or_else(PoisonError::into_inner);
        if last_line.is_none_or(|last| last.elapsed() >= LOG_INTERVAL) {
            *last_line = Some(Instant::now());
            log::warn!("no device for a {access} of {length} bytes at {address:#x} ({count} such accesses so far)");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_addresses_read_as_zero() {
        let bus = MmioBus::new(Arc::new(SerialConsole::new(Box::new(std::io::sink())).unwrap()));
        for address in [0, SERIAL.base - 1, SERIAL.base + SERIAL.size, u64::MAX] {
            let mut data = [0xaa; 8];
            bus.read(address, &mut data);
            assert_eq!(data, [0; 8]);
            bus.write(address, &data);
        }
        assert_eq!(bus.unknown.load(Ordering::Relaxed), 8);
        let mut scratch = [0; 1];
        bus.write(SERIAL.base + 7, &[0x5a]);
        bus.read(SERIAL.base + 7, &mut scratch);
        assert_eq!(scratch, [0x5a]);
    }
}
