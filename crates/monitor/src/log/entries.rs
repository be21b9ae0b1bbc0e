//! Entries of one stream on their way into its log, many in one write: `TIME stdout|stderr F|P CONTENT\n`.
//!
//! A line of several entries is in the log from its beginning or not at all. When the file takes no more in the middle
//! of one, the rest of that line is lost too, and before the next line an empty full entry ends what is there: readers
//! would join the two otherwise.

use memchr::memchr_iter;

use super::file::Log;
use super::lines::Tag;
use super::time;

/// How many bytes are collected for one write.
pub(super) const OUTPUT: usize = 64 << 10;
/// The length of what precedes an entry's content.
pub(super) const HEAD: usize = time::LENGTH + " stdout F ".len();
/// Where in it the tag stands.
const TAG: usize = HEAD - 2;

/// Where a stream stands in its log.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Standing {
    /// The last entry was partial: the next one goes on with its line.
    continues: bool,
    /// Part of the line was lost, and so its rest is.
    spoilt: bool,
    /// The stream's last entry in the file is partial.
    open: bool,
}

/// Entries that are being collected. All carry one time.
#[derive(Debug)]
pub(super) struct Entries<'a> {
    head: [u8; HEAD],
    standing: &'a mut Standing,
    /// Whether the file's last entry was partial before these.
    open_before: bool,
    log: &'a mut Log,
    output: &'a mut Vec<u8>,
}

impl<'a> Entries<'a> {
    /// None yet. `stream` is `stdout` or `stderr`.
    pub(super) fn new(stream: &str, standing: &'a mut Standing, log: &'a mut Log, output: &'a mut Vec<u8>) -> Self {
        let mut head = [b' '; HEAD];
        for (place, byte) in head.iter_mut().zip(time::format(time::now()).iter().chain(b" ").chain(stream.as_bytes())) {
            *place = *byte;
        }
        Self { head, open_before: standing.open, standing, log, output }
    }

    /// Adds one; a full buffer is written first.
    pub(super) fn add(&mut self, tag: Tag, content: &[u8]) {
        if self.output.len() + HEAD + content.len() + 1 > OUTPUT {
            self.flush();
        }
        if !self.standing.continues {
            self.standing.spoilt = self.standing.open && !self.close();
        }
        self.standing.continues = tag == Tag::Partial;
        if self.standing.spoilt {
            return self.log.lose(1, content.len() as u64);
        }
        self.append(tag, content);
        self.standing.open = tag == Tag::Partial;
    }

    fn append(&mut self, tag: Tag, content: &[u8]) {
        self.head[TAG] = match tag {
            Tag::Full => b'F',
            Tag::Partial => b'P',
        };
        self.output.extend_from_slice(&self.head);
        self.output.extend_from_slice(content);
        self.output.push(b'\n');
    }

    /// Ends the line whose rest was lost. Nothing is collected yet when this is needed.
    fn close(&mut self) -> bool {
        self.append(Tag::Full, b"");
        let closed = self.log.write(self.output) == self.output.len();
        self.output.clear();
        (self.standing.open, self.open_before) = (!closed, !closed);
        closed
    }

    /// Writes what was collected.
    pub(super) fn flush(&mut self) {
        if self.output.is_empty() {
            return;
        }
        let taken = self.log.write(self.output);
        let (inside, lost) = self.output.split_at(taken.min(self.output.len()));
        if !lost.is_empty() {
            let entries = memchr_iter(b'\n', lost).count();
            self.log.lose(entries as u64, (lost.len() - entries * (HEAD + 1)) as u64);
            self.standing.open = last_tag(inside).map_or(self.open_before, |tag| tag == b'P');
            self.standing.spoilt = self.standing.continues;
        }
        self.open_before = self.standing.open;
        self.output.clear();
    }
}

/// The tag of the last of some whole entries.
fn last_tag(entries: &[u8]) -> Option<u8> {
    let end = entries.len().checked_sub(1)?;
    let begin = memchr::memrchr(b'\n', entries.get(..end)?).map_or(0, |before| before + 1);
    entries.get(begin + TAG).copied()
}
