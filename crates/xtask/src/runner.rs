//! `cargo xtask runner`, `env` and `host`: single programs on the KVM host.

use std::env;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::arch::Arch;
use crate::context::Context;
use crate::host::{HostCommand, KvmHost, command};

/// Variables that a program on the host gets from here, by the beginning of their names.
const PASSED_ON: [&str; 4] = ["RUST_BACKTRACE", "RUST_LOG", "PROPTEST_", "GUEST_DEBUG_"];

/// A variable of this kind names a file of this machine: the file is uploaded, and the program sees its path there.
pub const FILE_VARIABLE: &str = "GUEST_DEBUG_FILE_";

/// Options of `runner`.
#[derive(Args, Debug)]
pub struct RunnerOptions {
    /// The program
    program: PathBuf,
    /// Its arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

/// Options of `host`.
#[derive(Args, Debug)]
pub struct HostOptions {
    /// Program and arguments, found inside the host
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// Runs a program of this machine on the host: on the one of the surrounding `cargo xtask test`, or on one of its own.
pub fn runner(context: &Context, options: RunnerOptions) -> Result<ExitCode> {
    // On an arm64 machine cargo's runner is for its own programs, too, this one included.
    if same_file(&options.program, &env::current_exe()?) {
        let error = Command::new(&options.program).args(&options.arguments).exec();
        return Err(error).with_context(|| format!("cannot start {}", options.program.display()));
    }
    let host = KvmHost::start(context)?;
    let program = host.upload_program(&options.program)?;
    let mut argv = vec![program];
    argv.extend(options.arguments);
    let exit = host.run(&HostCommand { argv, env: passed_on(&host)?, stdin: false })?;
    Ok(ExitCode::from(exit.shell_code()))
}

/// Runs a command that is there already.
pub fn host(context: &Context, options: HostOptions) -> Result<ExitCode> {
    let host = KvmHost::start(context)?;
    let exit = host.run(&command(options.command))?;
    Ok(ExitCode::from(exit.shell_code()))
}

/// Prints exports for a shell.
pub fn env(context: &Context) -> Result<ExitCode> {
    context.prepare(&[])?;
    for (name, value) in context.toolchain()?.env() {
        println!("export {name}={}", quote(&value));
    }
    let (name, value) = runner_variable()?;
    println!("export {name}={}", quote(OsStr::new(&value)));
    Ok(ExitCode::SUCCESS)
}

/// The variable that makes this program cargo's runner.
pub fn runner_variable() -> Result<(String, String)> {
    let executable = env::current_exe()?;
    let path = executable.to_str().context("the path of this program is no text")?;
    // cargo splits the value at blanks.
    if path.contains(char::is_whitespace) {
        bail!("{path} contains a blank, which cargo's runner cannot have");
    }
    Ok((
        format!("CARGO_TARGET_{}_RUNNER", Arch::Arm64.target().replace('-', "_").to_uppercase()),
        format!("{path} runner"),
    ))
}

fn passed_on(host: &KvmHost) -> Result<Vec<(String, String)>> {
    env::vars()
        .filter(|(name, _)| PASSED_ON.iter().any(|start| name.starts_with(start)))
        .map(|(name, value)| {
            let value = if name.starts_with(FILE_VARIABLE) {
                host.upload(Path::new(&value)).with_context(|| format!("the file of {name}"))?
            } else {
                value
            };
            Ok((name, value))
        })
        .collect()
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

fn quote(value: &OsStr) -> String {
    format!("'{}'", value.to_string_lossy().replace('\'', "'\\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_reads_what_was_quoted() {
        let value = "it's a $HOME `x` \"y\"";
        let script = format!("printf %s {}", quote(OsStr::new(value)));
        let output = Command::new("sh").args(["-c", &script]).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), value);
    }
}
