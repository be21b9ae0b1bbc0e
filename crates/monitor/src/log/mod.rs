//! Copying containers' output into their log files, in CRI's format.
//!
//! A container must never block or die because its log cannot be written: what the file does not take is lost and
//! counted, and readers find whole lines only.

mod entries;
mod file;
mod lines;
#[cfg(fuzzing)]
pub(crate) use lines::Lines as FuzzedLines;
pub(crate) mod time;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::io::{Errno, read};
use rustix::pipe::fcntl_setpipe_size;

use self::entries::{Entries, OUTPUT, Standing};
pub(crate) use self::file::Log;
use self::lines::Lines;

/// How many bytes are read at once.
const INPUT: usize = 64 << 10;
/// How many bytes the pipe of a busy stream holds, so that writer and monitor wake each other less often; within what
/// Linux allows everyone.
const WIDE: usize = 256 << 10;

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

/// What became of one turn of copying.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// There may be more to read.
    More,
    /// All that is there was read.
    Idle,
    /// All that is there was read, and nobody has the terminal open. Somebody may open it yet.
    Deserted,
    /// Nobody can write any more.
    Ended,
}

/// One of a container's output streams.
#[derive(Debug)]
pub(crate) struct Stream {
    source: OwnedFd,
    name: &'static str,
    lines: Lines,
    standing: Standing,
    /// Whether its pipe was made wider.
    wide: bool,
    /// What became of the last read.
    progress: Progress,
}

impl Stream {
    /// The stream that is read from `source` and called `name` (`stdout`, `stderr`) in the log.
    pub(crate) fn new(source: OwnedFd, name: &'static str) -> Self {
        Self { source, name, lines: Lines::default(), standing: Standing::default(), wide: false, progress: Progress::Idle }
    }

    /// What it is called in the log.
    pub(crate) fn name(&self) -> &'static str {
        self.name
    }

    /// What became of the last read.
    pub(crate) fn progress(&self) -> Progress {
        self.progress
    }

    /// Copies what one read gives.
    pub(crate) fn copy(&mut self, log: &mut Log, buffers: &mut Buffers) -> Progress {
        buffers.input.clear();
        let count = read(&self.source, spare_capacity(&mut buffers.input));
        let mut entries = Entries::new(self.name, &mut self.standing, log, &mut buffers.output);
        self.progress = match count {
            Ok(count) if count > 0 => {
                self.lines.push(&buffers.input, &mut |tag, content| entries.add(tag, content));
                Progress::More
            }
            Err(Errno::INTR) => Progress::More,
            Err(Errno::AGAIN) => Progress::Idle,
            closed => {
                self.lines.finish(&mut |tag, content| entries.add(tag, content));
                // Only a terminal answers EIO, and no longer than its other side is closed.
                if closed == Err(Errno::IO) { Progress::Deserted } else { Progress::Ended }
            }
        };
        entries.flush();
        if buffers.input.len() == INPUT && !self.wide {
            // Not all have one that can be: a terminal has none.
            (_, self.wide) = (fcntl_setpipe_size(&self.source, WIDE), true);
        }
        self.progress
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.source.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat, open};
    use rustix::io::write;
    use rustix::pipe::{PipeFlags, pipe_with};

    use super::*;
    use crate::protocol::Lost;

    /// A stream and who writes to it.
    struct Container {
        stream: Stream,
        sink: OwnedFd,
        buffers: Buffers,
    }

    impl Container {
        fn new() -> Self {
            let (source, sink) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
            Self { stream: Stream::new(source, "stdout"), sink, buffers: Buffers::new() }
        }

        fn writes(&mut self, input: &[u8], log: &mut Log) {
            for piece in input.chunks(64 << 10) {
                assert_eq!(write(&self.sink, piece), Ok(piece.len()));
                while self.stream.copy(log, &mut self.buffers) == Progress::More {}
            }
        }

        fn ends(mut self, log: &mut Log) {
            drop(self.sink);
            assert_eq!(self.stream.copy(log, &mut self.buffers), Progress::Ended);
        }
    }

    fn copy_all(input: &[u8], log: &mut Log) {
        let mut container = Container::new();
        container.writes(input, log);
        container.ends(log);
    }

    /// Entries without their times, and without what ends a torn one.
    fn entries(text: &[u8]) -> Vec<String> {
        let text = String::from_utf8_lossy(text);
        text.lines().filter_map(|line| Some(line.split_at_checked(31)?.1.to_owned())).collect()
    }

    #[test]
    fn entries_have_time_stream_tag_and_content() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pod/0.log");
        copy_all(b"hello\nrest", &mut Log::open(Some(&path)).unwrap());
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(entries(text.as_bytes()), ["stdout F hello", "stdout P rest"]);
        assert!(text.lines().all(|line| line.split_at(30).0.ends_with('Z')));
    }

    #[test]
    fn what_was_written_is_logged_byte_for_byte() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let bytes: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
        let input = [&bytes[..], b"\r\n\xff\xfe\n\0\n"].concat();
        copy_all(&input, &mut Log::open(Some(&path)).unwrap());
        let text = std::fs::read(&path).unwrap();
        let contents: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').map(|line| &line[40..]).collect();
        assert_eq!(contents.concat(), input);
    }

    #[test]
    fn what_the_file_does_not_take_is_lost_and_counted() {
        let mut log = Log::open(Some(Path::new("/dev/full"))).unwrap();
        copy_all(b"hello\nyou", &mut log);
        assert_eq!(log.lost(), Lost { entries: 2, bytes: 8 });
    }

    #[test]
    fn more_entries_than_one_write_takes_are_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let input: Vec<u8> = (0..20_000_u32).flat_map(|number| format!("{number}\n").into_bytes()).collect();
        copy_all(&input, &mut Log::open(Some(&path)).unwrap());
        let text = std::fs::read(&path).unwrap();
        let numbers = entries(&text).into_iter().map(|entry| entry[9..].parse::<u32>().unwrap());
        assert!(numbers.eq(0..20_000));
    }

    /// A log that takes a page or two, then nothing until it is read.
    fn tight(directory: &Path) -> (Log, OwnedFd) {
        let path = directory.join("0.log");
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let reader = open(&path, OFlags::RDONLY | OFlags::NONBLOCK, Mode::empty()).unwrap();
        fcntl_setpipe_size(&reader, 16 << 10).unwrap();
        (Log::open(Some(&path)).unwrap(), reader)
    }

    fn drain(reader: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 16];
        let count = read(reader, &mut bytes).unwrap_or_default();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn a_line_whose_end_is_lost_is_not_joined_with_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, reader) = tight(directory.path());
        fcntl_setpipe_size(&reader, 32 << 10).unwrap();
        let mut container = Container::new();
        // Of its three entries one fits, and most of another, which is completed later. The third is lost.
        container.writes(&[b'x'; 40_000], &mut log);
        container.writes(b"\n", &mut log);
        let begin = drain(&reader);
        log.forget_failure();
        container.writes(b"next\nlast\n", &mut log);
        let long = format!("stdout P {}", "x".repeat(16_384));
        assert_eq!(entries(&[begin, drain(&reader)].concat()), [&*long, &long, "stdout F ", "stdout F next", "stdout F last"]);
        assert_eq!(log.lost(), Lost { entries: 1, bytes: 40_000 - 2 * 16_384 });
        container.ends(&mut log);
    }

    #[test]
    fn a_line_whose_beginning_is_lost_is_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let (mut log, reader) = tight(directory.path());
        let mut container = Container::new();
        container.writes(&[&[b'x'; 16_384][..], b"\n"].concat(), &mut log);
        // The file has taken half of that, and takes nothing now.
        container.writes(&[b'y'; 20_000], &mut log);
        let begin = drain(&reader);
        log.forget_failure();
        container.writes(b"rest\nnext\n", &mut log);
        let whole = format!("stdout F {}", "x".repeat(16_384));
        assert_eq!(entries(&[begin, drain(&reader)].concat()), [&*whole, "stdout F next"]);
        assert_eq!(log.lost(), Lost { entries: 2, bytes: 20_004 });
        container.ends(&mut log);
    }

    #[test]
    fn a_busy_streams_pipe_is_made_wider() {
        let (source, sink) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).unwrap();
        let (mut stream, mut buffers) = (Stream::new(source, "stdout"), Buffers::new());
        let mut log = Log::open(None).unwrap();
        write(&sink, b"little\n").unwrap();
        stream.copy(&mut log, &mut buffers);
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&sink), Ok(64 << 10));
        assert_eq!(write(&sink, &[b'x'; INPUT]), Ok(INPUT));
        stream.copy(&mut log, &mut buffers);
        assert_eq!(rustix::pipe::fcntl_getpipe_size(&sink), Ok(WIDE));
    }
}
