//! The VMs of a scenario that moves one, and the socket through which its script asks for more.
//!
//! A script connects to the unix socket in `FLEET`, sends one line of JSON, and gets one line back: the answer's members,
//! or `error` with a text. VMs have numbers; the one that the scenario begins with is 0.
//!
//! | `op` | other members | answer |
//! |---|---|---|
//! | `snapshot` | `vm`, `name` | `text` |
//! | `restore` | `name`, [`Landing`] | `vm`, `address` |
//! | `receive` | [`Landing`] | `vm`, `address`: it waits for a VM |
//! | `send` | `vm`, `to` | `text`, when `vm` has moved to `to` |
//! | `status` | `vm` | `text` |
//! | `kill` | `vm` | nothing, when it is dead |
//! | `ended` | `vm`, `seconds` | `ended` (text, or null when it has not by then), `output` |
//! | `shell` | `command` | `code`, `output`, of a shell in the directory with the snapshots |
//! | `fetch` | `name` | `path`, of the snapshot on this machine |

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Scope};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;
use serde_json::{Value, json};

use super::vmm::{Mover, RunningGuest};
use crate::paths;

/// How a VM is to arrive.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Landing {
    /// With a gdb server.
    pub gdb: bool,
    /// Executes nothing before a debugger says so.
    pub hold: bool,
    /// The most watchpoints that it may use.
    pub watchpoints: Option<u32>,
    /// The most hardware breakpoints that it may use.
    pub breakpoints: Option<u32>,
    /// By a VMM that knows nothing of debug sessions.
    pub plain: bool,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum Wish {
    Snapshot {
        vm: usize,
        name: String,
    },
    Restore {
        name: String,
        #[serde(flatten)]
        landing: Landing,
    },
    Receive {
        #[serde(flatten)]
        landing: Landing,
    },
    Send {
        vm: usize,
        to: usize,
    },
    Status {
        vm: usize,
    },
    Kill {
        vm: usize,
    },
    Ended {
        vm: usize,
        seconds: f64,
    },
    Shell {
        command: String,
    },
    Fetch {
        name: String,
    },
}

/// The VMs of one scenario.
pub(crate) struct Fleet<'a> {
    mover: &'a dyn Mover,
    /// `None` for one that was killed.
    vms: Mutex<Vec<Option<Arc<dyn RunningGuest>>>>,
    socket: PathBuf,
    closed: AtomicBool,
}

impl<'a> Fleet<'a> {
    /// A fleet of one.
    pub(crate) fn new(mover: &'a dyn Mover, first: Arc<dyn RunningGuest>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: a socket's path has 107 bytes at most.
        let socket = std::env::temp_dir().join(format!("fleet-{}-{number}", std::process::id()));
        Self { mover, vms: Mutex::new(vec![Some(first)]), socket, closed: AtomicBool::new(false) }
    }

    /// Serves the script while `body` runs it; `body` gets the socket's path.
    ///
    /// # Errors
    /// If there is no socket to be had, and those of `body`.
    pub(crate) fn serve<T>(&self, body: impl FnOnce(&Path) -> Result<T>) -> Result<T> {
        let listener =
            UnixListener::bind(&self.socket).with_context(|| format!("binding {}", self.socket.display()))?;
        let result = thread::scope(|scope| {
            scope.spawn(|| self.accept(scope, &listener));
            let result = body(&self.socket);
            self.closed.store(true, Ordering::Release);
            // Nobody else wakes the thread that accepts.
            drop(UnixStream::connect(&self.socket));
            result
        });
        let _ = fs::remove_file(&self.socket);
        self.mover.tidy();
        result
    }

    /// The VM that came last and was not killed.
    ///
    /// # Errors
    /// If there is none.
    pub(crate) fn last(&self) -> Result<Arc<dyn RunningGuest>> {
        self.lock().iter().rev().find_map(Clone::clone).context("no VM is left")
    }

    fn accept<'scope, 'env>(&'env self, scope: &'scope Scope<'scope, 'env>, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.closed.load(Ordering::Acquire) {
                return;
            }
            scope.spawn(move || {
                // A script that has gone needs no answer.
                let _ = self.answer(&stream);
            });
        }
    }

    fn answer(&self, mut stream: &UnixStream) -> Result<()> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        let answer = serde_json::from_str(&line)
            .with_context(|| format!("bad request {line:?}"))
            .and_then(|wish| self.grant(wish))
            .unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        Ok(writeln!(stream, "{answer}")?)
    }

    fn grant(&self, wish: Wish) -> Result<Value> {
        Ok(match wish {
            Wish::Snapshot { vm, name } => json!({ "text": self.mover.snapshot(&*self.vm(vm)?, &name)? }),
            Wish::Restore { name, landing } => self.landed(self.mover.restore(&name, &landing)?),
            Wish::Receive { landing } => self.landed(self.mover.receive(&landing)?),
            Wish::Send { vm, to } => json!({ "text": self.mover.send(&*self.vm(vm)?, &*self.vm(to)?)? }),
            Wish::Status { vm } => json!({ "text": self.mover.status(&*self.vm(vm)?)? }),
            Wish::Kill { vm } => {
                let guest = self.lock().get_mut(vm).and_then(Option::take);
                guest.with_context(|| format!("there is no VM {vm}"))?.kill()?;
                json!({})
            }
            Wish::Ended { vm, seconds } => {
                let guest = self.vm(vm)?;
                let ended = guest.ended_within(Duration::try_from_secs_f64(seconds)?);
                json!({ "ended": ended, "output": guest.output() })
            }
            Wish::Shell { command } => {
                let (code, output) = self.mover.shell(&command)?;
                json!({ "code": code, "output": output })
            }
            Wish::Fetch { name } => {
                let path = paths::root().join("target/scenarios").join(format!("fetched-{name}"));
                self.mover.fetch(&name, &path)?;
                json!({ "path": path })
            }
        })
    }

    fn landed(&self, guest: Arc<dyn RunningGuest>) -> Value {
        let address = guest.address();
        let mut vms = self.lock();
        vms.push(Some(guest));
        json!({ "vm": vms.len() - 1, "address": address })
    }

    fn vm(&self, number: usize) -> Result<Arc<dyn RunningGuest>> {
        match self.lock().get(number) {
            Some(Some(guest)) => Ok(guest.clone()),
            Some(None) => bail!("VM {number} was killed"),
            None => bail!("there is no VM {number}"),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Arc<dyn RunningGuest>>>> {
        self.vms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
