//! The event loop: one client at a time, and nothing to do while the guest runs.

use crate::address::ListenAddress;
use crate::connection::{Connection, Gone};
use crate::description::GdbArch;
use crate::error::ServerError;
use crate::listener::Listener;
use crate::stub::{End, Stub};
use crate::vm::{DebugVm, VmError};
use std::collections::VecDeque;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, RawFd};
use std::time::{Duration, Instant};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

const SHUTDOWN: u64 = 0;
const LISTENER: u64 = 1;
const CLIENT: u64 = 2;
const VM: u64 = 3;

/// How long the listener rests when connections can't be accepted, for want of file descriptors say.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a client that are served before anybody looks whether it takes its answers: a few packets.
const AT_ONCE: usize = 64;

/// What becomes of the VM when a client goes without a word: killed, crashed, its network gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VanishPolicy {
    /// As if it had detached: everything is removed, the guest runs.
    #[default]
    Detach,
    /// The guest stays as it is, stopped or running, its breakpoints armed, until the next client attaches.
    Keep,
}

/// Settings of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// What a vanished client leaves behind.
    pub vanish: VanishPolicy,
    /// How long a client may leave an answer unread before it counts as vanished.
    pub write_timeout: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self { vanish: VanishPolicy::Detach, write_timeout: Duration::from_secs(30) }
    }
}

/// A gdb server for one VM.
///
/// It serves clients one after the other, without end. While one is attached, others are refused: their
/// connections are closed at once. A client attaches with its first packet.
#[derive(Debug)]
pub struct GdbServer {
    listener: Listener,
    options: ServerOptions,
}

impl GdbServer {
    /// Opens the address. Clients can connect from here on, and are served when [`run`](Self::run) is called.
    ///
    /// A unix socket gets mode 0600. A socket file that nobody listens on is replaced.
    ///
    /// # Errors
    ///
    /// [`ServerError::SocketInUse`] and [`ServerError::NotASocket`] for what must not be replaced, and whatever
    /// the system answers.
    pub fn bind(address: &ListenAddress) -> Result<Self, ServerError> {
        Self::bind_with(address, ServerOptions::default())
    }

    /// The same, with other settings.
    ///
    /// # Errors
    ///
    /// As [`bind`](Self::bind).
    pub fn bind_with(address: &ListenAddress, options: ServerOptions) -> Result<Self, ServerError> {
        Ok(Self { listener: Listener::bind(address)?, options })
    }

    /// The address; for TCP port 0 with the port that was found.
    pub fn local_address(&self) -> ListenAddress {
        self.listener.address()
    }

    /// Serves clients until `shutdown` becomes readable, then detaches, and removes the socket file. Blocks.
    ///
    /// # Errors
    ///
    /// [`ServerError::Events`] if waiting for events fails. What a client or the VM does is never an error here.
    pub fn run<A: GdbArch, V: DebugVm<A>>(self, vm: V, shutdown: EventFd) -> Result<(), ServerError> {
        let epoll = Epoll::new().map_err(events("epoll_create1"))?;
        let mut running =
            Loop { architecture: PhantomData, epoll, options: &self.options, listener: &self.listener, vm: &vm };
        running.add(shutdown.as_raw_fd(), EventSet::IN, SHUTDOWN)?;
        running.add(self.listener.as_raw_fd(), EventSet::IN, LISTENER)?;
        // Edges, because the fd may stay readable for as long as nobody asks for the event behind it.
        running.add(vm.event().as_raw_fd(), EventSet::IN | EventSet::EDGE_TRIGGERED, VM)?;
        running.serve()
    }
}

/// A client, and its session once it has sent a packet.
struct Client<'v, A: GdbArch, V: DebugVm<A>> {
    connection: Connection,
    stub: Option<Stub<'v, A, V>>,
    /// What the connection is registered for.
    interest: EventSet,
    /// What has come and waits for the client to take its answers.
    unread: VecDeque<u8>,
}

impl<A: GdbArch, V: DebugVm<A>> Client<'_, A, V> {
    /// Serves what has come, as long as there is room for answers: a few bytes may ask for many.
    fn serve(&mut self) -> Result<(), Farewell> {
        while let Some(stub) = &mut self.stub
            && self.connection.accepts_input()
            && !self.unread.is_empty()
        {
            let bytes: Vec<u8> = self.unread.drain(..self.unread.len().min(AT_ONCE)).collect();
            stub.receive(&bytes, self.connection.outgoing()).map_err(Farewell::Session)?;
        }
        Ok(())
    }

    /// Sends what the client takes, and serves what it has asked meanwhile.
    fn answer(&mut self) -> Result<(), Farewell> {
        loop {
            self.connection.send().map_err(Farewell::Connection)?;
            if !self.connection.accepts_input() || self.unread.is_empty() {
                return Ok(());
            }
            self.serve()?;
        }
    }
}

struct Loop<'s, A, V> {
    /// What `V` is a VM of.
    architecture: PhantomData<A>,
    epoll: Epoll,
    options: &'s ServerOptions,
    listener: &'s Listener,
    vm: &'s V,
}

/// Why a client is not served any longer.
enum Farewell {
    Session(End),
    Connection(Gone),
}

impl<'s, A: GdbArch, V: DebugVm<A>> Loop<'s, A, V> {
    fn serve(&mut self) -> Result<(), ServerError> {
        let mut client: Option<Client<'s, A, V>> = None;
        let mut accept_again: Option<Instant> = None;
        let mut ready = [EpollEvent::default(); 8];
        loop {
            let deadline = client.as_ref().and_then(|c| c.connection.deadline(self.options.write_timeout));
            let count = match self.epoll.wait(timeout(deadline, accept_again), &mut ready) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(events("epoll_wait")(error)),
            };
            let now = Instant::now();
            if accept_again.is_some_and(|at| at <= now) {
                accept_again = None;
                self.add(self.listener.as_raw_fd(), EventSet::IN, LISTENER)?;
            }
            if deadline.is_some_and(|at| at <= now) {
                self.close(client.take(), &Farewell::Connection(Gone::Stalled));
            }
            for event in ready.iter().take(count) {
                let served = match (event.data(), &mut client) {
                    (SHUTDOWN, _) => {
                        if let Some(client) = &mut client {
                            // The end of the guest may be the reason, and gdb would like to know.
                            let _ = Self::vm_ready(client);
                        }
                        self.close(client.take(), &Farewell::Session(End::Detached));
                        return Ok(());
                    }
                    (LISTENER, _) => {
                        if self.accept(&mut client)?.is_err() {
                            self.remove(self.listener.as_raw_fd());
                            accept_again = Some(now + ACCEPT_PAUSE);
                        }
                        Ok(())
                    }
                    (CLIENT, Some(client)) => self.client_ready(client, event.event_set()),
                    (VM, Some(client)) => Self::vm_ready(client),
                    _ => Ok(()),
                };
                // At once: the next event may be a new client's.
                if let Err(reason) = served {
                    self.close(client.take(), &reason);
                }
            }
            match client.as_mut().map(Client::answer) {
                Some(Err(reason)) => self.close(client.take(), &reason),
                Some(Ok(())) => client.as_mut().map_or(Ok(()), |client| self.update_interest(client))?,
                None => {}
            }
        }
    }

    /// Takes a connection, or refuses it if a client is attached. The inner error means that accepting must rest.
    fn accept(&self, client: &mut Option<Client<'s, A, V>>) -> Result<Result<(), ()>, ServerError> {
        match self.listener.accept() {
            Ok(None) => {}
            Ok(Some(_)) if client.as_ref().is_some_and(|client| client.stub.is_some()) => {
                log::warn!("refused a second gdb client");
            }
            Ok(Some(stream)) => {
                // One that has said nothing yet must not keep others out.
                if let Some(silent) = client.take() {
                    self.remove(silent.connection.as_raw_fd());
                }
                let connection = Connection::new(stream);
                self.add(connection.as_raw_fd(), EventSet::IN, CLIENT)?;
                *client = Some(Client { connection, stub: None, interest: EventSet::IN, unread: VecDeque::new() });
            }
            Err(error) => {
                log::warn!("can't accept a gdb client: {error}");
                return Ok(Err(()));
            }
        }
        Ok(Ok(()))
    }

    fn client_ready(&self, client: &mut Client<'s, A, V>, set: EventSet) -> Result<(), Farewell> {
        if !client.interest.contains(EventSet::IN) {
            // Not reading, because the client does not either. If it is gone there is no point in waiting.
            let gone = set.intersects(EventSet::HANG_UP | EventSet::ERROR);
            return if gone { Err(Farewell::Connection(Gone::Closed)) } else { Ok(()) };
        }
        let Some(bytes) = client.connection.receive().map_err(Farewell::Connection)? else {
            return Ok(());
        };
        client.unread.extend(bytes);
        if client.stub.is_none() {
            self.vm.attach().map_err(|error| Farewell::Session(cannot_attach(error)))?;
            // From here on the client must be detached, so the stub is stored or the session undone.
            let stub = Stub::new(self.vm).inspect_err(|_| self.detach()).map_err(Farewell::Session)?;
            log::info!("gdb client attached");
            client.stub = Some(stub);
        }
        client.serve()
    }

    fn vm_ready(client: &mut Client<'s, A, V>) -> Result<(), Farewell> {
        match &mut client.stub {
            Some(stub) => stub.vm_event(client.connection.outgoing()).map_err(Farewell::Session),
            None => Ok(()),
        }
    }

    /// Ends a session: the VM first, so that whoever reads the answer finds it done.
    fn close(&self, client: Option<Client<'s, A, V>>, reason: &Farewell) {
        let Some(mut client) = client else { return };
        let (text, vanished) = match reason {
            Farewell::Session(end) => (end.to_string(), false),
            Farewell::Connection(gone) => (gone.to_string(), true),
        };
        if client.stub.is_some() {
            log::info!("gdb client left: {text}");
            if !(vanished && self.options.vanish == VanishPolicy::Keep) {
                self.detach();
            }
        } else if vanished {
            log::debug!("connection closed: {text}");
        } else {
            log::warn!("a gdb client could not be served: {text}");
        }
        let _ = client.connection.send();
        self.remove(client.connection.as_raw_fd());
    }

    fn detach(&self) {
        match self.vm.detach() {
            Ok(()) | Err(VmError::Gone) => {}
            Err(error) => log::error!("detaching from the guest failed: {error}"),
        }
    }

    fn update_interest(&self, client: &mut Client<'s, A, V>) -> Result<(), ServerError> {
        let mut wanted = EventSet::empty();
        if client.connection.accepts_input() {
            wanted |= EventSet::IN;
        }
        if client.connection.has_output() {
            wanted |= EventSet::OUT;
        }
        if wanted != client.interest {
            client.interest = wanted;
            let event = EpollEvent::new(wanted, CLIENT);
            self.epoll
                .ctl(ControlOperation::Modify, client.connection.as_raw_fd(), event)
                .map_err(events("epoll_ctl"))?;
        }
        Ok(())
    }

    fn add(&self, fd: RawFd, set: EventSet, token: u64) -> Result<(), ServerError> {
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(set, token)).map_err(events("epoll_ctl"))
    }

    fn remove(&self, fd: RawFd) {
        let _ = self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default());
    }
}

fn cannot_attach(error: VmError) -> End {
    match error {
        VmError::Gone => End::VmGone,
        error => End::Protocol(format!("the VM can't be attached: {error}")),
    }
}

/// Milliseconds until the nearer of two points in time, -1 for never; rounded up, so as not to come too early.
fn timeout(first: Option<Instant>, second: Option<Instant>) -> i32 {
    let Some(nearest) = first.into_iter().chain(second).min() else { return -1 };
    let left = nearest.saturating_duration_since(Instant::now());
    i32::try_from(left.as_millis()).unwrap_or(i32::MAX).saturating_add(1)
}

fn events(operation: &'static str) -> impl Fn(io::Error) -> ServerError {
    move |source| ServerError::Events { operation, source }
}
