//! The kernel modules that a machine needs, in the order in which they can be loaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// One module, ready for insmod.
pub struct Module {
    /// Name without an extension.
    pub name: String,
    /// The ELF file's content.
    pub content: Vec<u8>,
}

/// The named modules of a module tree and all that they depend on, dependencies first. Debian's packages hold no
/// modules.dep (depmod makes it at installation), so this reads what each module says of itself.
///
/// # Errors
/// If a module is not there or cannot be read.
pub fn load_order(tree: &Path, wanted: &[&str]) -> Result<Vec<Module>> {
    let mut files = BTreeMap::new();
    collect(tree, &mut files)?;
    let mut order = Vec::new();
    for name in wanted {
        visit(name, &files, &mut order)?;
    }
    Ok(order)
}

fn visit(name: &str, files: &BTreeMap<String, PathBuf>, order: &mut Vec<Module>) -> Result<()> {
    if order.iter().any(|module| module.name == name) {
        return Ok(());
    }
    let path = files.get(name).with_context(|| format!("the kernel has no module {name}"))?;
    let content = read(path)?;
    for dependency in dependencies(&content) {
        visit(&dependency, files, order)?;
    }
    order.push(Module { name: name.to_owned(), content });
    Ok(())
}

/// Names in a file and in modinfo differ: `virtio-rng.ko` is `virtio_rng`.
fn collect(directory: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory).with_context(|| format!("cannot read {}", directory.display()))? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            collect(&path, files)?;
        } else if let Some((stem, _)) = entry.file_name().to_string_lossy().split_once(".ko") {
            files.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    // Later Debian releases compress their modules; busybox's insmod does not unpack them all.
    let tool = match path.extension().and_then(|extension| extension.to_str()) {
        Some("xz") => "xz",
        Some("zst") => "zstd",
        _ => return fs::read(path).with_context(|| format!("cannot read {}", path.display())),
    };
    let output = Command::new(tool).arg("-dc").arg(path).output().with_context(|| format!("cannot start {tool}"))?;
    if !output.status.success() {
        bail!("{tool} cannot unpack {}", path.display());
    }
    Ok(output.stdout)
}

/// The `depends=` entry of the .modinfo section, found by its bytes: entries there are strings that end in NUL.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value = module[start + KEY.len()..].split(|byte| *byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_come_from_modinfo() {
        let module = b"\x7fELF license=GPL\0depends=virtio_ring,virtio,net-failover\0name=virtio_net\0";
        assert_eq!(dependencies(module), ["virtio_ring", "virtio", "net_failover"]);
        assert!(dependencies(b"\0depends=\0name=x\0").is_empty());
        assert!(dependencies(b"nothing").is_empty());
    }

    #[test]
    fn a_module_comes_after_what_it_needs_and_once() {
        let tree = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        fs::create_dir_all(tree.join("net")).unwrap();
        fs::write(tree.join("net/top.ko"), b"\0depends=left,right\0").unwrap();
        fs::write(tree.join("left.ko"), b"\0depends=base-one\0").unwrap();
        fs::write(tree.join("right.ko"), b"\0depends=base_one\0").unwrap();
        fs::write(tree.join("base-one.ko"), b"\0depends=\0").unwrap();
        let order = load_order(&tree, &["top", "left"]).unwrap();
        let names: Vec<_> = order.iter().map(|module| module.name.as_str()).collect();
        assert_eq!(names, ["base_one", "left", "right", "top"]);
        assert!(load_order(&tree, &["absent"]).is_err());
        fs::remove_dir_all(&tree).unwrap();
    }
}
