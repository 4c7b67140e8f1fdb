//! `reference-vmm`, see `--help`.

use clap::Parser;
use reference_vmm::cli::{Cli, Command};
use reference_vmm::run;
use std::process::ExitCode;

fn main() -> ExitCode {
    let Cli { verbose, command: Command::Run(args) } = Cli::parse();
    if log::set_logger(&Logger).is_ok() {
        log::set_max_level(if verbose { log::LevelFilter::Debug } else { log::LevelFilter::Info });
    }
    let (config, gdb) = args.into_parts();
    match run::run(&config, gdb.as_ref()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("reference-vmm: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Messages go to stderr; stdout is the guest's console.
struct Logger;

impl log::Log for Logger {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        eprintln!("reference-vmm: {}", record.args());
    }

    fn flush(&self) {}
}
