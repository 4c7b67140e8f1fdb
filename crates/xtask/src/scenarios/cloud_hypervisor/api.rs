//! cloud-hypervisor's REST API, over its unix socket in the host.

use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kvm_agent::{Endpoint, Stream};
use serde_json::Value;

use crate::host::KvmHost;

/// An answer is a sentence, or the configuration of a VM.
const LONGEST: u64 = 1 << 20;

/// One VMM's API.
pub(super) struct Api<'a> {
    host: &'a KvmHost,
    socket: &'a str,
}

impl<'a> Api<'a> {
    pub(super) fn new(host: &'a KvmHost, socket: &'a str) -> Self {
        Self { host, socket }
    }

    /// A call that changes something; answers what the VMM says.
    pub(super) fn put(&self, call: &str, body: Option<&Value>) -> Result<String> {
        self.call("PUT", call, body)
    }

    /// The same, by a VMM that may not be ready for it yet.
    pub(super) fn put_soon(&self, call: &str) -> Result<()> {
        let mut last = self.put(call, None);
        for _ in 0..100 {
            if last.is_ok() {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            last = self.put(call, None);
        }
        last.map(drop)
    }

    /// The VM's state.
    pub(super) fn state(&self) -> Result<String> {
        let info = self.info()?;
        Ok(info.get("state").and_then(Value::as_str).context("vm.info has no state")?.to_owned())
    }

    /// How many vCPUs the VM was booted with.
    pub(super) fn cpus(&self) -> Result<usize> {
        let info = self.info()?;
        let cpus = info.pointer("/config/cpus/boot_vcpus").and_then(Value::as_u64);
        Ok(usize::try_from(cpus.context("vm.info has no boot_vcpus")?)?)
    }

    fn info(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.call("GET", "vm.info", None)?)?)
    }

    /// Begins a call whose answer comes when something else has happened. The call lives as long as what is returned.
    pub(super) fn begin(&self, call: &str, body: &Value) -> Result<Stream> {
        self.send("PUT", call, Some(body))
    }

    fn call(&self, method: &str, call: &str, body: Option<&Value>) -> Result<String> {
        let answer = self.send(method, call, body)?;
        let (status, text) = read(&mut BufReader::new(answer)).with_context(|| format!("the answer to {call}"))?;
        if !(200..300).contains(&status) {
            bail!("cloud-hypervisor answers {call} with {status}: {}", text.trim());
        }
        Ok(text)
    }

    fn send(&self, method: &str, call: &str, body: Option<&Value>) -> Result<Stream> {
        let mut stream = self.host.connect(&Endpoint::Unix(self.socket.to_owned()))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        let mut request = format!("{method} /api/v1/{call} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\n");
        if !body.is_empty() {
            request += &format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len());
        }
        stream.write_all(format!("{request}\r\n{body}").as_bytes())?;
        Ok(stream)
    }
}

/// The status and the body of an answer.
fn read(from: &mut impl BufRead) -> Result<(u16, String)> {
    let mut line = || {
        let mut line = String::new();
        from.take(LONGEST).read_line(&mut line)?;
        anyhow::Ok(line.trim_end().to_owned())
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.with_context(|| format!("begins with {first:?}"))?;
    let mut length = 0;
    loop {
        let header = line()?;
        let Some((name, value)) = header.split_once(':') else { break };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().with_context(|| format!("says {header:?}"))?;
        }
    }
    let mut body = String::new();
    from.take(LONGEST.min(length)).read_to_string(&mut body)?;
    Ok((status, body))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read() {
        let read = |mut text: &[u8]| read(&mut text);
        assert_eq!(read(b"HTTP/1.1 204 \r\nServer: x\r\n\r\n").unwrap(), (204, String::new()));
        let body = b"HTTP/1.1 500 \r\ncontent-length: 5\r\n\r\nerrorand more";
        assert_eq!(read(body).unwrap(), (500, "error".to_owned()));
        assert!(read(b"").is_err());
        assert!(read(b"HTTP/1.1 200 \r\nContent-Length: x\r\n\r\n").is_err());
    }
}
