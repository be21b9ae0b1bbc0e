//! Layers seen as one tree, the way overlayfs will show them, without mounting anything.
//!
//! Walks name by name, with the directory where it is held in every layer, so that whiteouts, opaque directories and
//! symbolic links mean what they will mean in the container, and nothing leads outside. The uppermost
//! layer may belong to a running container that changes it meanwhile.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::layer::apply::{OPAQUE, is_whiteout};
use crate::layer::root::proc_path;

/// As in path_resolution(7).
const LINK_LIMIT: usize = 40;
/// How many names a walk may take in all, those of links and of ways back up included. The longest path has 2,048.
const STEP_LIMIT: usize = 4_096;
const HOLD: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

/// A stack of layers.
#[derive(Debug)]
pub(crate) struct Merged {
    /// Their roots, the uppermost first.
    roots: Level,
}

/// What a path led to; never a symbolic link.
#[derive(Debug)]
pub(crate) struct Found {
    /// Held with `O_PATH`; of a merged directory the uppermost one, whose attributes count.
    pub(crate) file: OwnedFd,
    pub(crate) stat: Stat,
}

/// One directory in all the layers that have a part in it, the uppermost first.
type Level = std::rc::Rc<Vec<OwnedFd>>;

enum Step {
    Absent,
    Directory(Level),
    Other(Found),
}

impl Merged {
    /// Opens the layers, the uppermost first.
    pub(crate) fn open<'a>(layers: impl IntoIterator<Item = &'a PathBuf>) -> std::io::Result<Self> {
        let open = |path: &PathBuf| rustix::fs::openat(CWD, path, HOLD | OFlags::DIRECTORY, Mode::empty());
        let roots = layers.into_iter().map(open).collect::<Result<Vec<_>, _>>()?;
        Ok(Self { roots: roots.into() })
    }

    /// What is at `path`, links followed; `None` where there is nothing.
    pub(crate) fn find(&self, path: &Path) -> std::io::Result<Option<Found>> {
        let mut names = components(path.as_os_str().as_bytes());
        let (mut level, mut trail) = (self.roots.clone(), Vec::new());
        let (mut steps, mut links) = (0, 0);
        while let Some(name) = names.pop() {
            steps += 1;
            if steps > STEP_LIMIT {
                return Err(Errno::NAMETOOLONG.into());
            }
            if name == ".." {
                // From the roots again: all directories of a deep way, held in many layers, would be too many descriptors.
                trail.pop();
                names.extend(trail.drain(..).rev());
                level = self.roots.clone();
                continue;
            }
            match step(&level, &name)? {
                Step::Absent => return Ok(None),
                Step::Directory(below) => {
                    trail.push(name);
                    level = below;
                }
                Step::Other(found) if FileType::from_raw_mode(found.stat.st_mode) == FileType::Symlink => {
                    links += 1;
                    if links > LINK_LIMIT {
                        return Err(Errno::LOOP.into());
                    }
                    let target = rustix::fs::readlinkat(&found.file, "", Vec::new())?.into_bytes();
                    if target.starts_with(b"/") {
                        trail.clear();
                        level = self.roots.clone();
                    }
                    names.extend(components(&target));
                }
                Step::Other(found) => return Ok(names.is_empty().then_some(found)),
            }
        }
        let Some(file) = level.first() else { return Ok(None) };
        let file = rustix::io::fcntl_dupfd_cloexec(file, 0)?;
        Ok(Some(Found { stat: rustix::fs::fstat(&file)?, file }))
    }
}

/// A path's names, the last one first.
fn components(path: &[u8]) -> Vec<OsString> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(|name| OsString::from_vec(name.to_vec())).collect()
}

fn step(level: &Level, name: &OsString) -> std::io::Result<Step> {
    let mut parts = Vec::new();
    for directory in level.iter() {
        let file = match rustix::fs::openat(directory, name, HOLD, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT | Errno::NAMETOOLONG) => continue,
            Err(error) => return Err(error.into()),
        };
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            if parts.is_empty() && !is_whiteout(&stat) {
                return Ok(Step::Other(Found { file, stat }));
            }
            break;
        }
        let opaque = is_opaque(&file)?;
        parts.push(file);
        if opaque {
            break;
        }
    }
    Ok(if parts.is_empty() { Step::Absent } else { Step::Directory(parts.into()) })
}

fn is_opaque(directory: &OwnedFd) -> std::io::Result<bool> {
    let mut value = [0; 1];
    match rustix::fs::getxattr(proc_path(directory), OPAQUE, &mut value) {
        Ok(length) => Ok(length == 1 && value == *b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_deep_walk_over_many_layers_takes_few_descriptors() {
        let scratch = tempfile::tempdir().unwrap();
        let inner = "merged::tests::walk_with_few_descriptors";
        let script = format!("ulimit -n 256 && exec {} --ignored --exact {inner}", std::env::current_exe().unwrap().display());
        let inside = Command::new("sh").args(["-c", &script]).env("TREE", scratch.path()).output().unwrap();
        let output = String::from_utf8_lossy(&inside.stdout);
        assert!(inside.status.success() && output.contains("1 passed"), "{output}");
    }

    #[test]
    #[ignore = "run by a_deep_walk_over_many_layers_takes_few_descriptors, in a process that may have few"]
    fn walk_with_few_descriptors() {
        let tree = PathBuf::from(std::env::var_os("TREE").unwrap());
        let path = ["d"; 30].join("/");
        std::fs::create_dir_all(tree.join(&path)).unwrap();
        std::fs::write(tree.join("d/file"), "").unwrap();
        let merged = Merged::open(&vec![tree; 50]).unwrap();
        assert!(merged.find(Path::new(&path)).unwrap().is_some());
        assert!(merged.find(Path::new(&format!("{path}{}/file", "/..".repeat(29)))).unwrap().is_some());
    }

    #[test]
    fn a_walk_without_end_is_refused() {
        let tree = tempfile::tempdir().unwrap();
        std::fs::create_dir(tree.path().join("d")).unwrap();
        std::fs::write(tree.path().join("link-30"), "").unwrap();
        for link in 0..30 {
            let target = format!("{}link-{}", "d/../".repeat(500), link + 1);
            std::os::unix::fs::symlink(target, tree.path().join(format!("link-{link}"))).unwrap();
        }
        let merged = Merged::open(&[tree.path().to_owned()]).unwrap();
        assert!(merged.find(Path::new("link-29")).unwrap().is_some());
        let error = merged.find(Path::new("link-0")).unwrap_err();
        assert_eq!(Errno::from_io_error(&error), Some(Errno::NAMETOOLONG));
    }
}
