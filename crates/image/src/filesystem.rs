//! A file system as a whole: how large it is and what device it is on.
//!
//! Formats: statvfs(3), and `/proc/self/mountinfo` (proc_pid_mountinfo(5)). Both may hang with a dead disk.

use std::io;
use std::path::Path;

use coracle_domain::Filesystem;

use crate::usage::now;

/// Looks at the file system that `path` is on.
pub(crate) fn look(path: &Path) -> io::Result<Filesystem> {
    let size = rustix::fs::statvfs(path)?;
    let number = rustix::fs::stat(path)?.st_dev;
    let number = format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number));
    let device = source(&read_mounts()?, &number).unwrap_or(number);
    let bytes = size.f_blocks.saturating_mul(size.f_frsize);
    Ok(Filesystem { at: now(), device, bytes, inodes: size.f_files, inodes_free: size.f_ffree })
}

/// The mount table. Paths in it may be anything, and none of them is asked for here.
fn read_mounts() -> io::Result<String> {
    Ok(String::from_utf8_lossy(&std::fs::read("/proc/self/mountinfo")?).into_owned())
}

/// What the mount table says is mounted from the device with this number.
pub(crate) fn source(mountinfo: &str, number: &str) -> Option<String> {
    let line = mountinfo.lines().find(|line| line.split(' ').nth(2) == Some(number))?;
    let (_, after) = line.split_once(" - ")?;
    after.split(' ').nth(1).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_found_by_its_number() {
        let mountinfo = "22 1 0:20 / /proc rw - proc proc rw\n23 1 254:0 / / rw,relatime shared:1 - ext4 /dev/vda rw\n";
        assert_eq!(source(mountinfo, "254:0").as_deref(), Some("/dev/vda"));
        assert_eq!(source(mountinfo, "254:1"), None);
    }

    #[test]
    fn the_size_is_the_kernels() {
        let filesystem = look(Path::new("/proc/self")).unwrap();
        assert_eq!((filesystem.device.as_str(), filesystem.bytes), ("proc", 0));
        assert!(look(Path::new("/")).unwrap().bytes > 0);
    }
}
