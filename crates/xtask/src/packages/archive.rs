//! Debian's archive for an architecture, for packages that are unpacked and not installed.
//!
//! apt keeps the lists of this archive in a directory of ours. So nothing about the machine changes, its dpkg need not
//! know the architecture, and anybody may do it.

use std::cell::OnceCell;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, bail};

use crate::paths;
use crate::progress::{Progress, note, output_of, run_quietly, tail};

/// The lists, from their first use until this is dropped.
pub(super) struct Archive {
    /// As Debian names it.
    architecture: &'static str,
    lists: OnceCell<Lists>,
}

impl Archive {
    pub(super) fn new(architecture: &'static str) -> Self {
        Self { architecture, lists: OnceCell::new() }
    }

    /// Downloads a package and unpacks it into `directory`.
    pub(super) fn unpack(&self, package: &str, directory: &Path) -> Result<()> {
        self.look_up(package)?;
        self.fetch(package, &[package.to_owned()], directory)
    }

    /// The same for a program, with everything that it needs to run.
    pub(super) fn unpack_with_dependencies(&self, package: &str, directory: &Path) -> Result<()> {
        self.look_up(package)?;
        // Nothing is installed as far as apt can see, so it would install all of them.
        let mut simulation = self.lists()?.apt("apt-get");
        simulation.args(["install", "--simulate", "--no-install-recommends", package]);
        let plan = output_of(&mut simulation).with_context(|| format!("resolving what {package}:arm64 depends on"))?;
        self.fetch(package, &planned(&plan), directory)
    }

    /// Downloads a package and takes one file out of it, named as in `dpkg --contents`.
    pub(super) fn unpack_file(&self, package: &str, file: &str, target: &Path) -> Result<()> {
        self.look_up(package)?;
        let (downloads, debs) = self.download(package, &[package.to_owned()])?;
        let progress = Progress::start(format!("unpacking {file}"));
        for deb in &debs {
            let mut dpkg = Command::new("dpkg-deb");
            let mut dpkg = dpkg.arg("--fsys-tarfile").arg(deb).stdout(Stdio::piped()).spawn().context("dpkg-deb")?;
            let contents = dpkg.stdout.take().context("dpkg-deb has no output")?;
            let mut tar = Command::new("tar");
            let tar = tar.args(["--extract", "--to-stdout", file]).stdin(contents).stdout(File::create(target)?);
            let taken = tar.output().context("tar")?;
            if !dpkg.wait()?.success() || !taken.status.success() {
                bail!("{package} has no {file}:\n{}", tail(&String::from_utf8_lossy(&taken.stderr)));
            }
        }
        progress.done();
        paths::remove(&downloads)
    }

    /// Downloads these packages and unpacks them; `what` is their name in messages.
    fn fetch(&self, what: &str, packages: &[String], directory: &Path) -> Result<()> {
        let (downloads, debs) = self.download(what, packages)?;
        for deb in &debs {
            output_of(Command::new("dpkg").arg("-x").arg(deb).arg(directory))?;
        }
        paths::remove(&downloads)
    }

    /// Downloads these packages. Answers the directory that is theirs alone, and their files in it.
    fn download(&self, what: &str, packages: &[String]) -> Result<(PathBuf, Vec<PathBuf>)> {
        let downloads = self.lists()?.directory.join("packages").join(what);
        fs::create_dir_all(&downloads)?;
        let mut download = self.lists()?.apt("apt-get");
        run_quietly(
            &format!("downloading {what} for {}", self.architecture),
            download.arg("download").args(packages).current_dir(&downloads),
        )?;
        let debs: Vec<_> = fs::read_dir(&downloads)?
            .filter_map(Result::ok)
            .map(|entry| entry.path())
            .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .collect();
        if debs.len() != packages.len() {
            bail!("apt-get download left {} of {} packages in {}", debs.len(), packages.len(), downloads.display());
        }
        Ok((downloads, debs))
    }

    /// The package of the cloud kernel, on which a meta package depends.
    pub(super) fn kernel_package(&self) -> Result<String> {
        let meta = format!("linux-image-cloud-{}", self.architecture);
        let record = self.look_up(&meta)?;
        kernel_dependency(&record).with_context(|| format!("{meta} depends on no linux-image package:\n{record}"))
    }

    /// apt's record of a package.
    fn look_up(&self, package: &str) -> Result<String> {
        output_of(self.lists()?.apt("apt-cache").args(["show", "--no-all-versions", package])).with_context(|| {
            let architecture = self.architecture;
            format!("apt knows no package {package}:{architecture}: Debian 12 or later with its main archive is needed")
        })
    }

    fn lists(&self) -> Result<&Lists> {
        if let Some(lists) = self.lists.get() {
            return Ok(lists);
        }
        let lists = Lists::download(self.architecture)?;
        Ok(self.lists.get_or_init(|| lists))
    }
}

struct Lists {
    architecture: &'static str,
    directory: PathBuf,
}

impl Lists {
    fn download(architecture: &'static str) -> Result<Self> {
        static LISTS: AtomicU32 = AtomicU32::new(0);
        // One for each process: apt locks its lists, and does not wait for that lock.
        let name = format!("apt-{}-{}", process::id(), LISTS.fetch_add(1, Ordering::Relaxed));
        let lists = Self { architecture, directory: paths::cache().join(name) };
        for part in ["lists/partial", "cache/archives/partial"] {
            let directory = lists.directory.join(part);
            fs::create_dir_all(&directory).with_context(|| format!("cannot create {}", directory.display()))?;
        }
        let what = format!("downloading the lists of Debian's {architecture} packages");
        let updated = run_quietly(&what, lists.apt("apt-get").arg("update"));
        if let Err(error) = updated {
            // Any archive of the machine may fail, also one that nothing is wanted from: what is missing shows later.
            note(format!("going on although apt-get update failed: {error:#}"));
        }
        Ok(lists)
    }

    /// apt-get or apt-cache on these lists, as if this were a machine of the architecture with nothing installed.
    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        for option in [
            format!("Dir::State::Lists={}", self.directory.join("lists").display()),
            format!("Dir::Cache={}", self.directory.join("cache").display()),
            "Dir::State::status=/dev/null".to_owned(),
            format!("APT::Architecture={}", self.architecture),
            format!("APT::Architectures={}", self.architecture),
            "Acquire::Languages=none".to_owned(),
            // Root's apt would download as a user who need not get into our directory.
            "APT::Sandbox::User=root".to_owned(),
        ] {
            command.args(["-o", &option]);
        }
        command.arg("-q");
        command
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        if let Err(error) = paths::remove(&self.directory) {
            note(format!("{error:#}"));
        }
    }
}

/// Names in the lines `Inst NAME (...)` of a simulated installation.
fn planned(simulation: &str) -> Vec<String> {
    let names = simulation.lines().filter_map(|line| line.strip_prefix("Inst ")?.split_whitespace().next());
    names.map(|name| name.trim_end_matches(":arm64").to_owned()).collect()
}

fn kernel_dependency(record: &str) -> Option<String> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends:"))?;
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next())
        .find(|name| name.starts_with("linux-image-"))
        .map(|name| name.split_once(':').map_or(name, |(name, _)| name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_be_installed_is_read_from_apts_simulation() {
        let simulation = "Reading package lists...\nInst libc6 (2.36 Debian:12 [arm64]) []\n\
                          Inst qemu-system-arm (1:7.2 Debian:12 [arm64])\nConf libc6 (2.36 Debian:12 [arm64])\n";
        assert_eq!(planned(simulation), ["libc6", "qemu-system-arm"]);
    }

    #[test]
    fn the_kernel_is_found_in_the_meta_package() {
        let record = "Package: linux-image-cloud-arm64\nVersion: 6.1.1\n\
                      Depends: foo, linux-image-6.1.0-56-cloud-arm64 (= 6.1.192-2)\nSize: 1\n";
        assert_eq!(kernel_dependency(record).as_deref(), Some("linux-image-6.1.0-56-cloud-arm64"));
        assert_eq!(kernel_dependency("Package: x\nDepends: y\n"), None);
    }
}
