//! Writer of cpio archives in the "newc" format, which the kernel unpacks as its initramfs.
//!
//! Format: Documentation/driver-api/early-userspace/buffer-format.rst in the Linux tree.

/// An archive under construction. Parent directories are added as needed.
#[derive(Default)]
pub struct Archive {
    bytes: Vec<u8>,
    directories: Vec<String>,
    entries: u32,
}

const DIRECTORY: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

impl Archive {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a directory, unless it is there. Paths are relative to the root; a leading slash is ignored.
    pub fn directory(&mut self, path: &str) {
        let path = path.trim_matches('/');
        if path.is_empty() || self.directories.iter().any(|known| known == path) {
            return;
        }
        self.parents(path);
        self.directories.push(path.to_owned());
        self.entry(path, DIRECTORY | 0o755, (0, 0), &[]);
    }

    /// Adds a file with these permission bits.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) {
        self.add(path, FILE | (mode & 0o7777), (0, 0), content);
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) {
        self.add(path, LINK | 0o777, (0, 0), target.as_bytes());
    }

    /// Adds a character device.
    pub fn character_device(&mut self, path: &str, mode: u32, major: u32, minor: u32) {
        self.add(path, CHARACTER_DEVICE | (mode & 0o7777), (major, minor), &[]);
    }

    /// The finished archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entries = 0;
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        let path = path.trim_matches('/');
        self.parents(path);
        self.entry(path, mode, device, content);
    }

    fn parents(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
    }

    fn entry(&mut self, name: &str, mode: u32, (major, minor): (u32, u32), content: &[u8]) {
        self.entries += 1;
        let links = if mode & DIRECTORY == DIRECTORY { 2 } else { 1 };
        // Sizes above 4 GiB do not fit the format; nothing here comes near.
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode, device, content.
    type Entry = (String, u32, (u32, u32), Vec<u8>);

    fn parse(mut bytes: &[u8]) -> Vec<Entry> {
        let total = bytes.len();
        let mut entries = Vec::new();
        loop {
            assert_eq!((total - bytes.len()) % 4, 0, "entries start at multiples of four");
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let text = std::str::from_utf8(&bytes[6 + index * 8..14 + index * 8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..110 + name_size - 1].to_vec()).unwrap();
            assert_eq!(bytes[110 + name_size - 1], 0);
            let start = (110 + name_size).next_multiple_of(4);
            let entry = (name, field(1), (field(9), field(10)), bytes[start..start + size].to_vec());
            bytes = &bytes[(start + size).next_multiple_of(4)..];
            if entry.0 == "TRAILER!!!" {
                assert!(bytes.is_empty());
                return entries;
            }
            entries.push(entry);
        }
    }

    #[test]
    fn entries_are_what_was_added_with_their_parents_before_them() {
        let mut archive = Archive::new();
        archive.file("/usr/bin/tool", 0o755, b"abcde");
        archive.file("usr/bin/other", 0o600, b"");
        archive.link("/bin", "usr/bin");
        archive.character_device("/dev/console", 0o600, 5, 1);
        archive.directory("/dev");
        let expected = [
            ("usr", 0o040_755, (0, 0), &b""[..]),
            ("usr/bin", 0o040_755, (0, 0), b""),
            ("usr/bin/tool", 0o100_755, (0, 0), b"abcde"),
            ("usr/bin/other", 0o100_600, (0, 0), b""),
            ("bin", 0o120_777, (0, 0), b"usr/bin"),
            ("dev", 0o040_755, (0, 0), b""),
            ("dev/console", 0o020_600, (5, 1), b""),
        ];
        let expected = expected.map(|(name, mode, device, content)| (name.to_owned(), mode, device, content.to_vec()));
        assert_eq!(parse(&archive.finish()), expected);
    }

    #[test]
    fn an_empty_archive_is_a_trailer() {
        assert!(parse(&Archive::new().finish()).is_empty());
    }
}
