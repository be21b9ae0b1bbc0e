//! Cutting a stream of output into the entries of a CRI log: `TIME stdout|stderr F|P CONTENT\n`.
//!
//! A line of up to [`MAX_CONTENT`] bytes is one entry, tagged `F` (full). A longer one is several, all but its last
//! tagged `P` (partial). What follows the last newline is `P` at the stream's end. (Kubernetes' design proposal
//! `kubelet-cri-logging`; the bound is the one other runtimes use.)

use memchr::memchr;

/// The longest content of one entry, in bytes.
pub(crate) const MAX_CONTENT: usize = 16 << 10;

/// Whether an entry ends its line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// `F`.
    Full,
    /// `P`.
    Partial,
}

/// One stream's cutter: holds at most the beginning of one line.
#[derive(Debug, Default)]
pub(crate) struct Lines {
    begun: Vec<u8>,
}

impl Lines {
    /// Cuts the next bytes of the stream, giving whole entries to `entry`.
    pub(crate) fn push(&mut self, mut bytes: &[u8], entry: &mut impl FnMut(Tag, &[u8])) {
        while let Some(end) = memchr(b'\n', bytes) {
            let (line, rest) = bytes.split_at(end);
            self.line(line, entry);
            bytes = rest.get(1..).unwrap_or_default();
        }
        let rest = self.partial(bytes, entry);
        self.begun.extend_from_slice(rest);
    }

    /// The stream has ended.
    pub(crate) fn finish(&mut self, entry: &mut impl FnMut(Tag, &[u8])) {
        let begun = std::mem::take(&mut self.begun);
        if !begun.is_empty() {
            entry(Tag::Partial, &begun);
        }
    }

    fn line(&mut self, line: &[u8], entry: &mut impl FnMut(Tag, &[u8])) {
        let rest = self.partial(line, entry);
        if self.begun.is_empty() {
            return entry(Tag::Full, rest);
        }
        let mut begun = std::mem::take(&mut self.begun);
        begun.extend_from_slice(rest);
        entry(Tag::Full, &begun);
    }

    /// Gives away what is too long for one entry together with what was begun; returns what is left of `bytes`.
    fn partial<'a>(&mut self, mut bytes: &'a [u8], entry: &mut impl FnMut(Tag, &[u8])) -> &'a [u8] {
        while self.begun.len() + bytes.len() > MAX_CONTENT {
            let (now, rest) = bytes.split_at(MAX_CONTENT - self.begun.len());
            if self.begun.is_empty() {
                entry(Tag::Partial, now);
            } else {
                let mut begun = std::mem::take(&mut self.begun);
                begun.extend_from_slice(now);
                entry(Tag::Partial, &begun);
            }
            bytes = rest;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn cut(pieces: &[&[u8]]) -> Vec<(Tag, Vec<u8>)> {
        let (mut lines, mut entries) = (Lines::default(), Vec::new());
        let mut entry = |tag, content: &[u8]| entries.push((tag, content.to_vec()));
        for piece in pieces {
            lines.push(piece, &mut entry);
        }
        lines.finish(&mut entry);
        entries
    }

    #[test]
    fn a_line_of_just_the_bound_is_full() {
        let line = [b'x'; MAX_CONTENT];
        assert_eq!(cut(&[&line, b"\n"]), [(Tag::Full, line.to_vec())]);
    }

    #[test]
    fn one_byte_more_makes_a_second_entry() {
        let line = [b'x'; MAX_CONTENT + 1];
        assert_eq!(cut(&[&line, b"\n"]), [(Tag::Partial, line[1..].to_vec()), (Tag::Full, b"x".to_vec())]);
    }

    #[test]
    fn a_tail_without_newline_is_partial() {
        assert_eq!(cut(&[b"a\nb"]), [(Tag::Full, b"a".to_vec()), (Tag::Partial, b"b".to_vec())]);
    }

    #[test]
    fn an_empty_line_is_an_entry() {
        assert_eq!(cut(&[b"\n"]), [(Tag::Full, Vec::new())]);
    }

    /// What a log has of a stream, said at leisure: nothing is remembered from piece to piece.
    fn model(stream: &[u8]) -> Vec<(Tag, Vec<u8>)> {
        let mut entries = Vec::new();
        for line in stream.split_inclusive(|byte| *byte == b'\n') {
            let content = line.strip_suffix(b"\n");
            let parts: Vec<&[u8]> = content.unwrap_or(line).chunks(MAX_CONTENT).collect();
            let last = parts.len().saturating_sub(1);
            entries.extend(parts.iter().enumerate().map(|(index, part)| {
                let ends = index == last && content.is_some();
                (if ends { Tag::Full } else { Tag::Partial }, part.to_vec())
            }));
            if content == Some(b"") {
                entries.push((Tag::Full, Vec::new()));
            }
        }
        entries
    }

    /// Runs of one byte: short ones, ones of about the bound and twice that, and the ends of lines between and inside them.
    fn runs() -> impl Strategy<Value = Vec<u8>> {
        let length = prop_oneof![0..4_usize, MAX_CONTENT - 2..MAX_CONTENT + 3, 2 * MAX_CONTENT - 2..2 * MAX_CONTENT + 3, 0..40_000_usize];
        let byte = prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()];
        let run = (length, byte, any::<bool>()).prop_map(|(length, byte, ends)| {
            let length = if byte == b'\n' { length.min(5) } else { length };
            let mut run = vec![byte; length];
            run.extend(ends.then_some(b'\n'));
            run
        });
        proptest::collection::vec(run, 0..8).prop_map(|runs| runs.concat())
    }

    proptest! {
        #[test]
        fn a_stream_is_cut_as_the_model_says_however_it_comes(
            stream in runs(),
            pieces in proptest::collection::vec(prop_oneof![1..4_usize, 1..70_000_usize], 1..10),
        ) {
            let (mut rest, mut cut_up) = (&stream[..], Vec::new());
            for piece in pieces.iter().cycle() {
                if rest.is_empty() || cut_up.len() > 2_000 {
                    break;
                }
                let (now, later) = rest.split_at((*piece).min(rest.len()));
                cut_up.push(now);
                rest = later;
            }
            cut_up.push(rest);
            // Not compared by assert_eq: entries are long.
            prop_assert!(cut(&cut_up) == model(&stream), "{} bytes in pieces of {pieces:?}", stream.len());
        }
    }
}
