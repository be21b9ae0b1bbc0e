//! CRI log files: `TIME stdout|stderr F|P CONTENT` lines (the design document "CRI: Log management for container
//! stdout/stderr streams" of the Kubernetes node group). A line of a container that is longer than the runtime's
//! buffer is several `P` entries and a last `F`, and the two streams' entries mix; joined means put together again.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};

use coracle_domain::During;

use super::error::Result;
use super::time::Timestamp;

/// Where a container wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}

/// One line of a log file.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry<'a> {
    pub(crate) time: &'a str,
    pub(crate) stream: Stream,
    /// Whether the container's line goes on in the stream's next entry.
    pub(crate) partial: bool,
    pub(crate) content: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Reads a line without its newline.
    pub(crate) fn parse(line: &'a [u8]) -> Option<Self> {
        let mut fields = line.splitn(4, |byte| *byte == b' ');
        let time = str::from_utf8(fields.next()?).ok().filter(|time| !time.is_empty())?;
        let stream = match fields.next()? {
            b"stdout" => Stream::Stdout,
            b"stderr" => Stream::Stderr,
            _ => return None,
        };
        // More tags may follow the first after colons.
        let partial = match fields.next()?.split(|byte| *byte == b':').next()? {
            b"P" => true,
            b"F" => false,
            _ => return None,
        };
        Some(Self { time, stream, partial, content: fields.next().unwrap_or_default() })
    }
}

/// For each stream, whether a line of the container's is under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Open {
    stdout: bool,
    stderr: bool,
}

impl Open {
    fn of(&mut self, stream: Stream) -> &mut bool {
        match stream {
            Stream::Stdout => &mut self.stdout,
            Stream::Stderr => &mut self.stderr,
        }
    }
}

/// A place in a log file from which it can be printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Position {
    offset: u64,
    open: Open,
}

/// The complete lines of a file that may still grow.
#[derive(Debug)]
pub(crate) struct Lines {
    file: BufReader<File>,
    line: Vec<u8>,
    /// Where `line` begins.
    offset: u64,
    complete: bool,
}

impl Lines {
    /// The longest line that is taken for one; runtimes split at 16 KiB.
    const LONGEST: usize = 4 << 20;

    /// From the beginning.
    pub(crate) fn new(file: File) -> Self {
        Self { file: BufReader::with_capacity(1 << 16, file), line: Vec::new(), offset: 0, complete: false }
    }

    /// The next complete line, without its newline. None at the file's present end; more may come later.
    pub(crate) fn next(&mut self) -> io::Result<Option<&[u8]>> {
        if self.complete {
            self.offset += self.line.len() as u64;
            self.line.clear();
        }
        let room = Self::LONGEST.saturating_sub(self.line.len());
        self.file.by_ref().take(room as u64).read_until(b'\n', &mut self.line)?;
        let ended = self.line.ends_with(b"\n");
        self.complete = ended || self.line.len() >= Self::LONGEST;
        let content = if ended { self.line.strip_suffix(b"\n") } else { Some(self.line.as_slice()) };
        Ok(content.filter(|_| self.complete))
    }

    /// Goes to a position that [`tail`](Self::tail) found.
    fn seek(&mut self, offset: u64) -> io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.line.clear();
        self.complete = false;
        self.offset = offset;
        Ok(())
    }

    /// Where the last `count` lines of the container begin. Goes to the file's end.
    fn tail(&mut self, count: usize) -> io::Result<Position> {
        let mut open = Open::default();
        let mut starts = VecDeque::new();
        while self.next()?.is_some() {
            let position = Position { offset: self.offset, open };
            if let Some(entry) = Entry::parse(self.line.strip_suffix(b"\n").unwrap_or(&self.line)) {
                let goes_on = std::mem::replace(open.of(entry.stream), entry.partial);
                if !goes_on {
                    starts.push_back(position);
                }
                if starts.len() > count {
                    starts.pop_front();
                }
            }
        }
        let end = Position { offset: self.offset, open };
        Ok(starts.front().copied().unwrap_or(end))
    }

    /// The file, to ask for its state.
    pub(crate) fn file(&self) -> &File {
        self.file.get_ref()
    }

    /// How much of the file has been read.
    pub(crate) fn read_up_to(&self) -> u64 {
        self.offset + self.line.len() as u64
    }
}

/// Prints entries, joined.
#[derive(Debug)]
pub(crate) struct Printer<O, E> {
    stdout: O,
    stderr: E,
    timestamps: bool,
    since: Option<Timestamp>,
    open: Open,
    skipping: Open,
    malformed: u64,
}

impl<O: Write, E: Write> Printer<O, E> {
    /// A printer of what was written since a time, with times or without.
    pub(crate) fn new(stdout: O, stderr: E, timestamps: bool, since: Option<Timestamp>) -> Self {
        Self { stdout, stderr, timestamps, since, open: Open::default(), skipping: Open::default(), malformed: 0 }
    }

    /// Leaves out all but the container's last `count` lines.
    pub(crate) fn skip_to_tail(&mut self, lines: &mut Lines, count: usize) -> io::Result<()> {
        let position = lines.tail(count)?;
        lines.seek(position.offset)?;
        // What goes on there began before.
        (self.open, self.skipping) = (position.open, position.open);
        Ok(())
    }

    /// Prints all lines that are there.
    pub(crate) fn drain(&mut self, lines: &mut Lines) -> Result<()> {
        while let Some(line) = lines.next().during("reading", "the log file")? {
            self.print(line)?;
        }
        self.stdout.flush()?;
        Ok(self.stderr.flush()?)
    }

    /// How many lines were not entries; they are left out.
    pub(crate) fn malformed(&self) -> u64 {
        self.malformed
    }

    fn print(&mut self, line: &[u8]) -> io::Result<()> {
        let Some(entry) = Entry::parse(line) else {
            self.malformed += 1;
            return Ok(());
        };
        let starts = !std::mem::replace(self.open.of(entry.stream), entry.partial);
        if starts {
            *self.skipping.of(entry.stream) = self.is_too_old(&entry);
        }
        if *self.skipping.of(entry.stream) {
            return Ok(());
        }
        let time = if starts && self.timestamps { entry.time } else { "" };
        match entry.stream {
            Stream::Stdout => write_entry(&mut self.stdout, time, &entry),
            Stream::Stderr => {
                // On a terminal both streams are one, and their order is the file's.
                self.stdout.flush()?;
                write_entry(&mut self.stderr, time, &entry)
            }
        }
    }

    fn is_too_old(&self, entry: &Entry<'_>) -> bool {
        let since = self.since.zip(Timestamp::parse(entry.time));
        since.is_some_and(|(since, time)| time < since)
    }
}

fn write_entry(out: &mut impl Write, time: &str, entry: &Entry<'_>) -> io::Result<()> {
    if !time.is_empty() {
        write!(out, "{time} ")?;
    }
    out.write_all(entry.content)?;
    if entry.partial { Ok(()) } else { out.write_all(b"\n") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn file(content: &[u8]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(content).unwrap();
        file.rewind().unwrap();
        file
    }

    /// What a log prints to stdout and stderr.
    fn printed(content: &[u8], timestamps: bool, since: Option<&str>, tail: Option<usize>) -> (Vec<u8>, Vec<u8>, u64) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut printer = Printer::new(&mut stdout, &mut stderr, timestamps, since.and_then(Timestamp::parse));
        let mut lines = Lines::new(file(content));
        if let Some(count) = tail {
            printer.skip_to_tail(&mut lines, count).unwrap();
        }
        printer.drain(&mut lines).unwrap();
        let malformed = printer.malformed();
        (stdout, stderr, malformed)
    }

    fn stdout(content: &str, tail: Option<usize>) -> String {
        String::from_utf8(printed(content.as_bytes(), false, None, tail).0).unwrap()
    }

    const T1: &str = "2026-11-22T03:00:01.5Z";
    const T2: &str = "2026-11-22T04:00:02.5+01:00";

    #[test]
    fn an_entry_has_four_fields() {
        let entry = Entry::parse(b"2026-11-22T03:00:01Z stderr P:x a b ").unwrap();
        assert_eq!(entry, Entry { time: "2026-11-22T03:00:01Z", stream: Stream::Stderr, partial: true, content: b"a b " });
        assert_eq!(Entry::parse(b"t stdout F ").unwrap().content, b"");
        assert_eq!(Entry::parse(b"t stdout F").unwrap().content, b"");
        for line in ["", "t", "t stdout", "t stdin F x", "t stdout X x", " stdout F x", "t stdout  x"] {
            assert_eq!(Entry::parse(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn parts_are_joined_for_each_stream_on_its_own() {
        let log = format!("{T1} stdout P a\n{T1} stderr P x\n{T2} stdout F b\n{T2} stderr F y\n{T2} stdout P tail\n");
        let (out, err, _) = printed(log.as_bytes(), false, None, None);
        assert_eq!((out.as_slice(), err.as_slice()), (&b"ab\ntail"[..], &b"xy\n"[..]));
    }

    #[test]
    fn a_joined_line_has_one_time() {
        let log = format!("{T1} stdout P a\n{T2} stdout F b\n{T2} stdout F c\n");
        assert_eq!(printed(log.as_bytes(), true, None, None).0, format!("{T1} ab\n{T2} c\n").as_bytes());
    }

    #[test]
    fn a_line_is_as_old_as_its_first_part() {
        let log = format!("{T1} stdout P a\n{T2} stdout F b\n{T2} stdout F c\n");
        assert_eq!(printed(log.as_bytes(), false, Some("2026-11-22T03:00:02Z"), None).0, b"c\n");
    }

    #[test]
    fn the_tail_counts_lines_of_the_container() {
        let log = format!("{T1} stdout F a\n{T1} stdout P b\n{T1} stderr F x\n{T1} stdout F c\n{T1} stdout P d\n{T1} stdout F e\n");
        let expected = ["", "de\n", "de\n", "bc\nde\n", "a\nbc\nde\n", "a\nbc\nde\n"];
        assert_eq!([0, 1, 2, 3, 4, 5].map(|count| stdout(&log, Some(count))), expected);
    }

    #[test]
    fn what_is_no_entry_is_left_out_and_counted() {
        let log = format!("{T1} stdout F a\n\0\0\0\n{T1} stdout F b\n{T1} stdout F unfinish");
        let (out, _, malformed) = printed(log.as_bytes(), false, None, None);
        assert_eq!((out.as_slice(), malformed), (&b"a\nb\n"[..], 1));
    }

    #[test]
    fn a_line_that_is_being_written_is_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        let mut writer = File::create(&path).unwrap();
        let mut lines = Lines::new(File::open(&path).unwrap());
        write!(writer, "one\ntw").unwrap();
        assert_eq!(lines.next().unwrap(), Some(&b"one"[..]));
        assert_eq!(lines.next().unwrap(), None);
        writeln!(writer, "o").unwrap();
        assert_eq!(lines.next().unwrap(), Some(&b"two"[..]));
        assert_eq!(lines.next().unwrap(), None);
        assert_eq!(lines.read_up_to(), 8);
    }

    #[test]
    fn a_file_without_lines_does_not_fill_the_memory() {
        let mut lines = Lines::new(file(&vec![0; Lines::LONGEST + 10]));
        assert_eq!(lines.next().unwrap().map(<[u8]>::len), Some(Lines::LONGEST));
        assert_eq!(lines.next().unwrap(), None);
    }

    /// Lines of one stream, each as the parts a runtime might have cut it into.
    fn lines_in_parts() -> impl Strategy<Value = Vec<Vec<Vec<u8>>>> {
        let part = prop::collection::vec(any::<u8>().prop_filter("no newline", |byte| *byte != b'\n'), 0..8);
        prop::collection::vec(prop::collection::vec(part, 1..4), 0..12)
    }

    fn entries(name: &str, lines: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
        let entry = |part: &[u8], last: bool| [format!("{T1} {name} {} ", if last { "F" } else { "P" }).as_bytes(), part, b"\n"].concat();
        lines.iter().flat_map(|parts| parts.iter().enumerate().map(move |(at, part)| entry(part, at + 1 == parts.len()))).collect()
    }

    fn joined(lines: &[Vec<Vec<u8>>]) -> Vec<Vec<u8>> {
        lines.iter().map(|parts| [parts.concat().as_slice(), b"\n"].concat()).collect()
    }

    proptest! {
        #[test]
        fn no_line_makes_the_parser_panic(line in prop::collection::vec(any::<u8>(), 0..60)) {
            let _ = Entry::parse(&line);
        }

        #[test]
        fn joining_undoes_cutting_and_mixing(out in lines_in_parts(), err in lines_in_parts(), choices in prop::collection::vec(any::<bool>(), 80)) {
            let mut streams = [entries("stdout", &out).into_iter().peekable(), entries("stderr", &err).into_iter().peekable()];
            let mut log = Vec::new();
            for choice in choices.into_iter().chain([true, false].into_iter().cycle()) {
                if streams.iter_mut().all(|stream| stream.peek().is_none()) {
                    break;
                }
                log.extend(streams[usize::from(choice)].next().unwrap_or_default());
            }
            let (stdout, stderr, malformed) = printed(&log, false, None, None);
            prop_assert_eq!((stdout, stderr, malformed), (joined(&out).concat(), joined(&err).concat(), 0));
        }

        #[test]
        fn the_tail_is_the_end_of_the_whole(lines in lines_in_parts(), count in 0_usize..14) {
            let log = entries("stdout", &lines).concat();
            let whole = joined(&lines);
            let expected = whole[whole.len().saturating_sub(count)..].concat();
            prop_assert_eq!(printed(&log, false, None, Some(count)).0, expected);
        }
    }
}
