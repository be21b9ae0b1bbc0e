//! Layers of images, made on the spot: tar archives (POSIX pax, as the OCI image specification has them).

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::OnceLock;

use tar::{EntryType, Header};

/// How a layer is compressed on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    Plain,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
}

/// A layer being written. Modification times are fixed, so the same layer has the same digest every time.
pub struct Layer {
    archive: tar::Builder<Vec<u8>>,
}

/// The modification time of every entry, in seconds since the epoch: 2024-02-29 12:00:00 UTC.
pub const MODIFIED: u64 = 1_709_208_000;

impl Layer {
    /// An empty layer.
    #[expect(clippy::new_without_default, reason = "an empty layer is a beginning, not a default")]
    pub fn new() -> Self {
        Self { archive: tar::Builder::new(Vec::new()) }
    }

    /// A regular file owned by root.
    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.owned_file(path, mode, (0, 0), content)
    }

    /// A regular file with an owner (uid, gid).
    pub fn owned_file(self, path: &str, mode: u32, owner: (u64, u64), content: &[u8]) -> Self {
        self.entry(path, header(EntryType::Regular, mode, owner, content.len()), content)
    }

    /// A directory.
    pub fn directory(self, path: &str, mode: u32, owner: (u64, u64)) -> Self {
        self.entry(&format!("{path}/"), header(EntryType::Directory, mode, owner, 0), b"")
    }

    /// A symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.link(path, target, header(EntryType::Symlink, 0o777, (0, 0), 0))
    }

    /// A hard link to an earlier entry, whose mode and owner it repeats, as archivers do.
    pub fn hard_link(self, path: &str, target: &str, mode: u32, owner: (u64, u64)) -> Self {
        self.link(path, target, header(EntryType::Link, mode, owner, 0))
    }

    /// A character device.
    pub fn device(self, path: &str, major: u32, minor: u32) -> Self {
        let mut header = header(EntryType::Char, 0o666, (0, 0), 0);
        header.set_device_major(major).expect("a ustar header has room for a device number");
        header.set_device_minor(minor).expect("a ustar header has room for a device number");
        self.entry(path, header, b"")
    }

    /// A regular file with extended attributes (`SCHILY.xattr.` pax records).
    pub fn file_with_attribute(mut self, path: &str, attribute: (&str, &[u8]), content: &[u8]) -> Self {
        let key = format!("SCHILY.xattr.{}", attribute.0);
        self.archive.append_pax_extensions([(key.as_str(), attribute.1)]).expect("writing to memory");
        self.file(path, 0o644, content)
    }

    /// All directories and regular files beneath a directory of this machine, with their modes, owned by root.
    pub fn tree(mut self, root: &Path) -> Self {
        for path in crate::leaks::tree(root) {
            let mode = std::fs::metadata(&path).expect("looking at a file").permissions().mode() & 0o7777;
            let name = path.strip_prefix(root).expect("it lies beneath its root").to_string_lossy().into_owned();
            self = match path.is_dir() {
                true => self.directory(&name, mode, (0, 0)),
                false => self.file(&name, mode, &std::fs::read(&path).expect("reading a file")),
            };
        }
        self
    }

    /// Removes what the layers below have at `path`: a whiteout.
    pub fn whiteout(self, path: &str) -> Self {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let hidden = format!("{parent}/.wh.{name}");
        self.file(hidden.trim_start_matches('/'), 0o644, b"")
    }

    /// Removes all that the layers below have in the directory `path`: an opaque whiteout.
    pub fn opaque(self, path: &str) -> Self {
        self.file(&format!("{path}/.wh..wh..opq"), 0o644, b"")
    }

    /// The archive's bytes.
    pub fn into_tar(self) -> Vec<u8> {
        self.archive.into_inner().expect("writing to memory")
    }

    fn link(mut self, path: &str, target: &str, mut header: Header) -> Self {
        self.archive.append_link(&mut header, path, target).expect("writing to memory");
        self
    }

    /// The name is written as it is, so that tests can make archives that climb out of their root.
    fn entry(mut self, path: &str, mut header: Header, content: &[u8]) -> Self {
        let name = &mut header.as_old_mut().name;
        assert!(path.len() < name.len(), "{path} is too long for a plain tar header");
        name[..path.len()].copy_from_slice(path.as_bytes());
        header.set_cksum();
        self.archive.append(&header, content).expect("writing to memory");
        self
    }
}

impl std::fmt::Debug for Layer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Layer")
    }
}

fn header(kind: EntryType, mode: u32, (uid, gid): (u64, u64), size: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_uid(uid);
    header.set_gid(gid);
    header.set_mtime(MODIFIED);
    header.set_size(size as u64);
    header
}

/// Compresses a layer.
pub fn compress(tar: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::Plain => tar.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(tar).and_then(|()| encoder.finish()).expect("writing to memory")
        }
        Compression::Zstd => zstd::encode_all(tar, 1).expect("writing to memory"),
    }
}

/// Where Debian's `busybox-static` puts its one file.
const BUSYBOX: [&str; 2] = ["/usr/bin/busybox", "/bin/busybox"];

/// Debian's statically linked busybox.
pub fn busybox_program() -> Vec<u8> {
    BUSYBOX.iter().find_map(|path| std::fs::read(path).ok()).expect("busybox-static is installed")
}

/// A small system: busybox with links for all its applets, a few directories and the usual accounts
/// (`root`, `alice` 1000:1000 who is also in `wheel` 10 and `staff` 50, `nobody`).
pub fn busybox() -> &'static [u8] {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    LAYER.get_or_init(|| {
        let program = busybox_program();
        let mut layer = Layer::new();
        for (directory, mode) in
            [("bin", 0o755), ("etc", 0o755), ("home", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("usr", 0o755)]
        {
            layer = layer.directory(directory, mode, (0, 0));
        }
        layer = layer.directory("home/alice", 0o750, (1000, 1000)).directory("usr/bin", 0o755, (0, 0)).directory("var/www", 0o755, (0, 0));
        layer = layer.file("bin/busybox", 0o755, &program);
        for applet in applets() {
            layer = layer.symlink(&format!("bin/{applet}"), "busybox");
        }
        for (path, content) in accounts() {
            layer = layer.file(path, 0o644, content.as_bytes());
        }
        layer.file("etc/motd", 0o644, b"welcome aboard\n").into_tar()
    })
}

fn accounts() -> BTreeMap<&'static str, String> {
    let passwd =
        ["root:x:0:0:root:/root:/bin/sh", "alice:x:1000:1000:Alice:/home/alice:/bin/sh", "nobody:x:65534:65534:nobody:/:/bin/false"];
    let group = ["root:x:0:", "wheel:x:10:alice", "staff:x:50:alice", "alice:x:1000:", "nobody:x:65534:"];
    BTreeMap::from([("etc/passwd", passwd.join("\n") + "\n"), ("etc/group", group.join("\n") + "\n")])
}

fn applets() -> Vec<String> {
    let listing = crate::host::run("busybox", &["--list"]).expect("busybox-static lists its applets");
    listing.lines().filter(|name| *name != "busybox").map(str::to_owned).collect()
}
