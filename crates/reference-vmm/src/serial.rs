//! The serial console: a 16550 of vm-superio behind a lock, with an interrupt and a way in for input.

use crate::error::VmError;
use crate::state::SerialState;
use std::fmt;
use std::io::{self, Write};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use vm_superio::serial::{Error, NoEvents};
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where the guest's output goes.
pub type Output = Box<dyn Write + Send>;

/// An edge on the serial port's interrupt line, through KVM's irqfd.
#[derive(Debug)]
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = Serial<Interrupt, NoEvents, Output>;

/// The serial port of a VM.
pub struct SerialConsole {
    uart: Mutex<Uart>,
    /// The guest has taken a byte of its input, or left loopback mode.
    drained: Condvar,
}

impl fmt::Debug for SerialConsole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialConsole").finish_non_exhaustive()
    }
}

impl SerialConsole {
    /// A serial port in its reset state that writes to `output`.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] when there is no eventfd left.
    pub fn new(output: Output) -> Result<Self, VmError> {
        let interrupt = EventFd::new(EFD_NONBLOCK).map_err(VmError::io("eventfd"))?;
        Ok(Self { uart: Mutex::new(Serial::new(Interrupt(interrupt), output)), drained: Condvar::new() })
    }

    /// Its registers and the input that the guest has not read.
    pub fn state(&self) -> SerialState {
        self.lock().state().into()
    }

    /// Goes on where [`SerialConsole::state`] was taken. An interrupt that was pending then is raised again.
    ///
    /// # Errors
    ///
    /// [`VmError::State`] when there is more input than the port holds.
    pub fn set_state(&self, state: &SerialState) -> Result<(), VmError> {
        let mut uart = self.lock();
        let capacity = uart.state().in_buffer.len() + uart.fifo_capacity();
        if state.input.len() > capacity {
            return Err(VmError::State {
                field: "serial.input".to_owned(),
                value: format!("{} bytes", state.input.len()),
                acceptable: format!("at most {capacity}"),
            });
        }
        let trigger = uart.interrupt_evt().0.try_clone().map_err(VmError::io("dup"))?;
        let output = std::mem::replace(uart.writer_mut(), Box::new(io::sink()));
        let restored = Serial::from_state(&state.into(), Interrupt(trigger), NoEvents, output);
        *uart = restored.map_err(|error| VmError::State {
            field: "serial".to_owned(),
            value: error.to_string(),
            acceptable: "the state of a 16550".to_owned(),
        })?;
        Ok(())
    }

    /// The interrupt's eventfd, for KVM_IRQFD.
    ///
    /// # Errors
    ///
    /// [`VmError::Os`] when it can't be duplicated.
    pub fn interrupt(&self) -> Result<EventFd, VmError> {
        self.lock().interrupt_evt().0.try_clone().map_err(VmError::io("dup"))
    }

    /// The guest reads a register. Registers are bytes, a wider read finds zeroes above.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if let (Ok(offset @ 0..8), Some(value)) = (u8::try_from(offset), data.first_mut()) {
            *value = self.lock().read(offset);
            self.drained.notify_all();
        }
    }

    /// The guest writes a register. What a wider write has above the first byte is ignored.
    pub fn write(&self, offset: u64, data: &[u8]) {
        if let (Ok(offset @ 0..8), Some(value)) = (u8::try_from(offset), data.first()) {
            match self.lock().write(offset, *value) {
                Ok(()) => {}
                Err(Error::IOError(error)) => log::debug!("serial output lost: {error}"),
                Err(error) => log::warn!("serial port: {error}"),
            }
            self.drained.notify_all();
        }
    }

    /// Hands input to the guest; blocks while its FIFO is full.
    pub fn input(&self, mut bytes: &[u8]) {
        let mut uart = self.lock();
        while !bytes.is_empty() {
            match uart.enqueue_raw_bytes(bytes) {
                // Nothing is taken in loopback mode, which a driver uses for a moment while it probes.
                Ok(0) | Err(Error::FullFifo) => {
                    let waited = self.drained.wait_timeout(uart, Duration::from_millis(500));
                    uart = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
                Ok(taken) => bytes = bytes.get(taken..).unwrap_or_default(),
                Err(error) => {
                    log::warn!("serial input lost: {error}");
                    return;
                }
            }
        }
    }

    /// Back to the state after power-on; unread input is lost.
    pub fn reset(&self) {
        let mut uart = self.lock();
        // Serial has no reset of its own: every register is written as a guest would.
        let initial = vm_superio::SerialState::default();
        let registers = [
            (LCR, DLAB),
            (DLL, initial.baud_divisor_low),
            (DLH, initial.baud_divisor_high),
            (LCR, initial.line_control),
            (MCR, initial.modem_control),
            (IER, initial.interrupt_enable),
            (SCR, initial.scratch),
        ];
        for (offset, value) in registers {
            // Only the data register writes output, and only the interrupt enable register triggers.
            let _ = uart.write(offset, value);
        }
        while uart.read(LSR) & LSR_DATA_READY != 0 {
            uart.read(DATA);
        }
        // Reading it acknowledges what was pending.
        uart.read(IIR);
        self.drained.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Uart> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// 16550 register offsets.
const DATA: u8 = 0;
const DLL: u8 = 0;
const IER: u8 = 1;
const DLH: u8 = 1;
const IIR: u8 = 2;
const LCR: u8 = 3;
const MCR: u8 = 4;
const LSR: u8 = 5;
const SCR: u8 = 7;
const DLAB: u8 = 0x80;
const LSR_DATA_READY: u8 = 1;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(data);
            Ok(data.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn read(serial: &SerialConsole, offset: u64) -> u8 {
        let mut data = [0xff; 4];
        serial.read(offset, &mut data);
        assert_eq!(data[1..], [0; 3]);
        data[0]
    }

    #[test]
    fn output_input_and_interrupt() {
        let sink = Sink::default();
        let serial = SerialConsole::new(Box::new(sink.clone())).unwrap();
        let interrupt = serial.interrupt().unwrap();
        serial.write(0, b"h");
        serial.write(0, b"i   ");
        assert_eq!(*sink.0.lock().unwrap(), b"hi");
        assert!(interrupt.read().is_err(), "no interrupt was enabled");

        serial.write(u64::from(IER), &[1]);
        serial.input(b"x");
        assert_eq!(interrupt.read().unwrap(), 1);
        assert_eq!(read(&serial, 0), b'x');
        assert_eq!(read(&serial, u64::from(LSR)) & LSR_DATA_READY, 0);
    }

    #[test]
    fn input_longer_than_the_fifo_waits_for_the_guest() {
        let serial = Arc::new(SerialConsole::new(Box::new(io::sink())).unwrap());
        let sent: Vec<u8> = (0..200).collect();
        let (writer, bytes) = (serial.clone(), sent.clone());
        let thread = std::thread::spawn(move || writer.input(&bytes));
        let mut received = Vec::new();
        while received.len() < sent.len() {
            if read(&serial, u64::from(LSR)) & LSR_DATA_READY != 0 {
                received.push(read(&serial, 0));
            }
        }
        thread.join().unwrap();
        assert_eq!(received, sent);
    }

    #[test]
    fn reset_is_the_state_after_power_on() {
        let serial = SerialConsole::new(Box::new(io::sink())).unwrap();
        for (offset, value) in [(LCR, DLAB), (DLL, 7), (DLH, 7), (LCR, 0x1f), (MCR, 0), (SCR, 9), (IER, 3)] {
            serial.write(offset.into(), &[value]);
        }
        serial.input(b"unread");
        serial.write(u64::from(MCR), &[0x10]);
        serial.reset();
        let (state, initial) = (serial.lock().state(), vm_superio::SerialState::default());
        assert_eq!(state, initial);
    }

    #[test]
    fn a_restored_port_goes_on_with_its_input_and_its_output() {
        let serial = SerialConsole::new(Box::new(io::sink())).unwrap();
        serial.write(u64::from(SCR), &[9]);
        serial.input(b"ab");
        let state = serial.state();
        let sink = Sink::default();
        let restored = SerialConsole::new(Box::new(sink.clone())).unwrap();
        restored.set_state(&state).unwrap();
        assert_eq!(restored.state(), state);
        assert_eq!((read(&restored, 0), read(&restored, 0), read(&restored, u64::from(SCR))), (b'a', b'b', 9));
        let too_much = SerialState { input: vec![0; 65], ..state };
        assert!(matches!(restored.set_state(&too_much), Err(VmError::State { .. })));
        restored.write(0, b"out");
        assert_eq!(*sink.0.lock().unwrap(), b"o");
    }

    #[test]
    fn any_access_is_harmless() {
        let serial = SerialConsole::new(Box::new(io::sink())).unwrap();
        for offset in [0, 7, 8, 0xfff, u64::MAX] {
            serial.read(offset, &mut []);
            serial.read(offset, &mut [0; 8]);
            serial.write(offset, &[]);
            serial.write(offset, &[0xff; 8]);
        }
    }
}
