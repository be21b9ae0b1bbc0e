//! The test's end of the line to a daemon with fail points: what it visits, and where it is to die.
//!
//! The files and their meaning are those of the `coracle-failpoint` crate, which holds the table of all points.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// The directory over which a test and its daemon speak of fail points.
#[derive(Debug)]
pub struct FailPoints {
    directory: TempDir,
}

impl FailPoints {
    /// A directory that any process can write to: some that reach points have lost their privileges.
    pub(crate) fn new(parent: &Path) -> Self {
        let directory = tempfile::Builder::new().prefix("f").tempdir_in(parent).expect("making a directory");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).expect("opening the directory to all");
        let points = Self { directory };
        points.clear();
        points
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Forgets all visits, and wants nothing any more: who stands still goes on.
    pub fn clear(&self) {
        let _ = fs::remove_file(self.file("order"));
        for name in ["visits", "halted"] {
            fs::write(self.file(name), "").expect("emptying a file");
            fs::set_permissions(self.file(name), Permissions::from_mode(0o666)).expect("opening a file to all");
        }
    }

    /// Forgets all visits and wants it to happen at this one: the `number`th of `point`, from 1 on.
    pub fn order(&self, point: &str, number: usize) {
        self.clear();
        // Whole at once: who comes by reads all of it or nothing.
        fs::write(self.file("draft"), format!("{point} {number}\n")).expect("writing an order");
        fs::rename(self.file("draft"), self.file("order")).expect("giving an order");
    }

    /// How often each point was visited since the last order.
    pub fn visits(&self) -> BTreeMap<String, usize> {
        let mut visits = BTreeMap::new();
        for point in fs::read_to_string(self.file("visits")).unwrap_or_default().lines() {
            *visits.entry(point.to_owned()).or_default() += 1;
        }
        visits
    }

    /// Whether a monitor stands still.
    pub fn is_halted(&self) -> bool {
        fs::metadata(self.file("halted")).is_ok_and(|file| file.len() > 0)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}
