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
use rustix::fs::{CWD, RenameFlags};
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
/// The text takes more room than was kept and there is none, or, where it is required, there is none to keep.
pub fn replace_in_turn(path: &Path, text: &[u8], growth: usize, reserve: Reserve) -> io::Result<()> {
    let spare = spare_of(path);
    let size = (text.len() + growth).next_multiple_of(BLOCK);
    fill(&crate::open_to_write(&spare)?, text, size, reserve)?;
    reach(Point::RecordDraft);
    let first = match rustix::fs::renameat_with(CWD, &spare, CWD, path, RenameFlags::EXCHANGE) {
        // There is nothing to change places with, or the file system cannot.
        Err(Errno::NOENT | Errno::INVAL | Errno::NOSYS) => {
            std::fs::rename(&spare, path)?;
            true
        }
        exchanged => exchanged.map(|()| false)?,
    };
    reach(Point::RecordRename);
    // The next content must find as much room.
    let next = crate::open_to_write(&spare)
        .and_then(|next| if first || next.metadata()?.len() < size as u64 { pad(&next, 0, size) } else { Ok(()) });
    if reserve == Reserve::Required { next } else { Ok(()) }
}

/// Where the next content goes.
fn spare_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".spare");
    name.into()
}

fn fill(file: &File, text: &[u8], size: usize, reserve: Reserve) -> io::Result<()> {
    let held = usize::try_from(file.metadata()?.len()).unwrap_or(usize::MAX).max(text.len());
    file.write_all_at(text, 0)?;
    pad(file, text.len(), held)?;
    let kept = pad(file, held, size);
    if reserve == Reserve::Required { kept } else { Ok(()) }
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
