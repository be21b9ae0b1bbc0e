//! A file system with a quota that holds for root too: a small btrfs in a file, with a limit on a subvolume
//! (btrfs-qgroup(8)). Whoever exceeds it hears EDQUOT.

use std::fs::{self, File};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags, move_mount, open_tree, unmount};

use crate::{host, skip};

/// The smallest btrfs has 109 MiB. The file has holes where nothing is written.
const SIZE: u64 = 128 << 20;
/// The subvolume, and the group of the first that is made.
const SUBVOLUME: (&str, &str) = ("limited", "0/256");

/// A mounted file system. It and its loop device go when this is dropped, if nobody has unmounted it before.
#[derive(Debug)]
pub struct Quota {
    path: PathBuf,
    /// What is above the subvolume, mounted nowhere: under the limit not even the limit could be changed.
    top: OwnedFd,
}

impl Quota {
    /// Whether the kernel has btrfs, and a word of it if not.
    pub fn is_possible() -> bool {
        let _ = host::run("modprobe", &["--quiet", "btrfs"]);
        let possible = fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.lines().any(|line| line.trim() == "btrfs"));
        if !possible {
            skip("this kernel has no btrfs, and so no quota that holds for root");
        }
        possible
    }

    /// Makes one in `file`, without a limit, and mounts it on a directory.
    pub fn mount(file: &Path, path: &Path) -> Self {
        File::create(file).and_then(|disk| disk.set_len(SIZE)).expect("making a file");
        host::run("mkfs.btrfs", &["-q", "-m", "single", &file.to_string_lossy()]).expect("mkfs.btrfs (Debian's btrfs-progs)");
        host::run("mount", &["-o", "loop", &file.to_string_lossy(), &path.to_string_lossy()]).expect("mounting a btrfs from a file");
        let top = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).expect("opening a directory");
        let quota = Self { path: path.to_owned(), top };
        quota.run(&["quota", "enable"], "");
        quota.run(&["quota", "rescan", "-w"], "");
        quota.run(&["subvolume", "create"], SUBVOLUME.0);
        quota.show_the_subvolume_only().expect("mounting a subvolume");
        quota
    }

    fn show_the_subvolume_only(&self) -> rustix::io::Result<()> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let subvolume = open_tree(&self.top, SUBVOLUME.0, flags)?;
        unmount(&self.path, UnmountFlags::DETACH)?;
        move_mount(&subvolume, "", CWD, &self.path, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
    }

    /// Nothing more than this many bytes may be in it; with fewer than there are, nothing may be added.
    pub fn limit(&self, bytes: u64) {
        self.run(&["qgroup", "limit", &bytes.to_string(), SUBVOLUME.1], "");
    }

    /// There is no limit any more.
    pub fn lift(&self) {
        self.run(&["qgroup", "limit", "none", SUBVOLUME.1], "");
    }

    /// Has `btrfs` do something to what is called `name` below the top.
    fn run(&self, command: &[&str], name: &str) {
        let path = format!("/proc/{}/fd/{}/{name}", std::process::id(), self.top.as_raw_fd());
        host::run("btrfs", &[command, &[&*path]].concat()).expect("setting a quota");
    }
}

impl Drop for Quota {
    fn drop(&mut self) {
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}
