//! `logs`: prints a container's log file. The file is on the container's node, so this works only there.

use std::fs::{self, File};
use std::io::{self, BufWriter, ErrorKind, Stderr, Stdout, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use coracle_cri::v1;
use coracle_domain::{During, Failure, Refusal};
use tonic::Code;

use super::connect::Client;
use super::error::{Error, Result};
use super::log_file::{Lines, Printer};
use super::pods::is_absent;
use super::resolve::Catalogue;
use crate::cli::LogsArgs;

/// How long to wait for more.
const PAUSE: Duration = Duration::from_millis(100);
const READING: &str = "reading the log";

type Terminal = Printer<BufWriter<Stdout>, Stderr>;

/// Prints a container's log, and what is added to it if that is asked.
pub(crate) async fn logs(client: &Client, args: &LogsArgs) -> Result<()> {
    let id = Catalogue::containers(client).await?.resolve(&args.container)?.id.clone();
    let path = log_path(client, &id).await?;
    let mut printer = Printer::new(BufWriter::new(io::stdout()), io::stderr(), args.timestamps, args.since.map(|since| since.0));
    let mut lines = if args.follow { open_when_there(client, &id, &path).await? } else { open(&path)? };
    if let Some(count) = args.tail {
        printer.skip_to_tail(&mut lines, count).during(READING, path.display())?;
    }
    if args.follow {
        follow(client, &id, Follower { path: path.clone(), lines }, &mut printer).await?;
    } else {
        printer.drain(&mut lines)?;
    }
    match printer.malformed() {
        0 => Ok(()),
        count => Err(Failure::new(READING, path.display(), format!("{count} lines are not in CRI's format and were left out")).into()),
    }
}

/// Prints all that a container prints, until it has exited.
pub(crate) async fn print_until_exit(client: &Client, id: &str) -> Result<()> {
    let path = log_path(client, id).await?;
    let lines = open_when_there(client, id, &path).await?;
    let mut printer = Printer::new(BufWriter::new(io::stdout()), io::stderr(), false, None);
    follow(client, id, Follower { path, lines }, &mut printer).await
}

async fn log_path(client: &Client, id: &str) -> Result<PathBuf> {
    let status = client.container_status(id, false).await?.status.unwrap_or_default();
    if status.log_path.is_empty() {
        return Err(Refusal::wrong_state(format!("container {id} was made without a log file")).into());
    }
    Ok(status.log_path.into())
}

fn open(path: &Path) -> Result<Lines> {
    File::open(path).map(Lines::new).map_err(|error| {
        let absent = error.kind() == ErrorKind::NotFound;
        let failure = Failure::new("opening the log", path.display(), error);
        if absent { failure.hint("log files are on the container's node: run this there") } else { failure }.into()
    })
}

/// Opens the file as soon as there is one; a runtime may make it at the start only.
async fn open_when_there(client: &Client, id: &str, path: &Path) -> Result<Lines> {
    while !path.exists() && !has_exited(client, id).await? {
        tokio::time::sleep(PAUSE).await;
    }
    open(path)
}

/// What has exited, and what is gone, writes no more.
async fn has_exited(client: &Client, id: &str) -> Result<bool> {
    match client.container_status(id, false).await {
        Ok(answer) => Ok(answer.status.is_some_and(|status| status.state() == v1::ContainerState::ContainerExited)),
        Err(error) if is_absent(&error) => Ok(true),
        // Containers go on while a daemon restarts.
        Err(Error::Server(status)) if status.code() == Code::Unavailable => Ok(false),
        Err(error) => Err(error),
    }
}

async fn follow(client: &Client, id: &str, mut follower: Follower, printer: &mut Terminal) -> Result<()> {
    let mut exited = false;
    loop {
        follower.drain(printer)?;
        if exited {
            return Ok(());
        }
        // Asked before the pause: what came in before the exit is there after it.
        exited = has_exited(client, id).await?;
        tokio::time::sleep(PAUSE).await;
    }
}

/// A log file that goes on under the same path when it is rotated.
#[derive(Debug)]
struct Follower {
    path: PathBuf,
    lines: Lines,
}

impl Follower {
    /// Prints what is there, in the present file and in those that took its place.
    fn drain<O: Write, E: Write>(&mut self, printer: &mut Printer<O, E>) -> Result<()> {
        printer.drain(&mut self.lines)?;
        while let Some(successor) = self.successor().during(READING, self.path.display())? {
            // The writer has moved on; what it wrote last to the old file is there by now.
            printer.drain(&mut self.lines)?;
            self.lines = Lines::new(successor);
            printer.drain(&mut self.lines)?;
        }
        Ok(())
    }

    /// The file at the path if it is another than the one being read, or if that one has been cut.
    fn successor(&self) -> io::Result<Option<File>> {
        let current = match fs::metadata(&self.path) {
            Ok(metadata) => metadata,
            // Renamed, and the new one is not made yet.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let own = self.lines.file().metadata()?;
        let same = (own.dev(), own.ino()) == (current.dev(), current.ino());
        if same && own.len() >= self.lines.read_up_to() {
            return Ok(None);
        }
        match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            result => result.map(Some),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;

    use super::*;

    fn append(path: &Path, word: &str) {
        let mut file = OpenOptions::new().append(true).create(true).open(path).unwrap();
        writeln!(file, "t stdout F {word}").unwrap();
    }

    fn drained(follower: &mut Follower) -> String {
        let mut out = Vec::new();
        follower.drain(&mut Printer::new(&mut out, io::sink(), false, None)).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn following_goes_on_over_rotations_and_cuts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("0.log");
        append(&path, "one");
        let mut follower = Follower { path: path.clone(), lines: open(&path).unwrap() };
        assert_eq!(drained(&mut follower), "one\n");
        let old = directory.path().join("0.log.1");
        fs::rename(&path, &old).unwrap();
        append(&old, "two");
        assert_eq!(drained(&mut follower), "two\n");
        append(&old, "three");
        append(&path, "four");
        assert_eq!(drained(&mut follower), "three\nfour\n");
        fs::write(&path, "").unwrap();
        assert_eq!(drained(&mut follower), "");
        append(&path, "five");
        assert_eq!(drained(&mut follower), "five\n");
    }

    #[test]
    fn a_missing_log_says_where_to_look() {
        let error = open(Path::new("/nonexistent/0.log")).unwrap_err().to_string();
        assert!(error.contains("/nonexistent/0.log") && error.contains("node"), "{error}");
    }
}
