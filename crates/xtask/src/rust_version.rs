//! Versions of Rust, and the one that this workspace needs.

use std::ffi::OsStr;
use std::fmt;
use std::process::Command;

use crate::progress::output_of;

/// The oldest that compiles this workspace: `rust-version` in Cargo.toml.
pub const RUST_VERSION: &str = env!("CARGO_PKG_RUST_VERSION");

/// Major and minor number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct RustVersion(u32, u32);

impl RustVersion {
    /// The version of a rustc; `None` if there is none that can say so.
    pub fn of(rustc: &OsStr) -> Option<Self> {
        Self::parse(output_of(Command::new(rustc).arg("--version")).ok()?.strip_prefix("rustc ")?)
    }

    /// What a version text starts with: rustc's `1.89.0-nightly (...)`, or a package's `1.85.0+dfsg3-1~deb12u3`.
    pub fn parse(text: &str) -> Option<Self> {
        let mut numbers = text.split(['.', '-', '+', '~', ' ']).map(str::parse);
        Some(Self(numbers.next()?.ok()?, numbers.next()?.ok()?))
    }

    /// Whether it compiles this workspace.
    pub fn is_enough(self) -> bool {
        Self::parse(RUST_VERSION).is_none_or(|needed| self >= needed)
    }
}

impl fmt::Display for RustVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn compilers_and_packages_have_versions() {
        assert_eq!(RustVersion::parse("1.95.0 (59807616e 2026-04-14)"), Some(RustVersion(1, 95)));
        assert_eq!(RustVersion::parse("1.85.0+dfsg3-1~deb12u3"), Some(RustVersion(1, 85)));
        assert_eq!(RustVersion::parse("1.89"), Some(RustVersion(1, 89)));
        for bad in ["", "1", "rustc 1.89.0", "one.two"] {
            assert_eq!(RustVersion::parse(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn older_ones_than_cargo_toml_says_are_not_enough() {
        let needed = RustVersion::parse(RUST_VERSION).unwrap();
        assert!(needed.is_enough() && RustVersion(needed.0 + 1, 0).is_enough());
        assert!(!RustVersion(needed.0, needed.1 - 1).is_enough());
        assert!(!RustVersion(needed.0 - 1, needed.1 + 1).is_enough());
    }
}
