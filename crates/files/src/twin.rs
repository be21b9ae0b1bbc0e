//! Replacing a file where there may be no room for another one.
//!
//! ```text
//! record.json        the content, padded with blanks
//! record.json.spare  the one before; the next content is written into it, and the two change places
//! ```
//!
//! Neither needs a new inode or a new block as long as the content fits, so a full file system does not keep anybody
//! from writing down that something has ended. Blanks at the end mean nothing in JSON.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use coracle_failpoint::{Point, reach};
use rustix::fs::{CWD, OFlags, RenameFlags};
use rustix::io::Errno;

/// What file systems give out.
const BLOCK: usize = 4096;

/// Whether room for later is a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserve {
    /// Without it nothing is replaced.
    Required,
    /// It is taken where there is some.
    Welcome,
}

/// Replaces the text at `path`, keeping room for it to grow by `growth` bytes. Readers see the old or the new, whole.
///
/// # Errors
/// The text takes more room than was kept and there is none, or, where it is required, there is none to keep. With the room it is
/// longer than what is read.
pub fn replace_in_turn(path: &Path, text: &[u8], growth: usize, reserve: Reserve) -> io::Result<()> {
    let spare = spare_of(path);
    let wanted = (text.len() + growth).next_multiple_of(BLOCK);
    crate::must_be_readable(if reserve == Reserve::Required { wanted } else { text.len() })?;
    let size = wanted.min(crate::LARGEST);
    let draft = crate::open_to_write(&spare)?;
    fill(&draft, text)?;
    keep_room(&draft, size, reserve)?;
    // The next content must find as much room: it goes into what is replaced now.
    let next = in_use(path)?;
    next.as_ref().map_or(Ok(()), |next| keep_room(next, size, reserve))?;
    reach(Point::RecordDraft);
    let moved = match rustix::fs::renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE) {
        // There is nothing to change places with, or the file system cannot.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
            std::fs::rename(&spare, path)?;
            true
        }
        exchanged => exchanged.map(|()| false)?,
    };
    reach(Point::RecordRename);
    if !moved && next.is_some() {
        return Ok(());
    }
    let made = crate::open_to_write(&spare).and_then(|next| keep_room(&next, size, reserve));
    if reserve == Reserve::Required { made } else { Ok(()) }
}

/// Where the next content goes.
fn spare_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".spare");
    name.into()
}

/// The file at `path` as it is; `None`: there is none, or something else has its name.
fn in_use(path: &Path) -> io::Result<Option<File>> {
    match crate::open(path, OFlags::RDWR) {
        Ok(file) => Ok(Some(file)),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces a file's content, and none of its room goes.
fn fill(file: &File, text: &[u8]) -> io::Result<()> {
    file.write_all_at(text, 0)?;
    pad(file, text.len(), length_of(file)?)
}

/// Makes a file at least as long as `size`.
fn keep_room(file: &File, size: usize, reserve: Reserve) -> io::Result<()> {
    let kept = pad(file, length_of(file)?, size);
    if reserve == Reserve::Required { kept } else { Ok(()) }
}

fn length_of(file: &File) -> io::Result<usize> {
    Ok(usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX))
}

/// Writes blanks from `start` to `end`, if that is further.
fn pad(file: &File, start: usize, end: usize) -> io::Result<()> {
    const BLANKS: [u8; BLOCK] = [b' '; BLOCK];
    let mut at = start;
    while at < end {
        let blanks = BLANKS.get(..(end - at).min(BLOCK)).unwrap_or_default();
        file.write_all_at(blanks, at as u64)?;
        at += blanks.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    fn text_of(path: &Path) -> String {
        String::from_utf8(crate::read(path).unwrap()).unwrap().trim_end().to_owned()
    }

    #[test]
    fn the_two_files_take_turns_and_keep_their_room() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("record.json");
        let mut inodes = Vec::new();
        for text in ["one", "two, which is longer", "3"] {
            replace_in_turn(&path, text.as_bytes(), 100, Reserve::Required).unwrap();
            assert_eq!(text_of(&path), text);
            let sizes = [&path, &spare_of(&path)].map(|path| path.metadata().unwrap().len());
            assert_eq!(sizes, [4096, 4096]);
            inodes.push(path.metadata().unwrap().ino());
        }
        assert_eq!(inodes[0], inodes[2], "no third file is made");
        let long = "x".repeat(10_000);
        replace_in_turn(&path, long.as_bytes(), 5000, Reserve::Required).unwrap();
        assert_eq!([&path, &spare_of(&path)].map(|path| path.metadata().unwrap().len()), [16_384, 16_384]);
        replace_in_turn(&path, b"short", 0, Reserve::Welcome).unwrap();
        assert_eq!(text_of(&path), "short");
    }

    #[test]
    fn without_room_for_both_nothing_is_replaced() {
        let scratch = tempfile::tempdir().unwrap();
        let (directory, program) = (scratch.path().display(), std::env::current_exe().unwrap());
        let inner = "twin::tests::on_a_file_system_of_three_blocks";
        let script =
            format!("mount -t tmpfs -o size=12k none {directory}; TMPDIR={directory} {} --ignored --exact {inner}", program.display());
        let output = std::process::Command::new("unshare").args(["--mount", "sh", "-ec", &script]).output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success() && said.contains("1 passed"), "{said}");
    }

    #[test]
    #[ignore = "run by without_room_for_both_nothing_is_replaced"]
    fn on_a_file_system_of_three_blocks() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("record.json");
        replace_in_turn(&path, b"old", 0, Reserve::Required).unwrap();
        let long = vec![b'x'; BLOCK + 1];
        let refused = replace_in_turn(&path, &long, 0, Reserve::Required).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::StorageFull);
        assert_eq!(text_of(&path), "old", "of what failed nothing is on record");
        replace_in_turn(&path, b"new", 0, Reserve::Required).unwrap();
        assert_eq!(text_of(&path), "new");
    }

    #[test]
    fn what_was_damaged_by_others_is_replaced_all_the_same() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("record.json");
        for damaged in [&path, &spare_of(&path)] {
            replace_in_turn(&path, b"one", 0, Reserve::Required).unwrap();
            std::fs::remove_file(damaged).unwrap();
            std::fs::create_dir(damaged).unwrap();
            replace_in_turn(&path, b"two", 0, Reserve::Required).unwrap();
            assert_eq!(text_of(&path), "two");
            std::fs::remove_file(damaged).unwrap();
            replace_in_turn(&path, b"three", 0, Reserve::Required).unwrap();
            assert_eq!(text_of(&path), "three");
        }
    }
}
