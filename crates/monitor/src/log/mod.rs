//! Copying containers' output into their log files, in CRI's format.
//!
//! A container must never block or die because its log cannot be written: what the file does not take is dropped
//! and counted, and the file is left with whole entries only.

mod lines;
pub(crate) mod time;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::buffer::spare_capacity;
use rustix::fs::{Mode, OFlags, fstat, ftruncate, open};
use rustix::io::{Errno, read, write};

use self::lines::{Lines, Tag};
use crate::fault::{OrFault, Result};

const INPUT: usize = 32 << 10;
const OUTPUT: usize = 64 << 10;

/// Memory for copying, shared by all streams of a monitor.
#[derive(Debug)]
pub(crate) struct Buffers {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Buffers {
    /// What the last read gave.
    pub(crate) fn read(&self) -> &[u8] {
        &self.input
    }

    /// Empty ones; pages are taken as they are touched.
    pub(crate) fn new() -> Self {
        Self { input: Vec::with_capacity(INPUT), output: Vec::with_capacity(OUTPUT) }
    }
}

/// A container's log file, or the absence of one.
#[derive(Debug)]
pub(crate) struct Log {
    path: Option<PathBuf>,
    file: Option<OwnedFd>,
    dropped: u64,
}

impl Log {
    /// Opens the log at `path` to append to it, made with its directories if it is missing.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let file = path.map(open_file).transpose()?;
        Ok(Self { path: path.map(Path::to_owned), file, dropped: 0 })
    }

    /// Opens it anew under its path; if that fails the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            self.file = Some(open_file(path)?);
        }
        Ok(())
    }

    /// How many bytes of entries could not be written.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped
    }

    fn write(&mut self, entries: &[u8]) {
        let Some(file) = &self.file else { return };
        let mut written = 0;
        while let Some(rest) = entries.get(written..).filter(|rest| !rest.is_empty()) {
            match write(file, rest) {
                Ok(count) if count > 0 => written += count,
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => {
                    self.dropped += (entries.len() - cut_to_whole_entries(file, entries, written)) as u64;
                    return;
                }
            }
        }
    }
}

/// Takes the beginning of an entry off the file again; returns how many bytes of `entries` are left in it.
fn cut_to_whole_entries(file: &OwnedFd, entries: &[u8], written: usize) -> usize {
    let whole = entries.get(..written).and_then(|part| memchr::memrchr(b'\n', part)).map_or(0, |end| end + 1);
    let torn = (written - whole) as u64;
    let size = fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
    match size.and_then(|size| size.checked_sub(torn)) {
        Some(size) if torn > 0 && ftruncate(file, size).is_ok() => whole,
        _ => written,
    }
}

fn open_file(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let mode = Mode::from_raw_mode(0o640);
    let file = match open(path, flags, mode) {
        Err(Errno::NOENT) => {
            let directory = path.parent().unwrap_or(path);
            std::fs::create_dir_all(directory).or_fault("making the log's directory", directory.display())?;
            open(path, flags, mode)
        }
        done => done,
    };
    file.or_fault("opening the log", path.display())
}

/// What became of one turn of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more to read.
    More,
    /// All that is there was read.
    Idle,
    /// Nobody can write any more.
    Ended,
}

/// One of a container's output streams.
#[derive(Debug)]
pub(crate) struct Stream {
    source: OwnedFd,
    name: &'static str,
    lines: Lines,
    ended: bool,
}

impl Stream {
    /// The stream that is read from `source` and called `name` (`stdout`, `stderr`) in the log.
    pub(crate) fn new(source: OwnedFd, name: &'static str) -> Self {
        Self { source, name, lines: Lines::default(), ended: false }
    }

    /// What it is called in the log.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// Whether nobody can write to it any more.
    pub(crate) fn ended(&self) -> bool {
        self.ended
    }

    /// Copies what one read gives.
    pub(crate) fn copy(&mut self, log: &mut Log, buffers: &mut Buffers) -> Progress {
        buffers.input.clear();
        let count = read(&self.source, spare_capacity(&mut buffers.input));
        let mut entries = Entries::new(self.name, log, &mut buffers.output);
        let progress = match count {
            Ok(count) if count > 0 => {
                self.lines.push(&buffers.input, &mut |tag, content| entries.add(tag, content));
                Progress::More
            }
            Err(Errno::INTR) => Progress::More,
            Err(Errno::AGAIN) => Progress::Idle,
            // A terminal whose other side is closed answers EIO.
            Ok(_) | Err(_) => {
                self.ended = true;
                self.lines.finish(&mut |tag, content| entries.add(tag, content));
                Progress::Ended
            }
        };
        entries.flush();
        progress
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

/// Entries on their way into a log. All of one read carry the time at which it was made.
struct Entries<'a> {
    prefix: Vec<u8>,
    log: &'a mut Log,
    output: &'a mut Vec<u8>,
}

impl<'a> Entries<'a> {
    fn new(name: &str, log: &'a mut Log, output: &'a mut Vec<u8>) -> Self {
        let mut prefix = Vec::with_capacity(40);
        prefix.extend_from_slice(&time::format(time::now()));
        prefix.push(b' ');
        prefix.extend_from_slice(name.as_bytes());
        Self { prefix, log, output }
    }

    fn add(&mut self, tag: Tag, content: &[u8]) {
        let tag: &[u8] = match tag {
            Tag::Full => b" F ",
            Tag::Partial => b" P ",
        };
        if self.output.len() + self.prefix.len() + tag.len() + content.len() + 1 > OUTPUT {
            self.flush();
        }
        for part in [&self.prefix, tag, content, b"\n"] {
            self.output.extend_from_slice(part);
        }
    }

    fn flush(&mut self) {
        self.log.write(self.output);
        self.output.clear();
    }
}

#[cfg(test)]
mod tests {
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;

    fn copy_all(input: &[u8], log: &mut Log) {
        let (source, sink) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        write(&sink, input).unwrap();
        drop(sink);
        let (mut stream, mut buffers) = (Stream::new(source, "stdout"), Buffers::new());
        while stream.copy(log, &mut buffers) == Progress::More {}
    }

    #[test]
    fn entries_have_time_stream_tag_and_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod/0.log");
        copy_all(b"hello\nrest", &mut Log::open(Some(&path)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        let entries: Vec<(&str, &str)> = text.lines().map(|line| line.split_at(30)).collect();
        assert_eq!(entries.iter().map(|(_, rest)| *rest).collect::<Vec<_>>(), [" stdout F hello", " stdout P rest"]);
        assert!(entries.iter().all(|(time, _)| time.ends_with('Z')));
    }

    #[test]
    fn what_the_file_does_not_take_is_dropped_and_counted() {
        let mut log = Log::open(Some(Path::new("/dev/full"))).unwrap();
        copy_all(b"hello\n", &mut log);
        assert_eq!(log.dropped(), 30 + " stdout F hello\n".len() as u64);
    }

    #[test]
    fn an_entry_begun_is_taken_off_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, "whole\nto").unwrap();
        let file = open_file(&path).unwrap();
        assert_eq!(cut_to_whole_entries(&file, b"whole\ntorn\n", 8), 6);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\n");
    }

    #[test]
    fn a_link_in_the_logs_place_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(Log::open(Some(&path)).unwrap_err().errno, Errno::LOOP.raw_os_error());
    }
}
