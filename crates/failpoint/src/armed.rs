//! What a point does in tests.

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FlockOperation, Mode, OFlags, flock, open, openat, statat};
use rustix::io::{Errno, read, write};
use rustix::process::{Signal, getpid, kill_process};

use crate::{Point, Side, VARIABLE};

/// How long a monitor stands still, lest one be left of a test that died.
const PATIENCE: Duration = Duration::from_secs(20);

/// The test's directory: its path, for the monitors, and open, as processes on their way into a container lose the path.
struct Line {
    path: OsString,
    directory: OwnedFd,
}

fn line() -> Option<&'static Line> {
    static LINE: OnceLock<Option<Line>> = OnceLock::new();
    let find = || {
        let path = env::var_os(VARIABLE)?;
        let directory = open(&path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).ok()?;
        Some(Line { path, directory })
    };
    LINE.get_or_init(find).as_ref()
}

pub(crate) fn descriptor() -> Option<BorrowedFd<'static>> {
    line().map(|line| line.directory.as_fd())
}

pub(crate) fn environment() -> Option<(&'static OsStr, &'static OsStr)> {
    line().map(|line| (OsStr::new(VARIABLE), line.path.as_os_str()))
}

pub(crate) fn reach(point: Point) {
    let Some(line) = line() else { return };
    let directory = line.directory.as_fd();
    let number = visit(directory, point);
    let order = content(directory, "order").unwrap_or_default();
    if number.is_ok_and(|number| order == format!("{} {number}\n", point.name())) {
        match point.side() {
            Side::Daemon => drop(kill_process(getpid(), Signal::KILL)),
            Side::Monitor => stand_still(directory, point),
        }
    }
}

/// Notes a visit; its number among those of this point, by whichever process, from 1 on.
fn visit(directory: BorrowedFd<'_>, point: Point) -> io::Result<usize> {
    let visits = openat(directory, "visits", OFlags::RDWR | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())?;
    flock(&visits, FlockOperation::LockExclusive)?;
    write(&visits, format!("{}\n", point.name()).as_bytes())?;
    let text = content(directory, "visits")?;
    Ok(text.lines().filter(|line| *line == point.name()).count())
}

fn content(directory: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = openat(directory, name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match read(&file, &mut buffer) {
            Ok(0) => return String::from_utf8(text).map_err(io::Error::other),
            Ok(count) => text.extend_from_slice(buffer.get(..count).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Tells the test, and waits for it.
fn stand_still(directory: BorrowedFd<'_>, point: Point) {
    let told = openat(directory, "halted", OFlags::WRONLY | OFlags::APPEND | OFlags::CLOEXEC, Mode::empty())
        .and_then(|halted| write(&halted, format!("{}\n", point.name()).as_bytes()));
    let begin = Instant::now();
    while told.is_ok() && statat(directory, "order", AtFlags::empty()).is_ok() && begin.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(1));
    }
}
