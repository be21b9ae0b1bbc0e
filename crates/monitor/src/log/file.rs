//! A container's log file: appended to, opened anew, and never waited for.
//!
//! What it does not take is lost, and counted. It is left with whole entries: one that went in by half is taken off
//! again. Where that fails too (a copy-on-write file system needs room for it, and btrfs fills with zeros what it then does
//! not take off), it is kept in mind, and is taken off and written once more before anything else is.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use memchr::{memchr, memrchr};
use rustix::fs::{FileType, Mode, OFlags, fstat, ftruncate, open};
use rustix::io::{Errno, write};

use super::entries::HEAD;
use crate::fault::{OrFault, Result};
use crate::protocol::{LogLoss, Lost};

/// After a failure the file is left alone for so long: on a full disk every attempt may take the file system a while,
/// and what it is offered meanwhile would be a line here and there.
const REST: Duration = Duration::from_millis(100);
/// Losses are told at once, and then no oftener than this.
const BETWEEN_NEWS: Duration = Duration::from_secs(10);

/// A container's log file, or the absence of one.
#[derive(Debug)]
pub(crate) struct Log {
    path: Option<PathBuf>,
    file: Option<OwnedFd>,
    /// The last entry, if that is half in it.
    torn: Option<Torn>,
    /// When it last failed.
    failed_at: Option<Instant>,
    /// How.
    error: Errno,
    lost: Lost,
    told: Lost,
    told_at: Option<Instant>,
}

/// An entry that went in by half and could not be taken off again.
#[derive(Debug)]
struct Torn {
    entry: Vec<u8>,
    /// How much of it is in the file.
    inside: usize,
    /// Bytes of output in it; `None`: it is lost already, and this only ends it.
    content: Option<u64>,
}

impl Log {
    /// Opens the log at `path` to append to it, made with its directories if it is missing.
    pub(crate) fn open(path: Option<&Path>) -> Result<Self> {
        let file = path.map(open_file).transpose()?;
        let (lost, told) = (Lost::default(), Lost::default());
        Ok(Self { path: path.map(Path::to_owned), file, torn: None, failed_at: None, error: Errno::IO, lost, told, told_at: None })
    }

    /// Opens it anew under its path; if that fails the old file stays in use.
    pub(crate) fn reopen(&mut self) -> Result<()> {
        if let Some(path) = &self.path {
            let file = open_file(path)?;
            self.finish();
            (self.file, self.torn, self.failed_at) = (Some(file), None, None);
        }
        Ok(())
    }

    /// The last chance for half an entry to be completed: else it is lost.
    pub(crate) fn finish(&mut self) {
        if self.mend().is_ok() {
            return;
        }
        if let Some(content) = self.torn.as_mut().and_then(|torn| torn.content.take()) {
            self.lose(1, content);
            self.torn = Some(Torn { entry: b"\n".to_vec(), inside: 0, content: None });
        }
    }

    /// Makes the last entry whole.
    fn mend(&mut self) -> std::result::Result<(), Option<Errno>> {
        let (Some(file), Some(torn)) = (&self.file, &mut self.torn) else { return Ok(()) };
        match take_off(file, torn.inside) {
            // Somebody has emptied the file since.
            Ok(()) | Err(Errno::INVAL) => torn.inside = 0,
            // What a pipe has taken stays as it is.
            Err(Errno::SPIPE) => {}
            Err(error) => return Err(Some(error)),
        }
        let (written, error) = write_all(file, torn.entry.get(torn.inside..).unwrap_or_default());
        torn.inside += written;
        if torn.inside < torn.entry.len() {
            return Err(error);
        }
        self.torn = None;
        Ok(())
    }

    /// How much could not be written.
    pub(crate) fn lost(&self) -> Lost {
        self.lost
    }

    /// Counts an entry as lost.
    pub(super) fn lose(&mut self, entries: u64, bytes: u64) {
        self.lost.entries += entries;
        self.lost.bytes += bytes;
    }

    /// What was lost, if it is time to tell: of a log that is at rest, all that was not told yet.
    pub(crate) fn news(&mut self, at_rest: bool) -> Option<LogLoss> {
        if self.lost == self.told || !(at_rest || self.told_at.is_none_or(|at| at.elapsed() >= BETWEEN_NEWS)) {
            return None;
        }
        (self.told, self.told_at) = (self.lost, Some(Instant::now()));
        Some(LogLoss { path: self.path.clone().unwrap_or_default(), lost: self.lost, errno: self.error.raw_os_error() })
    }

    /// Appends entries. Returns how many bytes of them it took, which are whole entries; of the last one it may still
    /// have to write a part.
    pub(super) fn write(&mut self, entries: &[u8]) -> usize {
        if self.failed_at.is_some_and(|at| at.elapsed() < REST) {
            return 0;
        }
        if let Err(error) = self.mend() {
            return self.fail(error, 0);
        }
        let Some(file) = &self.file else { return entries.len() };
        let (written, error) = write_all(file, entries);
        if written == entries.len() {
            return written;
        }
        let whole = entries.get(..written).and_then(|part| memrchr(b'\n', part)).map_or(0, |end| end + 1);
        if take_off(file, written - whole).is_ok() {
            return self.fail(error, whole);
        }
        let entry = entries.get(whole..).unwrap_or_default();
        let entry = memchr(b'\n', entry).and_then(|end| entry.get(..=end)).unwrap_or(entry);
        let content = entry.len().saturating_sub(HEAD + 1) as u64;
        self.torn = Some(Torn { entry: entry.to_vec(), inside: written - whole, content: Some(content) });
        self.fail(error, whole + entry.len())
    }

    fn fail(&mut self, error: Option<Errno>, taken: usize) -> usize {
        (self.error, self.failed_at) = (error.unwrap_or(Errno::IO), Some(Instant::now()));
        taken
    }
}

/// How much of `bytes` the file took, and why no more.
fn write_all(file: &OwnedFd, bytes: &[u8]) -> (usize, Option<Errno>) {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match write(file, rest) {
            Ok(0) => return (written, None),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return (written, Some(error)),
        }
    }
    (written, None)
}

/// Takes so many bytes off the file's end. ESPIPE: it is no file; EINVAL: it has fewer.
fn take_off(file: &OwnedFd, count: usize) -> rustix::io::Result<()> {
    if count == 0 {
        return Ok(());
    }
    let found = fstat(file)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(Errno::SPIPE);
    }
    let size = u64::try_from(found.st_size).ok().and_then(|size| size.checked_sub(count as u64));
    ftruncate(file, size.ok_or(Errno::INVAL)?)
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

#[cfg(test)]
mod tests {
    use rustix::pipe::fcntl_setpipe_size;

    use super::*;

    impl Log {
        /// The next attempt need not wait.
        pub(crate) fn forget_failure(&mut self) {
            self.failed_at = None;
        }
    }

    /// A log into a pipe of one page, which nothing can be taken off again.
    fn narrow() -> (tempfile::TempDir, Log, OwnedFd) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        let log = Log::open(Some(&path)).unwrap();
        fcntl_setpipe_size(&reader, 4096).unwrap();
        (directory, log, reader)
    }

    fn drain(reader: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let count = rustix::io::read(reader, &mut bytes).unwrap_or_default();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn half_an_entry_that_cannot_be_taken_off_is_completed() {
        let (_directory, mut log, reader) = narrow();
        let entries = [&b"whole\n"[..], &[b'x'; 5000], b"\n", b"lost\n"].concat();
        assert_eq!(log.write(&entries), 6 + 5001);
        assert_eq!(drain(&reader), entries[..4096]);
        log.forget_failure();
        assert_eq!(log.write(b"next\n"), 5);
        assert_eq!(drain(&reader), [&entries[4096..6 + 5001], b"next\n"].concat());
        log.finish();
        assert_eq!(log.lost(), Lost::default());
    }

    #[test]
    fn half_an_entry_that_cannot_be_completed_in_time_is_lost_and_ended() {
        let (_directory, mut log, reader) = narrow();
        let entry = [&[b' '; HEAD][..], &[b'x'; 5000], b"\n"].concat();
        assert_eq!(log.write(&entry), entry.len());
        for _ in 0..2 {
            log.finish();
            assert_eq!(log.lost(), Lost { entries: 1, bytes: 5000 });
        }
        assert_eq!(drain(&reader), entry[..4096]);
        log.forget_failure();
        assert_eq!(log.write(b"next\n"), 5);
        assert_eq!(drain(&reader), b"\nnext\n");
    }

    #[test]
    fn a_file_that_is_left_for_another_is_left_whole() {
        let (directory, mut log, reader) = narrow();
        let entry = [&[b'x'; 5000][..], b"\n"].concat();
        assert_eq!(log.write(&entry), entry.len());
        let begin = drain(&reader);
        std::fs::rename(directory.path().join("0.log"), directory.path().join("old")).unwrap();
        log.reopen().unwrap();
        assert_eq!([begin, drain(&reader)].concat(), entry);
        assert_eq!(log.write(b"next\n"), 5);
        assert_eq!(std::fs::read_to_string(directory.path().join("0.log")).unwrap(), "next\n");
    }

    #[test]
    fn a_file_that_failed_is_left_alone_for_a_while() {
        let (_directory, mut log, reader) = narrow();
        log.write(&[b'x'; 8192]);
        drain(&reader);
        assert_eq!(log.write(b"next\n"), 0);
        assert_eq!(drain(&reader), b"");
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_no_log_and_is_not_waited_for() {
        let (directory, log, reader) = narrow();
        drop((log, reader));
        let fault = Log::open(Some(&directory.path().join("0.log"))).unwrap_err();
        assert_eq!((fault.stage.as_str(), fault.errno), ("opening the log", Errno::NXIO.raw_os_error()));
    }

    #[test]
    fn an_entry_begun_is_taken_off_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::fs::write(&path, "whole\nto").unwrap();
        let file = open_file(&path).unwrap();
        take_off(&file, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "whole\n");
        assert_eq!(take_off(&file, 7), Err(Errno::INVAL));
    }

    /// On file systems where taking off may fail too.
    #[test]
    fn an_entry_kept_in_mind_is_written_once_more() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        for (content, expected) in [("whole\nto\0", "whole\ntorn\nnext\n"), ("", "torn\nnext\n")] {
            std::fs::write(&path, content).unwrap();
            let mut log = Log::open(Some(&path)).unwrap();
            log.torn = Some(Torn { entry: b"torn\n".to_vec(), inside: 3, content: Some(4) });
            assert_eq!(log.write(b"next\n"), 5);
            assert_eq!(std::fs::read_to_string(&path).unwrap(), expected);
        }
    }

    #[test]
    fn a_link_in_the_logs_place_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        std::os::unix::fs::symlink("/etc/passwd", &path).unwrap();
        assert_eq!(Log::open(Some(&path)).unwrap_err().errno, Errno::LOOP.raw_os_error());
    }

    #[test]
    fn a_log_that_cannot_be_opened_anew_stays_in_its_old_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod/0.log");
        let mut log = Log::open(Some(&path)).unwrap();
        let old = directory.path().join("old");
        std::fs::rename(directory.path().join("pod"), &old).unwrap();
        std::fs::write(directory.path().join("pod"), "in the way").unwrap();
        let fault = log.reopen().unwrap_err();
        assert_eq!((fault.stage.as_str(), fault.errno), ("opening the log", Errno::NOTDIR.raw_os_error()));
        assert!(fault.subject.ends_with("pod/0.log"));
        assert_eq!(log.write(b"goes on\n"), 8);
        assert_eq!(std::fs::read_to_string(old.join("0.log")).unwrap(), "goes on\n");
        std::fs::remove_file(directory.path().join("pod")).unwrap();
        log.reopen().unwrap();
        log.reopen().unwrap();
        assert_eq!(log.write(b"anew\n"), 5);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "anew\n");
    }

    #[test]
    fn losses_are_told_at_once_then_seldom_and_all_of_them_at_rest() {
        let mut log = Log::open(Some(Path::new("/dev/full"))).unwrap();
        assert!(log.news(true).is_none());
        assert_eq!(log.write(b"x\n"), 0);
        log.lose(1, 1);
        let loss = log.news(false).unwrap();
        assert_eq!((loss.lost, loss.errno), (Lost { entries: 1, bytes: 1 }, Errno::NOSPC.raw_os_error()));
        log.lose(1, 1);
        assert!(log.news(false).is_none());
        assert_eq!(log.news(true).unwrap().lost.entries, 2);
        assert!(log.news(true).is_none());
    }
}
