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
//! | `quit` | `vm` | `text` |
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
use crate::progress::note;

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
    /// Over TCP instead of a unix socket.
    pub tcp: bool,
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
    Quit {
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
    /// Requests that VMMs are busy with.
    pending: AtomicU32,
}

impl<'a> Fleet<'a> {
    /// A fleet of one.
    pub(crate) fn new(mover: &'a dyn Mover, first: Arc<dyn RunningGuest>) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        // Short: a socket's path has 107 bytes at most.
        let socket = std::env::temp_dir().join(format!("fleet-{}-{number}", std::process::id()));
        Self {
            mover,
            vms: Mutex::new(vec![Some(first)]),
            socket,
            closed: AtomicBool::new(false),
            pending: AtomicU32::new(0),
        }
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
            if self.pending.load(Ordering::Acquire) > 0 {
                self.kill_all();
            }
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
            self.pending.fetch_add(1, Ordering::AcqRel);
            scope.spawn(move || {
                let answer = self.answer(&stream);
                // In front of the answer: it may be the script's last one, and the VMMs have done their part.
                self.pending.fetch_sub(1, Ordering::AcqRel);
                // A script that has gone needs no answer.
                let _ = answer.map(|answer| writeln!(&stream, "{answer}"));
            });
        }
    }

    /// Nobody waits for an answer any more; a VMM that does not give it would keep us.
    fn kill_all(&self) {
        let guests: Vec<_> = self.lock().iter_mut().filter_map(Option::take).collect();
        for guest in guests {
            if let Err(error) = guest.kill() {
                note(format!("a VM can't be killed: {error:#}"));
            }
        }
    }

    /// The answer to the request that comes.
    fn answer(&self, stream: &UnixStream) -> Result<Value> {
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(serde_json::from_str(&line)
            .with_context(|| format!("bad request {line:?}"))
            .and_then(|wish| self.grant(wish))
            .unwrap_or_else(|error| json!({ "error": format!("{error:#}") })))
    }

    fn grant(&self, wish: Wish) -> Result<Value> {
        Ok(match wish {
            Wish::Snapshot { vm, name } => json!({ "text": self.mover.snapshot(&*self.vm(vm)?, &name)? }),
            Wish::Restore { name, landing } => self.landed(self.mover.restore(&name, &landing)?),
            Wish::Receive { landing } => self.landed(self.mover.receive(&landing)?),
            Wish::Send { vm, to } => json!({ "text": self.mover.send(&*self.vm(vm)?, &*self.vm(to)?)? }),
            Wish::Status { vm } => json!({ "text": self.mover.status(&*self.vm(vm)?)? }),
            Wish::Quit { vm } => json!({ "text": self.mover.quit(&*self.vm(vm)?)? }),
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Condvar;

    /// A guest whose VMM answers nothing while it lives.
    #[derive(Default)]
    struct Silent {
        killed: Mutex<bool>,
        changed: Condvar,
    }

    impl RunningGuest for Silent {
        fn address(&self) -> String {
            String::new()
        }

        fn output(&self) -> String {
            "nothing".to_owned()
        }

        fn ended(&mut self) -> Option<String> {
            None
        }

        fn kill(&self) -> Result<()> {
            *self.killed.lock().unwrap() = true;
            self.changed.notify_all();
            Ok(())
        }
    }

    struct Waits(Arc<Silent>);

    impl Mover for Waits {
        fn status(&self, _: &dyn RunningGuest) -> Result<String> {
            let killed = self.0.killed.lock().unwrap();
            drop(self.0.changed.wait_while(killed, |killed| !*killed).unwrap());
            bail!("it was killed")
        }

        fn snapshot(&self, _: &dyn RunningGuest, name: &str) -> Result<String> {
            Ok(format!("saved as {name}"))
        }

        fn restore(&self, _: &str, _: &Landing) -> Result<Arc<dyn RunningGuest>> {
            bail!("not here")
        }

        fn receive(&self, _: &Landing) -> Result<Arc<dyn RunningGuest>> {
            bail!("not here")
        }

        fn send(&self, _: &dyn RunningGuest, _: &dyn RunningGuest) -> Result<String> {
            bail!("not here")
        }

        fn quit(&self, _: &dyn RunningGuest) -> Result<String> {
            bail!("not here")
        }

        fn shell(&self, _: &str) -> Result<(u8, String)> {
            bail!("not here")
        }

        fn fetch(&self, _: &str, _: &Path) -> Result<()> {
            bail!("not here")
        }

        fn tidy(&self) {}
    }

    fn request(socket: &Path, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(socket).unwrap();
        writeln!(stream, "{line}").unwrap();
        stream
    }

    #[test]
    fn requests_are_answered() {
        let guest = Arc::new(Silent::default());
        let mover = Waits(guest.clone());
        Fleet::new(&mover, guest.clone())
            .serve(|socket| {
                let answer = |line| {
                    let mut answer = String::new();
                    BufReader::new(request(socket, line)).read_line(&mut answer)?;
                    Ok::<Value, anyhow::Error>(serde_json::from_str(&answer)?)
                };
                let saved = answer(r#"{"op": "snapshot", "vm": 0, "name": "a"}"#)?;
                assert_eq!(saved, json!({ "text": "saved as a" }));
                for (line, error) in [
                    (r#"{"op": "snapshot", "vm": 1, "name": "a"}"#, "there is no VM 1"),
                    (r#"{"op": "restore", "name": "a"}"#, "not here"),
                    ("nonsense", "bad request"),
                ] {
                    let answer = answer(line)?;
                    assert!(answer["error"].as_str().is_some_and(|text| text.contains(error)), "{line}: {answer}");
                }
                Ok(())
            })
            .unwrap();
        assert!(!*guest.killed.lock().unwrap(), "it goes on when its script has ended");
    }

    #[test]
    fn a_vmm_that_does_not_answer_is_killed_when_the_script_has_ended() {
        let guest = Arc::new(Silent::default());
        let mover = Waits(guest.clone());
        let fleet = Fleet::new(&mover, guest.clone());
        fleet
            .serve(|socket| {
                drop(request(socket, r#"{"op": "status", "vm": 0}"#));
                while fleet.pending.load(Ordering::Acquire) == 0 {
                    thread::yield_now();
                }
                Ok(())
            })
            .unwrap();
        assert!(*guest.killed.lock().unwrap());
    }
}
