//! Tar archives as a sequence of members (POSIX.1-1988 ustar, pax, and GNU's long names and numbers).
//!
//! The `tar` crate reads header blocks; the walk over them is our own, because that crate collects
//! extended headers of any length in memory and splits their records at newlines, which values may hold.
//! Only reads: nothing here touches a file system.

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

use rustix::fs::Timespec;
use tar::{EntryType, Header};

use super::pax::{self, Overrides};

const BLOCK: u64 = 512;
/// The longest extended header or long name, bytes.
const EXTENSION_LIMIT: u64 = 1 << 20;

/// An archive being read.
#[derive(Debug)]
pub(super) struct Archive<R> {
    input: R,
    /// Bytes of the current member's content that were not read yet.
    body: u64,
    /// Bytes that fill the last block of it.
    padding: u64,
}

/// One file of whatever type.
#[derive(Debug)]
pub(super) struct Member {
    /// As it stands in the archive.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    pub(super) metadata: Metadata,
}

/// What a member is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    SymbolicLink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice(u32, u32),
    BlockDevice(u32, u32),
    Fifo,
}

/// Whose a member is, what may be done with it, and when that was.
#[derive(Debug)]
pub(super) struct Metadata {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The permission bits, set-id and sticky included.
    pub(super) mode: u32,
    pub(super) modified: Timespec,
    pub(super) accessed: Timespec,
    pub(super) attributes: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What the headers before a member said about it.
#[derive(Default)]
struct Extensions {
    overrides: Overrides,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl<R: BufRead> Archive<R> {
    pub(super) fn new(input: R) -> Self {
        Self { input, body: 0, padding: 0 }
    }

    /// The next member; `None` at the archive's end. What is left of the content before is skipped.
    pub(super) fn next(&mut self) -> io::Result<Option<Member>> {
        let mut extensions = None;
        loop {
            self.skip_rest()?;
            let Some(header) = self.header()? else {
                return if extensions.is_none() { Ok(None) } else { Err(malformed("it ends after an extended header")) };
            };
            let kind = header.entry_type();
            if !(kind.is_pax_local_extensions() || kind.is_pax_global_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink()) {
                return self.member(&header, extensions.unwrap_or_default()).map(Some);
            }
            let content = self.extension(header.entry_size()?)?;
            if kind.is_pax_global_extensions() {
                // Comments and defaults for the whole archive: nobody's layers depend on them.
                continue;
            }
            let known = extensions.get_or_insert_with(Extensions::default);
            if kind.is_pax_local_extensions() {
                known.overrides = pax::parse(&content)?;
            } else if kind.is_gnu_longname() {
                known.path = Some(until_nul(content));
            } else if kind.is_gnu_longlink() {
                known.link = Some(until_nul(content));
            }
        }
    }

    /// Reads everything that is left, so that whoever hashes the input has seen it all.
    pub(super) fn drain(mut self) -> io::Result<()> {
        io::copy(&mut self.input, &mut io::sink()).map(drop)
    }

    fn member(&mut self, header: &Header, extensions: Extensions) -> io::Result<Member> {
        let Extensions { overrides, path, link } = extensions;
        let path = overrides.path.or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let link = overrides.link.or(link).or_else(|| header.link_name_bytes().map(|link| link.into_owned())).unwrap_or_default();
        let kind = kind_of(header, &path, link)?;
        let size = overrides.size.map_or_else(|| header.entry_size(), Ok)?;
        // The other types have no content, whatever their size says: so does Go read them, which wrote them.
        let has_content = kind == Kind::File || matches!(header.as_old().linkflag, [b'0' | b'7']);
        self.expect(if has_content { size } else { 0 });
        let small =
            |number: u64| u32::try_from(number).ok().filter(|id| *id != u32::MAX).ok_or_else(|| malformed("an owner's id is too large"));
        // Two's complement in base 256: a time before the epoch.
        let in_header = Timespec { tv_sec: header.mtime()?.cast_signed(), tv_nsec: 0 };
        let modified = overrides.modified.unwrap_or(in_header);
        let metadata = Metadata {
            uid: small(overrides.uid.map_or_else(|| header.uid(), Ok)?)?,
            gid: small(overrides.gid.map_or_else(|| header.gid(), Ok)?)?,
            mode: header.mode()? & 0o7777,
            modified,
            accessed: overrides.accessed.unwrap_or(modified),
            attributes: overrides.attributes,
        };
        Ok(Member { path, kind, metadata })
    }

    /// The next header block; `None` at the end.
    fn header(&mut self) -> io::Result<Option<Header>> {
        let mut header = Header::new_old();
        if self.input.fill_buf()?.is_empty() {
            return Ok(None);
        }
        self.input.read_exact(header.as_mut_bytes())?;
        if header.as_bytes().iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let sum: u32 = header.as_bytes().iter().map(|byte| u32::from(*byte)).sum();
        let field: u32 = header.as_old().cksum.iter().map(|byte| u32::from(*byte)).sum();
        // The checksum is taken with its own field full of spaces.
        if header.cksum()? != sum - field + 8 * u32::from(b' ') {
            return Err(malformed("a header's checksum is wrong"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > EXTENSION_LIMIT {
            return Err(malformed("an extended header is longer than 1 MiB"));
        }
        self.expect(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content)?;
        Ok(content)
    }

    fn expect(&mut self, size: u64) {
        self.body = size;
        self.padding = size.wrapping_neg() % BLOCK;
    }

    fn skip_rest(&mut self) -> io::Result<()> {
        let due = self.body.saturating_add(self.padding);
        let skipped = io::copy(&mut self.input.by_ref().take(due), &mut io::sink())?;
        // Some writers leave out the padding of the very last block.
        let complete = skipped >= self.body;
        (self.body, self.padding) = (0, 0);
        if complete { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The current member's content.
impl<R: BufRead> BufRead for Archive<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.body == 0 {
            return Ok(&[]);
        }
        let buffer = self.input.fill_buf()?;
        if buffer.is_empty() {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the archive ends within a file"));
        }
        let length = usize::try_from(self.body).unwrap_or(usize::MAX).min(buffer.len());
        Ok(buffer.get(..length).unwrap_or_default())
    }

    fn consume(&mut self, amount: usize) {
        self.body -= amount as u64;
        self.input.consume(amount);
    }
}

impl<R: BufRead> Read for Archive<R> {
    fn read(&mut self, target: &mut [u8]) -> io::Result<usize> {
        let read = self.fill_buf()?.read(target)?;
        self.consume(read);
        Ok(read)
    }
}

fn kind_of(header: &Header, path: &[u8], link: Vec<u8>) -> io::Result<Kind> {
    let device = || -> io::Result<(u32, u32)> { Ok((header.device_major()?.unwrap_or(0), header.device_minor()?.unwrap_or(0))) };
    Ok(match header.entry_type() {
        // Archives older than the directory type mark one by the slash.
        EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File,
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::SymbolicLink(link),
        EntryType::Link => Kind::HardLink(link),
        EntryType::Char => device().map(|(major, minor)| Kind::CharacterDevice(major, minor))?,
        EntryType::Block => device().map(|(major, minor)| Kind::BlockDevice(major, minor))?,
        EntryType::Fifo => Kind::Fifo,
        EntryType::GNUSparse => return Err(malformed("sparse files in GNU format are not supported")),
        other => {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("members of type {:?} are not supported", char::from(other.as_byte())),
            ));
        }
    })
}

fn until_nul(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

pub(super) fn malformed(problem: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, problem)
}
