//! Room taken by writable layers. Walking a container's files takes long and its disk may hang, so one
//! thread walks, and callers get the last sample with the time it was taken. Asking for a sample that
//! has grown old has a new one taken.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use coracle_domain::{ContainerId, FilesystemUsage};

use crate::tree::{TreeSize, measure};

/// The age at which a sample is taken anew.
const FRESH: Duration = Duration::from_secs(10);

/// The samples of all containers. Clones share them and the thread, which ends after the last clone.
#[derive(Debug)]
pub(crate) struct Sampler {
    samples: Arc<Mutex<HashMap<ContainerId, Sample>>>,
    errands: Mutex<mpsc::Sender<ContainerId>>,
}

#[derive(Debug)]
struct Sample {
    upper: PathBuf,
    size: TreeSize,
    /// Nanoseconds since the epoch; `None`: never measured.
    at: Option<i64>,
    waiting: bool,
}

impl Sampler {
    pub(crate) fn start() -> std::io::Result<Self> {
        let samples: Arc<Mutex<HashMap<ContainerId, Sample>>> = Arc::default();
        let (errands, inbox) = mpsc::channel::<ContainerId>();
        let shared = Arc::clone(&samples);
        std::thread::Builder::new().name("coracle-measure".into()).spawn(move || {
            for id in inbox {
                resample(&shared, &id);
            }
        })?;
        Ok(Self { samples, errands: Mutex::new(errands) })
    }

    /// Starts to account for a container, whose upper directory was just made and measured.
    pub(crate) fn add(&self, id: ContainerId, upper: PathBuf, size: Option<TreeSize>) {
        let at = size.is_some().then(now);
        let sample = Sample { upper, size: size.unwrap_or_default(), at, waiting: false };
        lock(&self.samples).insert(id.clone(), sample);
        if at.is_none() {
            self.ask(&id);
        }
    }

    pub(crate) fn remove(&self, id: &ContainerId) {
        lock(&self.samples).remove(id);
    }

    /// The last sample of one container; its mountpoint is the upper directory.
    pub(crate) fn get(&self, id: &ContainerId) -> Option<FilesystemUsage> {
        self.ask(id);
        let samples = lock(&self.samples);
        let sample = samples.get(id)?;
        Some(FilesystemUsage { at: sample.at?, mountpoint: sample.upper.clone(), bytes: sample.size.bytes, inodes: sample.size.inodes })
    }

    /// The last samples of all containers together, as old as the oldest of them.
    pub(crate) fn total(&self, mountpoint: PathBuf) -> FilesystemUsage {
        let ids: Vec<_> = lock(&self.samples).keys().cloned().collect();
        ids.iter().for_each(|id| self.ask(id));
        let mut total = FilesystemUsage { at: now(), mountpoint, bytes: 0, inodes: 0 };
        for sample in lock(&self.samples).values() {
            total.bytes += sample.size.bytes;
            total.inodes += sample.size.inodes;
            total.at = total.at.min(sample.at.unwrap_or(total.at));
        }
        total
    }

    /// Has a container measured if its sample is old and nobody asked yet.
    fn ask(&self, id: &ContainerId) {
        let mut samples = lock(&self.samples);
        let Some(sample) = samples.get_mut(id) else { return };
        let old = sample.at.is_none_or(|at| now() - at > i64::try_from(FRESH.as_nanos()).unwrap_or(i64::MAX));
        if old && !sample.waiting {
            sample.waiting = lock(&self.errands).send(id.clone()).is_ok();
        }
    }
}

fn resample(samples: &Mutex<HashMap<ContainerId, Sample>>, id: &ContainerId) {
    let Some(upper) = lock(samples).get(id).map(|sample| sample.upper.clone()) else { return };
    let measured = measure(&upper);
    if let Some(sample) = lock(samples).get_mut(id) {
        sample.waiting = false;
        if let Ok(size) = measured {
            (sample.size, sample.at) = (size, Some(now()));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}
