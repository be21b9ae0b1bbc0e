//! Room taken by writable layers, and the file system they are on. Walking a container's files takes long and its
//! disk may hang, so one thread walks, and callers get the last sample with the time it was taken. Asking for a
//! sample that has grown old has a new one taken.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_domain::{ContainerId, Filesystem, FilesystemUsage};
use rustix::process::setpriority_process;
use rustix::thread::gettid;

use crate::filesystem;
use crate::tree::{TreeSize, measure};

/// The age at which a sample is taken anew.
const FRESH: Duration = Duration::from_secs(10);

/// The nice value of a thread that takes the processor time that nobody else wants.
const LEAST: i32 = 19;

/// The samples of all containers. Clones share them and the thread, which ends after the last clone.
#[derive(Debug)]
pub(crate) struct Sampler {
    samples: Arc<Samples>,
    errands: Mutex<mpsc::Sender<Errand>>,
}

#[derive(Debug, Default)]
struct Samples {
    containers: Mutex<HashMap<ContainerId, Sample>>,
    filesystem: Mutex<FilesystemSample>,
}

/// What the thread is to look at.
#[derive(Debug)]
enum Errand {
    Container(ContainerId),
    Filesystem,
}

#[derive(Debug)]
struct Sample {
    upper: PathBuf,
    size: TreeSize,
    /// Nanoseconds since the epoch; `None`: never measured.
    at: Option<i64>,
    waiting: bool,
}

#[derive(Debug, Default)]
struct FilesystemSample {
    last: Option<Filesystem>,
    waiting: bool,
}

impl Sampler {
    /// Starts the thread; the file system is that of `root`.
    pub(crate) fn start(root: PathBuf) -> std::io::Result<Self> {
        let samples = Arc::<Samples>::default();
        let (errands, inbox) = mpsc::channel();
        let shared = Arc::clone(&samples);
        std::thread::Builder::new().name("coracle-measure".into()).spawn(move || {
            // By its id this is for the thread alone. What it finds is as good a moment later.
            let _ = setpriority_process(Some(gettid()), LEAST);
            for errand in inbox {
                match errand {
                    Errand::Container(id) => shared.measure(&id),
                    Errand::Filesystem => shared.look(&root),
                }
            }
        })?;
        Ok(Self { samples, errands: Mutex::new(errands) })
    }

    /// Starts to account for a container, whose upper directory was just made and measured. One that was not is measured when
    /// somebody asks.
    pub(crate) fn add(&self, id: ContainerId, upper: PathBuf, size: Option<TreeSize>) {
        let at = size.is_some().then(now);
        let sample = Sample { upper, size: size.unwrap_or_default(), at, waiting: false };
        lock(&self.samples.containers).insert(id, sample);
    }

    /// Has all samples taken that are old or missing.
    pub(crate) fn refresh(&self) {
        self.filesystem();
        let ids: Vec<_> = lock(&self.samples.containers).keys().cloned().collect();
        ids.iter().for_each(|id| self.ask(id));
    }

    pub(crate) fn remove(&self, id: &ContainerId) {
        lock(&self.samples.containers).remove(id);
    }

    /// The last sample of one container; its mountpoint is the upper directory.
    pub(crate) fn get(&self, id: &ContainerId) -> Option<FilesystemUsage> {
        self.ask(id);
        let samples = lock(&self.samples.containers);
        let sample = samples.get(id)?;
        Some(FilesystemUsage { at: sample.at?, mountpoint: sample.upper.clone(), bytes: sample.size.bytes, inodes: sample.size.inodes })
    }

    /// The last samples of all containers together, as old as the oldest of them.
    pub(crate) fn total(&self, mountpoint: PathBuf) -> FilesystemUsage {
        self.refresh();
        let mut total = FilesystemUsage { at: now(), mountpoint, bytes: 0, inodes: 0 };
        for sample in lock(&self.samples.containers).values() {
            total.bytes += sample.size.bytes;
            total.inodes += sample.size.inodes;
            total.at = total.at.min(sample.at.unwrap_or(total.at));
        }
        total
    }

    /// The last sample of the file system; `None` until there is one.
    pub(crate) fn filesystem(&self) -> Option<Filesystem> {
        let mut sample = lock(&self.samples.filesystem);
        if is_old(sample.last.as_ref().map(|last| last.at)) && !sample.waiting {
            sample.waiting = self.send(Errand::Filesystem);
        }
        sample.last.clone()
    }

    /// Has a container measured if its sample is old and nobody asked yet.
    fn ask(&self, id: &ContainerId) {
        let mut samples = lock(&self.samples.containers);
        let Some(sample) = samples.get_mut(id) else { return };
        if is_old(sample.at) && !sample.waiting {
            sample.waiting = self.send(Errand::Container(id.clone()));
        }
    }

    fn send(&self, errand: Errand) -> bool {
        lock(&self.errands).send(errand).is_ok()
    }
}

impl Samples {
    fn measure(&self, id: &ContainerId) {
        let Some(upper) = lock(&self.containers).get(id).map(|sample| sample.upper.clone()) else { return };
        let measured = measure(&upper);
        if let Some(sample) = lock(&self.containers).get_mut(id) {
            sample.waiting = false;
            if let Ok(size) = measured {
                (sample.size, sample.at) = (size, Some(now()));
            }
        }
    }

    fn look(&self, root: &Path) {
        let looked = filesystem::look(root);
        let mut sample = lock(&self.filesystem);
        sample.waiting = false;
        if let Ok(filesystem) = looked {
            sample.last = Some(filesystem);
        }
    }
}

/// Whether a sample is to be taken anew. One from the future is: the clock was set back since.
fn is_old(at: Option<i64>) -> bool {
    let age = at.and_then(|at| u64::try_from(now() - at).ok());
    age.is_none_or(|age| Duration::from_nanos(age) > FRESH)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, getpriority_process};

    use super::*;

    /// The nice values of the threads that measure.
    fn priorities() -> Vec<i32> {
        let threads = std::fs::read_dir("/proc/self/task").unwrap().map(|entry| entry.unwrap());
        let measures = |path: &Path| std::fs::read_to_string(path.join("comm")).is_ok_and(|name| name.trim_end() == "coracle-measure");
        let ids = threads.filter(|thread| measures(&thread.path())).map(|thread| thread.file_name().to_str().unwrap().parse().unwrap());
        // One may have ended meanwhile.
        ids.filter_map(|id| getpriority_process(Pid::from_raw(id)).ok()).collect()
    }

    #[test]
    fn a_sample_is_old_after_a_while_and_when_the_clock_was_set_back() {
        let ago = |seconds: i64| Some(now() - seconds * 1_000_000_000);
        assert!(!is_old(ago(1)));
        assert!([None, ago(11), ago(-3600)].into_iter().all(is_old));
    }

    #[test]
    fn measuring_gives_way_to_everything_else() {
        let root = tempfile::tempdir().unwrap();
        let sampler = Sampler::start(root.path().to_owned()).unwrap();
        while sampler.filesystem().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(priorities().contains(&LEAST));
        assert_eq!(getpriority_process(None).unwrap(), getpriority_process(Some(gettid())).unwrap(), "no other thread does");
    }
}
