//! SELinux as this node has it: whether it is enabled, what its policy says of containers, and labels on files of the node.
//!
//! What label belongs to whom is decided in `spec`. Formats and places: selinux(8), selinux_config(5), and container-selinux
//! for the file of contexts; labels are the extended attribute `security.selinux` (xattr(7)).

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_domain::{During, Refusal, Result};
use coracle_spec::{Selinux, SelinuxLabels};
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, getxattr, openat, setxattr};
use rustix::io::Errno;

/// Where the kernel shows it, if it is enabled.
const MOUNT: &str = "/sys/fs/selinux";
/// The contexts of the package container-selinux, where they are not part of the policy.
const CONTEXTS: &str = "/usr/share/containers/selinux/contexts";
const ATTRIBUTE: &str = "security.selinux";

/// Directories nested deeper than this are no volume's; it bounds the descriptors that a walk holds.
const DEEPEST: usize = 512;

/// Places that belong to the node, all of whose programs would lose them. What is beneath them may be relabelled.
#[rustfmt::skip]
const NODES_OWN: [&str; 28] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/etc/passwd", "/etc/pki", "/etc/shadow", "/home", "/lib", "/lib64", "/media", "/opt", "/proc",
    "/root", "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/bin", "/usr/lib", "/usr/lib64", "/usr/sbin", "/var", "/var/lib", "/var/log",
];

/// What the policy says of containers; `None` where SELinux is not enabled, or says nothing of them.
pub(crate) fn policy() -> Option<Selinux> {
    fs::metadata(Path::new(MOUNT).join("enforce")).ok()?;
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let kind = config.lines().find_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).unwrap_or("targeted").trim();
    let places = [PathBuf::from(CONTEXTS), Path::new("/etc/selinux").join(kind).join("contexts/lxc_contexts")];
    places.iter().find_map(|place| Selinux::parse(&fs::read_to_string(place).ok()?))
}

/// Refused: labels that the policy does not have.
pub(crate) fn check(labels: &SelinuxLabels) -> Result<()> {
    for label in labels.process.iter().chain([&labels.file]) {
        // The kernel takes a label only if it is valid. Other errors are for those to meet who use the label.
        if let Err(error) = fs::write(Path::new(MOUNT).join("context"), label)
            && error.kind() == io::ErrorKind::InvalidInput
        {
            return Err(Refusal::invalid("linux.security_context.selinux_options", format!("the policy has no label {label}")).into());
        }
    }
    Ok(())
}

/// Labels a file or directory of the node and all that is in it, links not followed. Where the file system has no labels
/// nothing happens. May take long.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<()> {
    let stage = "relabelling";
    let place = fs::canonicalize(path).during(stage, path.display())?;
    if NODES_OWN.iter().any(|own| place == Path::new(own)) {
        return Err(Refusal::invalid("config.mounts", format!("{place:?} is the node's own and is not relabelled")).into());
    }
    let top = hold(CWD, &place).during(stage, path.display())?;
    match set(top.as_fd(), label) {
        Err(Errno::OPNOTSUPP) => Ok(()),
        done => done.and_then(|()| walk(&top, label)).during(stage, path.display()),
    }
}

/// Opens for looking only, and never through a link.
fn hold(directory: BorrowedFd<'_>, name: impl rustix::path::Arg) -> std::result::Result<OwnedFd, Errno> {
    openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Labels what is in a directory, if it is one. Whoever uses the volume may change it meanwhile: everything is reached from
/// its directory's handle, and what has gone needs no label.
fn walk(top: &OwnedFd, label: &str) -> std::result::Result<(), Errno> {
    let mut open = Vec::from_iter(directory(top)?);
    while let Some(current) = open.last_mut() {
        let Some(entry) = current.next() else {
            open.pop();
            continue;
        };
        let entry = entry?;
        if matches!(entry.file_name().to_bytes(), b"." | b"..") {
            continue;
        }
        let file = match hold(current.fd()?, entry.file_name()) {
            Err(Errno::NOENT) => continue,
            file => file?,
        };
        match set(file.as_fd(), label) {
            Err(Errno::NOENT | Errno::OPNOTSUPP) => {}
            done => done?,
        }
        if let Some(next) = directory(&file)? {
            if open.len() == DEEPEST {
                return Err(Errno::NAMETOOLONG);
            }
            open.push(next);
        }
    }
    Ok(())
}

fn directory(held: &OwnedFd) -> std::result::Result<Option<Dir>, Errno> {
    if FileType::from_raw_mode(fstat(held)?.st_mode) != FileType::Directory {
        return Ok(None);
    }
    openat(held, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).and_then(Dir::new).map(Some)
}

/// Sets a label, unless it is there already.
fn set(file: BorrowedFd<'_>, label: &str) -> std::result::Result<(), Errno> {
    // The calls for descriptors refuse those that were opened for looking only. A thread may have a table of its own.
    let path = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
    let value = [label.as_bytes(), b"\0"].concat();
    let mut present = vec![0; value.len() + 1];
    if getxattr(&path, ATTRIBUTE, &mut present[..]).is_ok_and(|length| present.get(..length) == Some(&value[..])) {
        return Ok(());
    }
    setxattr(&path, ATTRIBUTE, &value, XattrFlags::empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use coracle_sys::process::without_descriptors;

    use super::*;

    const LABEL: &str = "system_u:object_r:container_file_t:s0:c1,c2";

    fn label_of(path: &Path) -> Option<Vec<u8>> {
        let mut value = [0; 128];
        let length = rustix::fs::lgetxattr(path, ATTRIBUTE, &mut value[..]).ok()?;
        Some(value[..length].to_vec())
    }

    #[test]
    fn a_tree_is_labelled_and_links_lead_nowhere() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: labels are root's to set");
            return;
        }
        let scratch = tempfile::tempdir().unwrap();
        let (volume, outside) = (scratch.path().join("volume"), scratch.path().join("outside"));
        fs::create_dir_all(volume.join("a/b")).unwrap();
        fs::create_dir(&outside).unwrap();
        for file in [volume.join("a/b/file"), outside.join("file")] {
            fs::write(file, "").unwrap();
        }
        symlink(&outside, volume.join("a/link")).unwrap();
        symlink(&volume, scratch.path().join("way")).unwrap();
        // As volumes are looked at.
        without_descriptors(|| relabel(&scratch.path().join("way"), LABEL)).unwrap().unwrap();
        let expected = Some([LABEL.as_bytes(), b"\0"].concat());
        if label_of(&volume).is_none() {
            eprintln!("skipped: the file system has no labels");
            return;
        }
        for path in ["", "a", "a/b", "a/b/file", "a/link"] {
            assert_eq!(label_of(&volume.join(path)), expected, "{path:?}");
        }
        assert_eq!((label_of(&outside), label_of(&outside.join("file"))), (None, None));
        relabel(&volume.join("a/b/file"), "u:r:t:s0").unwrap();
        assert_eq!(label_of(&volume.join("a/b/file")).as_deref(), Some(&b"u:r:t:s0\0"[..]));
    }

    #[test]
    fn the_nodes_own_places_are_refused_by_whatever_name() {
        let scratch = tempfile::tempdir().unwrap();
        let link = scratch.path().join("innocent");
        symlink("/usr", &link).unwrap();
        for path in [Path::new("/"), Path::new("/etc"), Path::new("/usr/../etc/"), &link] {
            let error = relabel(path, LABEL).unwrap_err().to_string();
            assert!(error.contains("is not relabelled"), "{error}");
        }
        assert!(relabel(Path::new("/no/such/place"), LABEL).is_err());
    }
}
