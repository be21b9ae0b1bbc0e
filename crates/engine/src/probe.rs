//! Whether this node's kernel and the file system of its images can give pods user namespaces. It is tried, not guessed:
//! an overlay is mounted on a directory whose owners are mapped, in a mount namespace that ends with its thread.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use coracle_domain::{During, Failure, Result};
use coracle_sys::mount::map_ids;
use coracle_sys::namespace::{Namespace, unshare};
use coracle_sys::process::{NewNamespaces, send_signal, spawn_idle};
use rustix::fs::CWD;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, mount, mount_change, move_mount, open_tree};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, chdir, waitid};

/// The node's user that is root in the trial.
const ROOT: u32 = 65_536;
/// A line of uid_map and gid_map.
const MAP: &str = "0 65536 65536";

/// Tries it on the file system of `storage`. The error says what is missing.
pub(crate) fn user_namespaces(storage: &Path) -> Result<()> {
    let directory = storage.join("probe");
    let trial = directory.clone();
    let tried = std::thread::spawn(move || try_in(&trial)).join();
    let removed = remove(&directory);
    tried.unwrap_or_else(|_| Err(Failure::new("probing", "user namespaces", "the trial was broken off").into()))?;
    removed
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).during("removing", directory.display()),
        _ => Ok(()),
    }
}

fn try_in(directory: &Path) -> Result<()> {
    let (pid, process) = spawn_idle(NewNamespaces { user: true, ..NewNamespaces::default() }).during("making", "a user namespace")?;
    let done = map(pid).and_then(|namespace| mount_mapped(directory, &namespace));
    // It dies with this thread, if not by this.
    let _ = send_signal(process.as_fd(), Signal::KILL.as_raw());
    let _ = waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED);
    done
}

fn map(pid: Pid) -> Result<OwnedFd> {
    let path = |name: &str| format!("/proc/{}/{name}", pid.as_raw_pid());
    for name in ["uid_map", "gid_map"] {
        fs::write(path(name), MAP).during("mapping the ids of a user namespace:", name)?;
    }
    fs::File::open(path("ns/user")).map(OwnedFd::from).during("opening", "a user namespace")
}

fn mount_mapped(directory: &Path, namespace: &OwnedFd) -> Result<()> {
    remove(directory)?;
    for name in ["lower", "upper", "work", "merged"] {
        fs::create_dir_all(directory.join(name)).during("making the directory", directory.display())?;
    }
    fs::write(directory.join("lower/file"), "").during("writing", directory.display())?;
    unshare(&[Namespace::Mount]).during("making", "a mount namespace")?;
    let alone = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    mount_change("/", alone).during("changing the propagation of", "/")?;
    // Only this thread's, since it has a mount namespace of its own.
    chdir(directory).during("entering", directory.display())?;
    let lower = open_tree(CWD, "lower", OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
    let lower = lower.during("cloning the mount of", directory.display())?;
    map_ids(lower.as_fd(), namespace.as_fd()).during("mapping the owners of files in", directory.display())?;
    move_mount(&lower, "", CWD, "lower", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH).during("mounting", "lower")?;
    mount("overlay", "merged", "overlay", MountFlags::empty(), c"lowerdir=lower,upperdir=upper,workdir=work")
        .during("mounting overlayfs over mapped layers in", directory.display())?;
    match fs::metadata("merged/file").during("looking into", "merged")?.uid() {
        ROOT => Ok(()),
        other => Err(Failure::new("mapping owners in", directory.display(), format!("root became {other} and not {ROOT}")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_leaves_nothing() {
        let storage = tempfile::tempdir().unwrap();
        // What it finds depends on the machine; that it leaves nothing does not.
        let tried = user_namespaces(storage.path());
        eprintln!("{tried:?}");
        assert_eq!(fs::read_dir(storage.path()).unwrap().count(), 0);
    }
}
