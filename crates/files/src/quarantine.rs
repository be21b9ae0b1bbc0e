//! Where damaged files are put aside, for a person to look at. It never holds more than a few small ones: what was
//! put aside first goes first, and what is no file, or is large, is not kept at all.

use std::fmt::Display;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many files are kept.
const KEPT: usize = 32;
/// Bytes of the largest that is kept.
const LARGEST: u64 = 1 << 20;

/// A directory of damaged files, on the file system of those that it is for.
#[derive(Debug, Clone)]
pub struct Quarantine(PathBuf);

impl Quarantine {
    /// The one at `directory`, which is made when it is needed.
    pub fn at(directory: PathBuf) -> Self {
        Self(directory)
    }

    /// Takes what is at `path` out of the way, and says in the log that it was damaged, and how.
    pub fn take(&self, path: &Path, problem: impl Display) {
        match self.put_aside(path) {
            Ok(Some(aside)) => tracing::warn!(path = %path.display(), %problem, aside = %aside.display(), "damaged; it is put aside"),
            Ok(None) => tracing::warn!(path = %path.display(), %problem, "damaged; it is removed"),
            Err(error) => tracing::warn!(path = %path.display(), %problem, %error, "damaged, and cannot be taken out of the way"),
        }
    }

    /// Where it is now, or nowhere.
    fn put_aside(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let found = std::fs::symlink_metadata(path)?;
        if !found.is_file() || found.len() > LARGEST {
            return crate::remove(path).map(|()| None);
        }
        let moved = self.make_room().and_then(|()| {
            let aside = self.0.join(name_for(path));
            std::fs::rename(path, &aside).map(|()| aside)
        });
        match moved {
            Ok(aside) => Ok(Some(aside)),
            // Being out of the way matters more than being kept, on a full disk above all.
            Err(_) => crate::remove(path).map(|()| None),
        }
    }

    fn make_room(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)?;
        let mut names: Vec<_> = std::fs::read_dir(&self.0)?.flatten().map(|entry| entry.file_name()).collect();
        // They begin with the time.
        names.sort_unstable();
        let surplus = (names.len() + 1).saturating_sub(KEPT);
        names.iter().take(surplus).try_for_each(|name| crate::remove(&self.0.join(name)))
    }
}

/// The time, and the last two names of the path: a record is named for its subject or stands in a directory that is.
fn name_for(path: &Path) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let names: Vec<_> = path.iter().rev().take(2).map(|name| name.to_string_lossy()).collect();
    let names: Vec<_> = names.iter().rev().map(|name| name.as_ref()).collect();
    // A name has 255 bytes at most.
    let subject: String = names.join("-").chars().filter(|c| *c != '/').take(200).collect();
    format!("{:016x}-{subject}", now.as_nanos())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_last_few_small_files_are_kept() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = scratch.path().join("quarantine");
        let quarantine = Quarantine::at(directory.clone());
        let path = scratch.path().join("record.json");
        let kept = || -> Vec<String> {
            let mut names: Vec<_> =
                std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
            names.sort_unstable();
            names
        };
        for number in 0..KEPT + 5 {
            std::fs::write(&path, number.to_string()).unwrap();
            quarantine.take(&path, "rubbish");
            assert!(!path.exists());
        }
        assert_eq!(kept().len(), KEPT);
        let contents: Vec<_> = kept().iter().map(|name| std::fs::read_to_string(directory.join(name)).unwrap()).collect();
        assert_eq!(contents, (5..KEPT + 5).map(|number| number.to_string()).collect::<Vec<_>>(), "the last ones");
        assert!(kept().iter().all(|name| name.ends_with("record.json")));
        std::fs::create_dir_all(path.join("deep")).unwrap();
        quarantine.take(&path, "a directory");
        std::fs::write(&path, vec![0; 2 << 20]).unwrap();
        quarantine.take(&path, "large");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        quarantine.take(&path, "a link");
        assert!(std::fs::symlink_metadata(&path).is_err());
        assert_eq!(kept().len(), KEPT);
        quarantine.take(&path, "nothing is there");
    }

    #[test]
    fn what_cannot_be_kept_is_out_of_the_way_all_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let in_the_way = scratch.path().join("quarantine");
        std::fs::write(&in_the_way, "no directory").unwrap();
        let path = scratch.path().join("record.json");
        std::fs::write(&path, "{").unwrap();
        Quarantine::at(in_the_way).take(&path, "rubbish");
        assert!(!path.exists());
    }
}
