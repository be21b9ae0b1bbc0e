//! A file system that answers until it is told to stop, as a dead file server does: a FUSE server of a few requests.
//!
//! Of its root directory it says that it is there, of every name in it but [`ABSENT`] and [`STUCK`] that it is a directory, and
//! nothing else. Format: `linux/fuse.h`, protocol 7.31; numbers are the machine's own.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

/// The name that does not exist.
pub const ABSENT: &str = "absent";

/// What the names of files of a mebibyte begin with, of which it gives the first [`GIVEN`] bytes and then says nothing. Who waits can
/// be killed, unless it falls silent meanwhile.
pub const STUCK: &str = "stuck";

const GIVEN: u64 = 128 << 10;
/// From here on numbers are files'; that of the root directory is 1, and that of all other directories 2.
const FIRST_FILE: u64 = 3;

/// What the server does with requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Mood {
    Answering,
    /// Does not even take them. Who waits can be killed.
    Deaf,
    /// Takes them and never answers. Who waits cannot even be killed: the kernel holds it until the server is gone.
    Silent,
    Gone,
}

/// A mounted file system. It goes when this is dropped, and then whoever waits for it hears an error.
#[derive(Debug)]
pub struct Volume {
    path: PathBuf,
    mood: Arc<AtomicU8>,
    swallowed: Arc<AtomicUsize>,
    server: Option<JoinHandle<()>>,
}

impl Volume {
    /// Mounts one on a directory, which is made.
    pub fn mount(path: &Path) -> Self {
        std::fs::create_dir_all(path).expect("making a directory");
        let mut options = File::options();
        let device = options.read(true).write(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed()).open("/dev/fuse");
        let device = device.expect("opening /dev/fuse: the kernel needs FUSE for this test");
        let data = format!("fd={},rootmode=40000,user_id=0,group_id=0,allow_other", device.as_raw_fd());
        let data = std::ffi::CString::new(data).expect("no byte is zero");
        mount("hung", path, "fuse", MountFlags::NOSUID | MountFlags::NODEV, Some(data.as_c_str())).expect("mounting a FUSE file system");
        let mood = Arc::new(AtomicU8::new(Mood::Answering as u8));
        let swallowed = Arc::new(AtomicUsize::new(0));
        let (its_mood, its_count) = (Arc::clone(&mood), Arc::clone(&swallowed));
        let server = thread::spawn(move || serve(device, &its_mood, &its_count));
        Self { path: path.to_owned(), mood, swallowed, server: Some(server) }
    }

    /// Where it is.
    pub fn path(&self) -> &str {
        self.path.to_str().expect("scratch directories have plain names")
    }

    /// Stops taking requests. Who waits for an answer can be killed.
    pub fn turn_deaf(&self) {
        self.mood.store(Mood::Deaf as u8, Ordering::SeqCst);
    }

    /// Answers again, also those who have waited since it [turned deaf](Self::turn_deaf).
    pub fn recover(&self) {
        self.mood.store(Mood::Answering as u8, Ordering::SeqCst);
    }

    /// Takes requests and answers none any more. Who waits for an answer cannot be killed.
    pub fn fall_silent(&self) {
        self.mood.store(Mood::Silent as u8, Ordering::SeqCst);
    }

    /// How many requests it has taken and not answered.
    pub fn swallowed(&self) -> usize {
        self.swallowed.load(Ordering::SeqCst)
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.mood.store(Mood::Gone as u8, Ordering::SeqCst);
        // With the server's descriptor the kernel ends the connection, and all waits.
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = unmount(&self.path, UnmountFlags::DETACH);
    }
}

fn serve(mut device: File, mood: &AtomicU8, swallowed: &AtomicUsize) {
    let mut request = vec![0; 256 * 1024];
    loop {
        let now = mood.load(Ordering::SeqCst);
        if now == Mood::Gone as u8 {
            return;
        }
        if now == Mood::Deaf as u8 {
            thread::sleep(std::time::Duration::from_millis(20));
            continue;
        }
        let pause = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        if !matches!(poll(&mut [PollFd::new(&device, PollFlags::IN)], Some(&pause)), Ok(1..)) {
            continue;
        }
        // Whoever asked may have gone away meanwhile.
        let Ok(length) = device.read(&mut request) else { continue };
        let heard = Some(&request[..length]).filter(|_| mood.load(Ordering::SeqCst) != Mood::Silent as u8);
        match heard.and_then(answer) {
            Some(answer) => drop(device.write(&answer)),
            None => drop(swallowed.fetch_add(1, Ordering::SeqCst)),
        }
    }
}

/// The answer to a request, empty where none is wanted: `fuse_in_header` is 40 bytes, of which the second word is the operation,
/// and the number of the request follows. An interruption is answered with the end of the request that it names.
fn answer(request: &[u8]) -> Option<Vec<u8>> {
    const LOOKUP: u32 = 1;
    const FORGET: u32 = 2;
    const GETATTR: u32 = 3;
    const OPEN: u32 = 14;
    const READ: u32 = 15;
    const INIT: u32 = 26;
    const INTERRUPT: u32 = 36;
    const BATCH_FORGET: u32 = 42;
    const NO_ENTRY: i32 = 2;
    const INTERRUPTED: i32 = 4;
    const NO_SYSTEM_CALL: i32 = 38;
    let operation = u32::from_ne_bytes(request.get(4..8)?.try_into().ok()?);
    let node = u64::from_ne_bytes(request.get(16..24)?.try_into().ok()?);
    let mut number = request.get(8..16)?;
    let body = match operation {
        FORGET | BATCH_FORGET => return Some(Vec::new()),
        INTERRUPT => {
            number = request.get(40..48)?;
            Err(INTERRUPTED)
        }
        INIT => Ok(greeting()),
        GETATTR => Ok([vec![0; 16], attributes(node)].concat()),
        LOOKUP if request.get(40..)?.starts_with(ABSENT.as_bytes()) => Err(NO_ENTRY),
        LOOKUP if request.get(40..)?.starts_with(STUCK.as_bytes()) => {
            let digit = request.get(40 + STUCK.len()).map_or(0, |digit| u64::from(*digit));
            Ok(found(FIRST_FILE + digit))
        }
        OPEN => Ok(vec![0; 16]),
        READ => {
            let offset = u64::from_ne_bytes(request.get(48..56)?.try_into().ok()?);
            let size = u32::from_ne_bytes(request.get(56..60)?.try_into().ok()?);
            if offset >= GIVEN {
                return None;
            }
            Ok(vec![b'x'; size as usize])
        }
        LOOKUP => Ok(found(2)),
        _ => Err(NO_SYSTEM_CALL),
    };
    let (error, body) = body.map_or_else(|error| (-error, Vec::new()), |body| (0, body));
    let length = u32::try_from(16 + body.len()).ok()?;
    Some([&length.to_ne_bytes()[..], &error.to_ne_bytes(), number, &body].concat())
}

/// `fuse_init_out`.
fn greeting() -> Vec<u8> {
    let words: [u32; 7] = [7, 31, 65_536, 0, 16 | 12 << 16, 65_536, 1];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    bytes.resize(64, 0);
    bytes
}

/// `fuse_entry_out`.
fn found(node: u64) -> Vec<u8> {
    [node.to_ne_bytes().to_vec(), vec![0; 32], attributes(node)].concat()
}

/// `fuse_attr` of a directory or a file that anybody may read, and that is not to be remembered.
fn attributes(node: u64) -> Vec<u8> {
    let (mode, size) = if node >= FIRST_FILE { (0o100_644, 1 << 20) } else { (0o040_755, 4096) };
    let words: [u32; 10] = [0, 0, 0, mode, 2, 0, 0, 0, 4096, 0];
    let head = [node, size, size / 512, 0, 0, 0].into_iter().flat_map(u64::to_ne_bytes);
    head.chain(words.into_iter().flat_map(u32::to_ne_bytes)).collect()
}
