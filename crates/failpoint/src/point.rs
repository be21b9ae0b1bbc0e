//! The table of all points.

/// Which program a point is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Side {
    /// The daemon.
    Daemon,
    /// A monitor, or a process that it is setting up.
    Monitor,
}

macro_rules! points {
    ($($side:ident $point:ident $name:literal: $effect:literal;)*) => {
        /// A place beside an effect.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Point {
            $(#[doc = $effect] $point,)*
        }

        impl Point {
            /// All there are.
            pub const ALL: &[Self] = &[$(Self::$point,)*];

            /// Its name, unique: `room.effect`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$point => $name,)* }
            }

            /// What has just happened where it stands.
            pub const fn effect(self) -> &'static str {
                match self { $(Self::$point => $effect,)* }
            }

            /// The program it is in.
            pub const fn side(self) -> Side {
                match self { $(Self::$point => Side::$side,)* }
            }
        }
    };
}

points! {
    Daemon RecordDraft "record.draft": "A pod's record is written, under another name still.";
    Daemon RecordRename "record.rename": "A pod's record is in its place, and none kept yet for the next.";
    Daemon PodDirectory "pod.directory": "A pod's directory is made.";
    Daemon PodFile "pod.file": "A file for the containers' /etc is written.";
    Daemon PodShm "pod.shm": "A pod's /dev/shm is mounted.";
    Daemon PodUnmount "pod.unmount": "A namespace pin or /dev/shm of a pod is unmounted.";
    Daemon PodUnpin "pod.unpin": "The mount point of a pod's namespace pin or /dev/shm is removed.";
    Daemon PodErase "pod.erase": "A pod's or a container's directory is removed.";
    Daemon ContainerDirectory "container.directory": "A container's directory is made.";
    Daemon ContainerLog "container.log": "A container's log file is made.";
    Daemon VolumeSource "volume.source": "A missing host path of a volume is made.";
    Daemon MonitorSocket "monitor.socket": "The socket for a new monitor is made.";
    Daemon MonitorSpawn "monitor.spawn": "A monitor's process is started.";
    Daemon MonitorCall "monitor.call": "A call is sent to a monitor.";
    Daemon MonitorReply "monitor.reply": "A monitor's reply is read, and not yet acted upon.";
    Daemon MonitorEvent "monitor.event": "A monitor's event is read, and not yet acted upon.";
    Daemon MonitorEnd "monitor.end": "A pod's monitor is told to end, and has ended or was killed.";
    Daemon BerthOrder "berth.order": "A process that waits in a container is sent a program to execute.";
    Daemon BerthOutcome "berth.outcome": "How a program ended that was executed for the daemon, without the monitor, is read.";
    Daemon NetlinkChange "netlink.change": "The kernel has carried out what a netlink socket asked: about links, addresses, routes, rules or flows.";
    Daemon NftCommit "nft.commit": "The nftables rules are changed.";
    Daemon NetworkSysctl "network.sysctl": "A kernel parameter of the node's network is set.";
    Daemon CgroupDirectory "cgroup.directory": "A cgroup is made.";
    Daemon CgroupMark "cgroup.mark": "A parent of a cgroup that should have been the kubelet's is marked as ours.";
    Daemon CgroupWrite "cgroup.write": "A file of a cgroup is written, or a device program attached.";
    Daemon CgroupKill "cgroup.kill": "The processes of a cgroup are killed; they may still be dying.";
    Daemon CgroupRemove "cgroup.remove": "A cgroup is removed.";
    Daemon WritableDirectory "writable.directory": "One of the directories of a writable layer is made.";
    Daemon WritableRoot "writable.root": "A writable layer's root has its owner, mode and times.";
    Daemon WritableForget "writable.forget": "A writable layer is out of the way, and the note of what it stood on deleted.";
    Daemon DiskScratch "disk.scratch": "A directory to unpack a layer in is made.";
    Daemon LayerTree "layer.tree": "The top directory of a layer's tree is made.";
    Daemon LayerMember "layer.member": "A member of a layer's archive is unpacked.";
    Daemon LayerRecord "layer.record": "A layer is unpacked and its record written, not in its place yet.";
    Daemon LayerKeep "layer.keep": "A layer is in its place.";
    Daemon LayerSync "layer.sync": "Layers are on the disk for sure, which is not on record yet.";
    Daemon DiskDraft "disk.draft": "A blob or an image's record is on the disk, under another name still.";
    Daemon DiskRename "disk.rename": "A blob or an image's record is in its place, which a power cut might undo.";
    Daemon NoteDraft "note.draft": "A Plan, a spec, the pods' subnet, a layer's record or a note of the image store is written, under another name still.";
    Daemon NoteRename "note.rename": "A Plan, a spec, the pods' subnet, a layer's record or a note of the image store is in its place.";
    Daemon ImageForget "image.forget": "An image's record is deleted; its blobs and layers are there still.";
    Daemon BlobDelete "blob.delete": "A blob that no image wants is deleted.";
    Daemon DiskAside "disk.aside": "A layer or writable layer is moved out of the way, to be deleted.";
    Daemon DiskDelete "disk.delete": "What was moved out of the way is deleted.";
    Monitor MonitorStart "monitor.start": "A monitor runs, and serves nobody yet.";
    Monitor NamespaceMake "namespace.make": "Namespaces of a pod are made, and pinned nowhere yet.";
    Monitor NamespacePin "namespace.pin": "A namespace of a pod is pinned.";
    Monitor NamespaceSysctl "namespace.sysctl": "A kernel parameter of a pod is set.";
    Monitor InitStart "init.start": "The init process of a pod that shares its process ids is started.";
    Monitor LogOpen "log.open": "A container's log is opened.";
    Monitor ProcessMake "process.make": "A process for a container or an exec is cloned; nothing is known of it yet.";
    Monitor ProcessSignal "process.signal": "A signal is sent.";
    Monitor ChildCgroup "child.cgroup": "A new process is in its cgroups.";
    Monitor ChildStep "child.step": "A new process has carried out a step of its Plan: a mount, a device, the pivot.";
    Monitor ChildReady "child.ready": "A new process is about to execute its program.";
    Monitor BerthChild "berth.child": "A process that waits in a container has made one for a program, which is about to be executed.";
    Monitor MonitorAnswer "monitor.answer": "A call is carried out, and the reply not sent yet.";
    Monitor ExitDraft "exit.draft": "How a container ended is written, under another name still.";
    Monitor ExitRename "exit.rename": "How a container ended is on record, and nobody told yet.";
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_are_unique_and_say_room_and_effect() {
        let names: HashSet<&str> = Point::ALL.iter().map(|point| point.name()).collect();
        assert_eq!(names.len(), Point::ALL.len());
        assert!(names.iter().all(|name| name.split('.').count() == 2), "{names:?}");
    }
}
