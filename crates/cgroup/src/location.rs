//! Where a cgroup is, relative to the root of every hierarchy. Pure: derived from ids and the kubelet's
//! `cgroup_parent`, whose text is checked here and nowhere else.

use std::fmt;
use std::path::{Path, PathBuf};

use coracle_domain::{Refusal, Result};

/// The kernel's limit on a name (NAME_MAX).
const LONGEST_NAME: usize = 255;
/// Leaves room for mount point, container id, exec leaf and file name in the kernel's PATH_MAX of 4096.
const LONGEST_PARENT: usize = 3072;

/// Whose the directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Owner {
    /// A container's: ours, and so are all parents up to our root.
    Ours,
    /// A container's under a parent that the kubelet gave: the directory is ours, its parents are not.
    UnderKubelet,
    /// A pod's directory which the kubelet manages: never removed, never limited.
    Kubelet,
}

/// The path of a cgroup, the same in every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Location {
    /// Relative: `coracle/<pod>/<container>`.
    relative: String,
    pub(crate) owner: Owner,
}

impl Location {
    /// A location of ours; `relative` is built of checked parts.
    pub(crate) fn ours(relative: String) -> Self {
        Self { relative, owner: Owner::Ours }
    }

    /// The kubelet's directory named by CRI's `cgroup_parent`.
    ///
    /// Repeated slashes are one; anything that could lead out of the hierarchy is refused.
    pub(crate) fn kubelets(cgroup_parent: &str) -> Result<Self> {
        let names: Vec<&str> = cgroup_parent.split('/').filter(|name| !name.is_empty()).collect();
        if let Some(problem) = names.iter().find_map(|name| problem_with(name)) {
            return Err(Refusal::invalid("cgroup_parent", format!("{cgroup_parent:?}: {problem}")).into());
        }
        let relative = names.join("/");
        if relative.len() > LONGEST_PARENT {
            return Err(Refusal::invalid("cgroup_parent", format!("longer than {LONGEST_PARENT} bytes")).into());
        }
        Ok(Self { relative, owner: Owner::Kubelet })
    }

    /// A directory of ours below.
    pub(crate) fn child(&self, name: &str) -> Self {
        let relative = if self.relative.is_empty() { name.to_owned() } else { format!("{}/{name}", self.relative) };
        let owner = if self.owner == Owner::Ours { Owner::Ours } else { Owner::UnderKubelet };
        Self { relative, owner }
    }

    /// Relative to a hierarchy's root, without a leading slash.
    pub(crate) fn relative(&self) -> &str {
        &self.relative
    }

    /// As the OCI runtime spec's `linux.cgroupsPath` and `/proc/<pid>/cgroup` write it: with a leading slash.
    pub fn absolute(&self) -> PathBuf {
        Path::new("/").join(&self.relative)
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.relative)
    }
}

/// What is wrong with `name` as the name of a cgroup.
pub(crate) fn problem_with(name: &str) -> Option<&'static str> {
    if name.is_empty() {
        Some("a name is empty")
    } else if matches!(name, "." | "..") {
        Some("`.` and `..` are not allowed")
    } else if name.bytes().any(|byte| byte.is_ascii_control() || byte == b'/') {
        Some("a name holds a slash or a control character")
    } else if name.len() > LONGEST_NAME {
        Some("a name is longer than 255 bytes")
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use coracle_domain::Error;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_container_goes_right_under_the_kubelets_directory() {
        let parent = Location::kubelets("/kubepods//burstable/podabc/").unwrap();
        let container = parent.child("c1");
        assert_eq!(container.to_string(), "/kubepods/burstable/podabc/c1");
        assert_eq!((parent.owner, container.owner), (Owner::Kubelet, Owner::UnderKubelet));
        assert_eq!(Location::kubelets("/").unwrap().child("c1").absolute(), Path::new("/c1"));
    }

    #[test]
    fn a_parent_that_leads_out_is_refused() {
        for bad in ["..", "/kubepods/../..", "a/./b", "a\nb", "a\0b", &"x".repeat(256), &"abc/".repeat(1000)] {
            assert!(matches!(Location::kubelets(bad), Err(Error::Refused(Refusal::Invalid { .. }))), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn no_accepted_parent_leaves_the_hierarchy(text in "[a./\\x00\n-]{0,24}") {
            if let Ok(location) = Location::kubelets(&text) {
                for part in Path::new(location.relative()).components() {
                    prop_assert!(matches!(part, std::path::Component::Normal(_)), "{:?}", part);
                }
            }
        }
    }
}
