//! What stands behind the spec's one mount of type `cgroup`: on v2 the container's own tree in its cgroup namespace,
//! on v1 a directory of binds, one per hierarchy, laid out as systemd lays out the node's.

use std::path::{Path, PathBuf};

use coracle_plan::{Access, MountFlags, Propagation, Step};

use crate::{CgroupHierarchy, CgroupView};

/// The node's own mount.
const NODE: &str = "/sys/fs/cgroup";

/// The steps that make `target`; `own_namespace`: the container has a cgroup namespace.
pub(crate) fn steps(view: &CgroupView, target: &Path, flags: MountFlags, own_namespace: bool) -> Vec<Step> {
    match view {
        CgroupView::Unified if own_namespace => vec![filesystem("cgroup2", "cgroup", target, flags, Vec::new())],
        // A new mount in the node's namespace would change the options of the one instance all share.
        CgroupView::Unified => vec![bind(Path::new(NODE), target.to_owned(), flags, true)],
        CgroupView::Hierarchies(hierarchies) => directory_of_hierarchies(hierarchies, target, flags),
    }
}

fn directory_of_hierarchies(hierarchies: &[CgroupHierarchy], target: &Path, flags: MountFlags) -> Vec<Step> {
    // Writable until everything is in it.
    let writable = MountFlags { access: Access::ReadWrite, ..flags };
    let mut steps = vec![filesystem("tmpfs", "tmpfs", target, writable, vec![("mode".to_owned(), Some("755".to_owned()))])];
    for hierarchy in hierarchies {
        steps.push(bind(&hierarchy.source, target.join(&hierarchy.name), flags, false));
        steps.extend(
            hierarchy.aliases.iter().map(|alias| Step::Symlink { target: target.join(alias), content: PathBuf::from(&hierarchy.name) }),
        );
    }
    if flags.access == Access::ReadOnly {
        steps.push(Step::ReadOnly { target: target.to_owned() });
    }
    steps
}

fn filesystem(kind: &str, source: &str, target: &Path, flags: MountFlags, options: Vec<(String, Option<String>)>) -> Step {
    Step::Filesystem { kind: kind.to_owned(), source: source.to_owned(), target: target.to_owned(), flags, options }
}

fn bind(source: &Path, target: PathBuf, flags: MountFlags, recursive: bool) -> Step {
    let (flags_beneath, propagation) = (MountFlags::default(), Propagation::Private);
    Step::Bind { source: source.to_owned(), target, recursive, flags, flags_beneath, propagation, mapped: false }
}
