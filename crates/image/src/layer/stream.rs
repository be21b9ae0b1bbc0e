//! A layer on its way from the network into its directory: bytes in, decompressed, hashed, applied.
//!
//! Runs on a thread of its own, which waits for the network, fed through a bounded channel. Memory does not grow with the
//! layer, but for what `apply` notes of its names, which is bounded.

use std::io::{self, BufRead, BufReader, Cursor, Read};
use std::path::Path;

use bytes::{Buf, Bytes};
use coracle_domain::{During, Failure, Result};
use flate2::bufread::MultiGzDecoder;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::apply::{self, Applied};
use super::archive::Archive;
use crate::Digest;
use crate::failure::is_for_want_of_room;
use crate::registry::Chunk;

/// How much of the decompressed archive is held at once, bytes.
const BUFFER: usize = 128 << 10;

/// Applies the layer that comes through `chunks` to the empty `directory`. It is proven when this
/// returns: the sender has vouched for the compressed content, and the archive's digest is `diff_id`.
pub(crate) fn unpack(directory: &Path, chunks: mpsc::Receiver<Chunk>, diff_id: Digest) -> Result<Applied> {
    let mut compressed = Chunks { receiver: chunks, current: Bytes::new(), ended: false };
    let (applied, found) = decompress_and_apply(directory, &mut compressed).inspect_err(|error| {
        // Content that makes no sense may have changed on the way. Whoever sends it knows that at its end, and says so.
        if !is_for_want_of_room(error) {
            compressed.drain();
        }
    })?;
    compressed.expect_end().during("reading", "the archive's end")?;
    if found != diff_id {
        let problem = format!("the decompressed archive's digest is {found}");
        return Err(Failure::new("verifying the diff id", diff_id, problem).into());
    }
    Ok(applied)
}

/// The same, whatever the digest.
#[cfg(fuzzing)]
pub(crate) fn unpack_unverified(directory: &Path, chunks: mpsc::Receiver<Chunk>) -> Result<Applied> {
    decompress_and_apply(directory, &mut Chunks { receiver: chunks, current: Bytes::new(), ended: false }).map(|(applied, _)| applied)
}

fn decompress_and_apply(directory: &Path, compressed: &mut Chunks) -> Result<(Applied, Digest)> {
    let mut decompressed = Hashing { inner: decompress(compressed).during("decompressing", "the archive")?, hasher: Sha256::new() };
    let mut archive = Archive::new(BufReader::with_capacity(BUFFER, &mut decompressed));
    let applied = apply::apply(directory, &mut archive)?;
    archive.drain().during("reading", "the archive's end")?;
    Ok((applied, Digest::finish(decompressed.hasher)))
}

/// The channel as a reader. It ends where the sender says so, and not where the sender vanishes.
struct Chunks {
    receiver: mpsc::Receiver<Chunk>,
    current: Bytes,
    ended: bool,
}

impl Chunks {
    fn drain(&mut self) {
        while let Ok(bytes) = self.fill_buf()
            && !bytes.is_empty()
        {
            self.current.clear();
        }
    }

    fn expect_end(mut self) -> io::Result<()> {
        if self.fill_buf()?.is_empty() { Ok(()) } else { Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the archive")) }
    }
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.current.is_empty() && !self.ended {
            match self.receiver.blocking_recv() {
                Some(Chunk::Data(bytes)) => self.current = bytes,
                Some(Chunk::End) => self.ended = true,
                None => return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the download ended early")),
            }
        }
        Ok(&self.current)
    }

    fn consume(&mut self, amount: usize) {
        self.current.advance(amount);
    }
}

impl Read for Chunks {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(target)?;
        self.consume(read);
        Ok(read)
    }
}

/// Decompresses by what the content's first bytes say. Media types are wrong too often to decide; what
/// counts is the diff id.
fn decompress<'a>(compressed: &'a mut Chunks) -> io::Result<Box<dyn Read + 'a>> {
    let mut start = Vec::new();
    compressed.take(4).read_to_end(&mut start)?;
    let whole = Read::chain(Cursor::new(start.clone()), compressed);
    Ok(match start.as_slice() {
        // RFC 1952, section 2.3.1; several members may follow each other.
        [0x1f, 0x8b, ..] => Box::new(MultiGzDecoder::new(whole)),
        // RFC 8878, section 3.1: a frame, or one that readers skip.
        [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Box::new(zstd::Decoder::with_buffer(whole)?),
        _ => Box::new(whole),
    })
}

/// Hashes what passes through.
struct Hashing<R> {
    inner: R,
    hasher: Sha256,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(target)?;
        self.hasher.update(target.get(..read).unwrap_or_default());
        Ok(read)
    }
}
