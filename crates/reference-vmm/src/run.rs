//! `reference-vmm run`.

use crate::config::VmConfig;
use crate::error::VmError;
use guest_debug_gdb::ListenAddress;

/// Runs a guest with stdin and stdout as its console, until it powers itself off.
///
/// # Errors
///
/// Whatever keeps the VM from starting, or ends it other than by the guest's power-off.
#[cfg(target_arch = "aarch64")]
pub fn run(config: &VmConfig, gdb: Option<&ListenAddress>) -> Result<(), VmError> {
    use crate::console::{self, RawMode};
    let vm = crate::kvm::Vm::new(config, Box::new(std::io::stdout()))?;
    // Before any other thread is started, they inherit the signal mask.
    crate::signals::watch(vm.control().clone())?;
    let server = match (gdb, vm.session()) {
        (Some(address), Some(session)) => Some(crate::gdb::Server::start(address, session.clone())?),
        _ => None,
    };
    let raw_mode = RawMode::enter();
    if raw_mode.is_some() {
        log::info!("Ctrl-A x ends the VM");
    }
    let input = console::stdin().map_err(VmError::io("dup"))?;
    console::forward(input, vm.serial().clone(), vm.control().clone(), raw_mode.is_some());
    let result = vm.run();
    if let Some(server) = server {
        server.finish(u8::from(result.is_err()));
    }
    result
}

/// Checks the settings and the files, and says that guests need an arm64 host.
///
/// # Errors
///
/// Always: what is wrong with `config`, or else [`VmError::UnsupportedHost`].
#[cfg(not(target_arch = "aarch64"))]
pub fn run(config: &VmConfig, _gdb: Option<&ListenAddress>) -> Result<(), VmError> {
    config.check()?;
    crate::boot::Payload::open(config)?;
    Err(VmError::UnsupportedHost(std::env::consts::ARCH))
}

#[cfg(all(test, not(target_arch = "aarch64")))]
mod tests {
    use super::*;

    #[test]
    fn other_hosts_are_refused_by_name() {
        let config = VmConfig::new(std::env::current_exe().unwrap());
        let error = run(&VmConfig { cpus: 0, ..config }, None).unwrap_err();
        assert!(matches!(error, VmError::Setting { name: "--cpus", .. }), "{error}");
        let config = VmConfig::new("/dev/null");
        assert!(run(&config, None).unwrap_err().to_string().starts_with("/dev/null: size is 0x0"));
        let file = vmm_sys_util::tempfile::TempFile::new().unwrap();
        std::io::Write::write_all(&mut file.as_file(), b"x").unwrap();
        let error = run(&VmConfig::new(file.as_path()), None).unwrap_err().to_string();
        assert!(error.contains("arm64") && error.contains(std::env::consts::ARCH), "{error}");
    }
}
