//! The pod's own namespaces: made by the monitor for itself, pinned by bind mounts so that they outlive it.

mod clocks;
mod owned;

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use coracle_failpoint::{Point, reach};
use coracle_plan::{Cgroups, UserNamespace};
use coracle_sys::namespace::{Namespace, unshare};
use rustix::event::Timespec;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{UnmountFlags, mount_bind, unmount};
use rustix::process::Pid;
use rustix::system::sethostname;

use crate::channel::{self, Report};
use crate::child;
use crate::fault::{OrFault, Result};
use crate::init;
use crate::process::{self, Place, Process};
use crate::protocol::{Fault, Prepare};
use crate::sysctl;

/// How long a process that prepares the pod may take to be ready: it makes one mount at most.
const PATIENCE: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };

/// What the monitor holds of its pod.
#[derive(Debug, Default)]
pub(crate) struct Pod {
    prepared: Option<Prepare>,
    init: Option<Process>,
}

impl Pod {
    /// Makes the namespaces and moves into them. Asking for the same again changes nothing.
    pub(crate) fn prepare(&mut self, wanted: Prepare) -> Result<()> {
        let stage = "preparing the pod in";
        match &self.prepared {
            Some(prepared) if *prepared == wanted => return Ok(()),
            Some(_) => return Err(Errno::ALREADY).or_fault(stage, wanted.pins.display()),
            None => {}
        }
        DirBuilder::new().recursive(true).mode(0o711).create(&wanted.pins).or_fault("making the directory", wanted.pins.display())?;
        clocks::make_namespace(&wanted)?;
        make_namespaces(&wanted)?;
        for (name, value) in wanted.sysctls.iter().filter(|(name, _)| wanted.user.is_none() || sysctl::is_of_node_root(name)) {
            sysctl::set(name, value)?;
        }
        if wanted.share_pid {
            self.end_init();
            let init = start_init(wanted.user.as_ref())?;
            let namespace = format!("/proc/{}/ns/pid", init.pid.as_raw_pid());
            self.init = Some(init);
            reach(Point::InitStart);
            pin(&namespace, &wanted.pins.join("pid"))?;
        }
        self.prepared = Some(wanted);
        Ok(())
    }

    /// Kills the init process, and with it all who live in its namespace.
    fn end_init(&mut self) {
        if let Some(init) = self.init.take() {
            // Gone or not, it is nobody's init any more.
            let _ = init.signal(rustix::process::Signal::KILL.as_raw());
        }
    }

    /// The process whose pid namespace the containers share.
    pub(crate) fn init(&self) -> Option<&Process> {
        self.init.as_ref()
    }

    /// Takes note that a process was reaped; says whether it was the init process.
    pub(crate) fn ended(&mut self, pid: Pid) -> bool {
        self.init.take_if(|init| init.pid == pid).is_some()
    }
}

fn make_namespaces(wanted: &Prepare) -> Result<()> {
    match &wanted.user {
        Some(user) => owned::make(wanted, user)?,
        None => {
            let own: Vec<(Namespace, &str)> = own_namespaces(wanted).collect();
            let namespaces: Vec<Namespace> = own.iter().map(|(namespace, _)| *namespace).collect();
            unshare(&namespaces).or_fault("making namespaces", format_args!("{namespaces:?}"))?;
            reach(Point::NamespaceMake);
            for (_, name) in &own {
                pin(&format!("/proc/self/ns/{name}"), &wanted.pins.join(name))?;
            }
        }
    }
    match &wanted.hostname {
        Some(name) => sethostname(name.as_bytes()).or_fault("setting the host name", name),
        None => Ok(()),
    }
}

/// The namespaces that the monitor itself is to live in, and their names in /proc and among the pins.
fn own_namespaces(wanted: &Prepare) -> impl Iterator<Item = (Namespace, &'static str)> {
    [(wanted.network, Namespace::Network, "net"), (wanted.ipc, Namespace::Ipc, "ipc"), (wanted.hostname.is_some(), Namespace::Uts, "uts")]
        .into_iter()
        .filter_map(|(wanted, namespace, name)| wanted.then_some((namespace, name)))
}

/// Mounts a namespace on a file of its own.
fn pin(namespace: &str, place: &Path) -> Result<()> {
    let stage = "pinning a namespace at";
    let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // What an attempt that failed left there may be the pin of another namespace.
    while unmount(place, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW).is_ok() {}
    open(place, flags, Mode::from_raw_mode(0o600)).or_fault(stage, place.display())?;
    mount_bind(namespace, place).or_fault(stage, place.display())?;
    reach(Point::NamespacePin);
    Ok(())
}

fn start_init(user: Option<&UserNamespace>) -> Result<Process> {
    let (listening, reporting) = channel::new().or_fault("making", "a socket pair")?;
    let cgroups = Cgroups::default();
    let mut init = match user {
        None => process::make(Place::New, true, &cgroups, || init::run(init::NOBODY, &reporting))?,
        Some(user) => process::make(Place::Node, false, &cgroups, || child::start_init(user, &reporting))?,
    };
    drop(reporting);
    loop {
        match listening.await_report(Some(&PATIENCE)) {
            Some((Report::Ready, _)) => return Ok(init),
            Some((Report::Failed(fault), _)) => return Err(fault),
            Some((Report::Moved { pid }, Some(handle))) => init = Process::moved(pid, handle)?,
            Some(_) | None => {
                let _ = init.signal(rustix::process::Signal::KILL.as_raw());
                return Err(Fault::new("starting", "the pod's init process", Errno::TIMEDOUT));
            }
        }
    }
}
