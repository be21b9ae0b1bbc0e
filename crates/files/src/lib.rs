//! Small files of the daemon's own: records and blobs.
//!
//! They are read whole, from regular files only, so that whatever stands in their place is an error and nothing to
//! wait for; they are replaced at once, so that a reader sees the old content or the new; and what is damaged is put
//! aside. What is in them is not this crate's to know.

#![forbid(unsafe_code)]

mod quarantine;
mod twin;

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use coracle_failpoint::{Point, reach};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;

pub use quarantine::Quarantine;
pub use twin::{Reserve, replace_in_turn};

/// No file of ours comes near; a sparse one would fill the memory.
const LARGEST: usize = 64 << 20;
/// For root alone.
const PRIVATE: Mode = Mode::RUSR.union(Mode::WUSR);

/// Reads a whole file.
///
/// # Errors
/// It is no regular file (a link is none), is longer than 64 MiB, or cannot be read.
pub fn read(path: &Path) -> io::Result<Vec<u8>> {
    let file = open(path, OFlags::RDONLY)?;
    let length = file.metadata()?.len();
    if length > LARGEST as u64 {
        return Err(damaged(format!("{length} bytes are too many")));
    }
    let mut content = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(LARGEST as u64).read_to_end(&mut content)?;
    Ok(content)
}

/// Replaces the file at `path`, so that a process that is killed leaves the old content or the new.
///
/// # Errors
/// There is no room for a second file, the directory is not there, or the content is longer than what is read.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    must_be_readable(content.len())?;
    let mut draft = path.as_os_str().to_owned();
    draft.push(".new");
    let draft = Path::new(&draft);
    let written = open_to_write(draft).and_then(|mut file| {
        file.set_len(0)?;
        file.write_all(content)
    });
    let replaced = written.and_then(|()| {
        reach(Point::NoteDraft);
        match std::fs::rename(draft, path) {
            Err(error) if error.kind() == io::ErrorKind::IsADirectory => remove(path).and_then(|()| std::fs::rename(draft, path)),
            renamed => renamed,
        }
    });
    if replaced.is_err() {
        // What it takes is missing elsewhere.
        let _ = std::fs::remove_file(draft);
    } else {
        reach(Point::NoteRename);
    }
    replaced
}

/// Makes sure that nothing is at `path`, whatever it is.
///
/// # Errors
/// The file system refuses.
pub fn remove(path: &Path) -> io::Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    removed.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

/// Opens or makes a file that is ours to overwrite. What else has its name goes.
fn open_to_write(path: &Path) -> io::Result<File> {
    match open(path, OFlags::RDWR | OFlags::CREATE) {
        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
            remove(path)?;
            open(path, OFlags::RDWR | OFlags::CREATE)
        }
        opened => opened,
    }
}

/// Opens a regular file. Nothing that stands in its place is followed or waited for.
fn open(path: &Path, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, PRIVATE) {
        Err(Errno::LOOP) => return Err(damaged("it is a symbolic link")),
        Err(Errno::ISDIR) => return Err(damaged("it is a directory")),
        // A socket, or a pipe without a reader.
        Err(Errno::NXIO) => return Err(damaged("it is no regular file")),
        opened => opened?,
    };
    match FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) {
        FileType::RegularFile => Ok(file.into()),
        FileType::Directory => Err(damaged("it is a directory")),
        _ => Err(damaged("it is no regular file")),
    }
}

/// Refuses to write what would not be read again.
fn must_be_readable(length: usize) -> io::Result<()> {
    if length <= LARGEST {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("{length} bytes are too many")))
}

fn damaged(problem: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_read_and_nothing_is_waited_for() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        std::fs::write(path("file"), "content").unwrap();
        assert_eq!(read(&path("file")).unwrap(), b"content");
        std::fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink("file", path("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, path("pipe"), FileType::Fifo, PRIVATE, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        File::create(path("endless")).unwrap().set_len(LARGEST as u64 + 1).unwrap();
        for name in ["directory", "link", "pipe", "socket", "endless"] {
            assert_eq!(read(&path(name)).unwrap_err().kind(), io::ErrorKind::InvalidData, "{name}");
        }
        assert_eq!(read(&path("absent")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn a_replacement_is_whole_and_leaves_no_draft() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        for content in ["one, and long", "two"] {
            replace(&path, content.as_bytes()).unwrap();
            assert_eq!(read(&path).unwrap(), content.as_bytes());
        }
        std::os::unix::fs::symlink("/dev/full", scratch.path().join("file.new")).unwrap();
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir_all(path.join("in/the/way")).unwrap();
        replace(&path, b"three").unwrap();
        assert_eq!(read(&path).unwrap(), b"three");
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_would_not_be_read_is_not_written() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("file");
        let longest = vec![b' '; LARGEST + 1];
        for content in [&longest[..], &longest[1..]] {
            replace(&path, b"old").unwrap();
            let replaced = replace(&path, content);
            assert_eq!(replaced.is_ok(), content.len() == LARGEST);
            assert_eq!(read(&path).unwrap() == b"old", replaced.is_err());
            replace_in_turn(&path, b"old", 0, Reserve::Required).unwrap();
            assert_eq!(replace_in_turn(&path, content, 1, Reserve::Required).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(read(&path).unwrap().trim_ascii_end(), b"old");
            assert_eq!(replace_in_turn(&path, content, 1, Reserve::Welcome).is_ok(), content.len() == LARGEST);
            read(&path).unwrap();
        }
    }

    #[test]
    fn whatever_it_is_it_can_be_removed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = |name: &str| scratch.path().join(name);
        std::fs::write(path("kept"), "").unwrap();
        std::fs::write(path("file"), "").unwrap();
        std::os::unix::fs::symlink("kept", path("link")).unwrap();
        std::fs::create_dir_all(path("directory/deep")).unwrap();
        for name in ["file", "link", "directory", "absent"] {
            remove(&path(name)).unwrap();
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    }
}
