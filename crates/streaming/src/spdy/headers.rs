//! Header blocks: names and values, compressed by one zlib stream for all frames of a direction.
//!
//! SPDY/3 draft, section 2.6.10. A block is a count, then for each header the length and bytes of its name and of its
//! value, every number four bytes, all of it deflated with the window that earlier blocks filled. Blocks come from
//! the other side: what they inflate to is bounded, and a block that cannot be inflated ends the session, because
//! no later one could be.

use std::fmt;

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary::{DICTIONARY, DICTIONARY_ID};
use super::frame::Violation;

/// What one block may inflate to.
const MAX_BLOCK: usize = 64 << 10;
/// How many headers one block may hold. Kubernetes' clients send three.
const MAX_HEADERS: usize = 128;
/// How much is inflated at a time.
const STEP: usize = 4 << 10;

/// The headers of one stream. Names are in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers(Vec<(String, String)>);

impl Headers {
    /// The value under `name`, which is compared without case.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }

    /// Reads an inflated block. What is not UTF-8 is replaced: no header we act on is anything but ASCII.
    fn parse(block: &[u8]) -> Result<Self, Violation> {
        let mut rest = block;
        let count = number(&mut rest)?;
        if count > MAX_HEADERS {
            return Err(Violation("a block has too many headers"));
        }
        let mut headers = Vec::with_capacity(count);
        for _ in 0..count {
            let name = text(&mut rest)?.to_ascii_lowercase();
            headers.push((name, text(&mut rest)?));
        }
        if rest.is_empty() { Ok(Self(headers)) } else { Err(Violation("a header block is longer than its headers")) }
    }

    /// The block, not deflated.
    pub(super) fn write(&self) -> Vec<u8> {
        let mut block = (self.0.len() as u32).to_be_bytes().to_vec();
        for part in self.0.iter().flat_map(|(name, value)| [name, value]) {
            block.extend_from_slice(&(part.len() as u32).to_be_bytes());
            block.extend_from_slice(part.as_bytes());
        }
        block
    }
}

impl<N: Into<String>, V: Into<String>> FromIterator<(N, V)> for Headers {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(headers: I) -> Self {
        Self(headers.into_iter().map(|(name, value)| (name.into().to_ascii_lowercase(), value.into())).collect())
    }
}

fn number(rest: &mut &[u8]) -> Result<usize, Violation> {
    let (number, after) = rest.split_first_chunk::<4>().ok_or(Violation("a header block is cut short"))?;
    *rest = after;
    Ok(u32::from_be_bytes(*number) as usize)
}

fn text(rest: &mut &[u8]) -> Result<String, Violation> {
    let length = number(rest)?;
    let (text, after) = rest.split_at_checked(length).ok_or(Violation("a header block is cut short"))?;
    *rest = after;
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// Reads the blocks of one direction, in the order they came.
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// The headers of the next block.
    pub(crate) fn read(&mut self, block: &[u8]) -> Result<Headers, Violation> {
        Headers::parse(&self.inflate(block)?)
    }

    fn inflate(&mut self, block: &[u8]) -> Result<Vec<u8>, Violation> {
        let start = self.0.total_in();
        let mut out = Vec::with_capacity(STEP);
        loop {
            let rest = block.get((self.0.total_in() - start) as usize..).unwrap_or_default();
            match self.0.decompress_vec(rest, &mut out, FlushDecompress::Sync) {
                Ok(Status::StreamEnd) => return Err(Violation("the header stream was ended")),
                Ok(Status::Ok | Status::BufError) => {}
                Err(error) if error.needs_dictionary().is_some() => {
                    self.0.set_dictionary(&DICTIONARY).map_err(|_| Violation("headers need another dictionary"))?;
                    continue;
                }
                Err(_) => return Err(Violation("a header block is not deflated")),
            }
            if out.len() > MAX_BLOCK {
                return Err(Violation("a header block is too long"));
            }
            // Room left over says that zlib has nothing more to give.
            if out.len() < out.capacity() {
                break;
            }
            out.reserve(STEP);
        }
        if self.0.total_in() - start == block.len() as u64 { Ok(out) } else { Err(Violation("a header block does not end")) }
    }
}

/// Writes the blocks of one direction. Frames must be sent in the order in which their blocks were made.
///
/// We have nothing to say in headers, so nothing is compressed: blocks are stored (RFC 1951, section 3.2.4), and no session
/// keeps the quarter of a MiB that a compressor needs.
#[derive(Debug, Default)]
pub(crate) struct Deflater {
    begun: bool,
}

impl Deflater {
    /// The next block.
    pub(crate) fn write(&mut self, headers: &Headers) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.begun {
            self.begun = true;
            // RFC 1950, section 2.2: deflate with a window of 32 KiB and a dictionary, and which one.
            out.extend([0x78, 0xf9]);
            out.extend(DICTIONARY_ID.to_be_bytes());
        }
        // The empty one at the end is what zlib calls a flush: some inflaters hand out nothing before it.
        for part in headers.write().chunks(usize::from(u16::MAX)).chain([&[][..]]) {
            let length = part.len() as u16;
            out.push(0);
            out.extend(length.to_le_bytes());
            out.extend((!length).to_le_bytes());
            out.extend(part);
        }
        out
    }
}

impl fmt::Debug for Inflater {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Inflater")
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;
    use crate::spdy::client::Compressor;

    fn stdin() -> Headers {
        [("streamType", "stdin"), ("port", "80")].into_iter().collect()
    }

    #[test]
    fn later_blocks_lean_on_earlier_ones() {
        let (mut deflater, mut inflater) = (Compressor::new(), Inflater::new());
        let first = deflater.write(&stdin());
        let second = deflater.write(&stdin());
        assert!(second.len() < first.len(), "{} < {}", second.len(), first.len());
        assert_eq!(inflater.read(&first).unwrap(), stdin());
        assert_eq!(inflater.read(&second).unwrap().get("streamtype"), Some("stdin"));
        // Out of its place, a block means nothing.
        assert!(Inflater::new().read(&second).is_err());
    }

    #[test]
    fn what_is_stored_begins_and_ends_as_go_wants_it() {
        let mut deflater = Deflater::default();
        let begun = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];
        assert_eq!(deflater.write(&Headers::default()), begun);
        assert_eq!(deflater.write(&Headers::default()), begun[6..]);
    }

    #[test]
    fn a_block_may_fill_the_buffer_exactly_or_exceed_it() {
        for length in [STEP - 50, STEP, 3 * STEP, MAX_BLOCK - 100] {
            let value: String = (0..length as u32).map(|at| char::from(b' ' + (at.wrapping_mul(2_654_435_761) >> 25) as u8 % 90)).collect();
            let headers: Headers = [("x", value)].into_iter().collect();
            assert_eq!(Inflater::new().read(&Compressor::new().write(&headers)).unwrap(), headers);
            assert_eq!(Inflater::new().read(&Deflater::default().write(&headers)).unwrap(), headers);
        }
    }

    #[test]
    fn a_bomb_is_refused() {
        let headers: Headers = [("x", "0".repeat(4 * MAX_BLOCK))].into_iter().collect();
        let bomb = Compressor::new().write(&headers);
        assert!(bomb.len() < 4 << 10);
        assert_eq!(Inflater::new().read(&bomb), Err(Violation("a header block is too long")));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        assert!(Headers::parse(&[]).is_err());
        assert!(Headers::parse(&[0xff; 4]).is_err());
        assert!(Headers::parse(&[0, 0, 0, 1, 0xff, 0xff, 0xff, 0xff, b'a']).is_err());
        assert!(Headers::parse(&[0, 0, 0, 0, 1]).is_err());
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(blocks in vec(vec(("[a-z-]{0,40}", "\\PC{0,60}"), 0..10), 1..8)) {
            let (mut deflater, mut compressor) = (Deflater::default(), Compressor::new());
            let (mut inflater, mut other) = (Inflater::new(), Inflater::new());
            for block in blocks {
                let headers: Headers = block.into_iter().collect();
                prop_assert_eq!(&inflater.read(&deflater.write(&headers)).unwrap(), &headers);
                prop_assert_eq!(other.read(&compressor.write(&headers)).unwrap(), headers);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(blocks in vec(vec(any::<u8>(), 0..200), 1..4), plain in vec(any::<u8>(), 0..200)) {
            let mut inflater = Inflater::new();
            for block in &blocks {
                let _ = inflater.read(block);
            }
            let _ = Headers::parse(&plain);
        }
    }
}
