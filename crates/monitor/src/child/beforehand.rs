//! What a plan needs of the node that nobody in a user namespace can have: made while the process is still the node's
//! root, as mounts attached nowhere, which go to their places once it has crossed.
//!
//! It works in a mount namespace of its own, which ends with the crossing: there the layers are mounted over
//! themselves with their owners mapped (mount_setattr(2), MOUNT_ATTR_IDMAP), and overlayfs over them. Devices are made on
//! a file system there and shown in the container by binds, as nobody in a user namespace may make any that open.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use coracle_plan::{MountFlags, Plan, Propagation, Step};
use coracle_sys::mount::map_ids;
use rustix::fs::{CWD, Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};

use super::image;
use super::mount::{self, Filesystem};
use super::node::Device;
use crate::fault::{OrFault, Result};

/// What was done for a step.
#[derive(Debug)]
pub(crate) enum Done {
    /// Nothing: it can be carried out inside.
    Nothing,
    /// Everything.
    Everything,
    /// Its mount was made, and is to be put in its place.
    Mount(OwnedFd),
}

/// A plan's root file system, attached nowhere, and what was done for each of its steps.
#[derive(Debug)]
pub(crate) struct Beforehand {
    pub(crate) root: OwnedFd,
    pub(crate) steps: Vec<Done>,
}

/// Does what must be done on this side of `namespace`.
pub(crate) fn prepare(plan: &Plan, namespace: BorrowedFd<'_>) -> Result<Beforehand> {
    let mut workshop = Workshop { place: &plan.root, namespace, root: None, mapped: HashSet::new(), devices: None };
    let steps = plan.steps.iter().enumerate().map(|(number, step)| workshop.prepare(number, step)).collect::<Result<_>>()?;
    let root = workshop.root.ok_or(Errno::NOENT).or_fault("finding the layers for", plan.root.display())?;
    Ok(Beforehand { root, steps })
}

struct Workshop<'a> {
    place: &'a Path,
    namespace: BorrowedFd<'a>,
    /// The root file system, once it was mounted.
    root: Option<OwnedFd>,
    /// The layers whose owners are mapped.
    mapped: HashSet<PathBuf>,
    /// The file system on which devices are made, once there are any.
    devices: Option<OwnedFd>,
}

impl Workshop<'_> {
    fn prepare(&mut self, number: usize, step: &Step) -> Result<Done> {
        match step {
            Step::Propagate(propagation) => keep_apart(*propagation).map(|()| Done::Everything),
            Step::Overlay { lower, upper, work, label } => {
                self.map_layers(lower)?;
                mount::overlay(self.place, lower, upper, work, label.as_deref())?;
                self.root = Some(loose(self.place).or_fault("taking the layers mounted on", self.place.display())?);
                Ok(Done::Everything)
            }
            Step::Bind { source, target, recursive, flags, flags_beneath, propagation, mapped } => {
                let bind = mount::Bind { source, recursive: *recursive, flags, flags_beneath, propagation: *propagation };
                bind.make(target, mapped.then_some(self.namespace)).map(Done::Mount)
            }
            Step::Image { lower, sub_path, target, flags } => {
                self.map_layers(lower)?;
                let volume = image::Volume { lower, sub_path: sub_path.as_deref(), flags };
                volume.make(self.place, target).map(Done::Mount)
            }
            Step::Device { target, kind, major, minor, mode, uid, gid } => {
                // With its owner on the node: to be root inside is no right to the node's disks.
                let device = Device { kind: *kind, number: rustix::fs::makedev(*major, *minor), mode: *mode, uid: *uid, gid: *gid };
                self.device(&device, &number.to_string()).or_fault("making the device", target.display()).map(Done::Mount)
            }
            _ => Ok(Done::Nothing),
        }
    }

    /// Images share layers, and a mount can be mapped once.
    fn map_layers(&mut self, layers: &[PathBuf]) -> Result<()> {
        for layer in layers {
            if self.mapped.insert(layer.clone()) {
                self.map_layer(layer).or_fault("mapping the owners of files in the layer", layer.display())?;
            }
        }
        Ok(())
    }

    fn map_layer(&self, layer: &Path) -> std::result::Result<(), Errno> {
        let mount = loose(layer)?;
        map_ids(mount.as_fd(), self.namespace).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let place = open(layer, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(mount.as_fd(), place.as_fd())
    }

    fn device(&mut self, device: &Device, name: &str) -> std::result::Result<OwnedFd, Errno> {
        let directory = match self.devices.take() {
            Some(directory) => directory,
            None => self.device_directory()?,
        };
        let directory = self.devices.insert(directory);
        device.make_in(directory, OsStr::new(name))?;
        let node = openat(directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        mount::clone(node.as_fd(), OpenTreeFlags::empty())
    }

    /// Where the layers were, which were taken from there.
    fn device_directory(&self) -> std::result::Result<OwnedFd, Errno> {
        let flags = MountFlags { nosuid: true, noexec: true, ..MountFlags::default() };
        let directory = Filesystem { kind: "tmpfs", source: "tmpfs", flags: &flags, options: &[] };
        let directory = directory.make("devices").map_err(|fault| Errno::from_raw_os_error(fault.errno))?;
        let place = open(self.place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        mount::attach(directory.as_fd(), place.as_fd())?;
        Ok(directory)
    }
}

/// A second mount of what is at `path`, attached nowhere.
fn loose(path: &Path) -> std::result::Result<OwnedFd, Errno> {
    open_tree(CWD, path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)
}

/// Cuts the tie from these mounts to the node's. The other way it may stay: mounts of the node go on to arrive, here
/// and in the container, but nothing that is mounted in a user namespace reaches the node.
fn keep_apart(propagation: Propagation) -> Result<()> {
    let flag = match propagation {
        Propagation::Private => MountPropagationFlags::PRIVATE,
        Propagation::Slave | Propagation::Shared => MountPropagationFlags::DOWNSTREAM,
    };
    mount_change("/", flag | MountPropagationFlags::REC).or_fault("changing the propagation of mounts beneath", "/")
}
