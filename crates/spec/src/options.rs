//! Mount options as the OCI spec writes them (one list of words, as mount(8) takes them), taken apart into what the
//! kernel keeps apart: flags of the mount, how it travels, and the file system's own options.

use coracle_plan::{Access, MountFlags, Propagation};

/// A mount's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub(crate) flags: MountFlags,
    /// What holds for every mount beneath as well (`rro`, `rnoexec`…).
    pub(crate) flags_beneath: MountFlags,
    /// Whether mounts beneath a bind's source come along.
    pub(crate) recursive: bool,
    pub(crate) propagation: Propagation,
    /// The file system's own.
    pub(crate) data: Vec<(String, Option<String>)>,
}

impl MountOptions {
    /// Takes `words` apart; of contradicting ones the last wins. Unknown words are the file system's.
    pub(crate) fn of(words: &[String]) -> Self {
        let flags = MountFlags::default();
        let mut options = Self { flags, flags_beneath: flags, recursive: false, propagation: Propagation::Private, data: Vec::new() };
        for word in words {
            if !options.flag(word) && !options.travel(word) {
                options.data.push(match word.split_once('=') {
                    Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                    None => (word.clone(), None),
                });
            }
        }
        options
    }

    fn flag(&mut self, word: &str) -> bool {
        let (flags, beneath) = (&mut self.flags, &mut self.flags_beneath);
        match word {
            "ro" => flags.access = Access::ReadOnly,
            "rw" => flags.access = Access::ReadWrite,
            "rro" => beneath.access = Access::ReadOnly,
            "rnosuid" => beneath.nosuid = true,
            "rnoexec" => beneath.noexec = true,
            "rnodev" => beneath.nodev = true,
            "nosuid" | "suid" => flags.nosuid = word == "nosuid",
            "noexec" | "exec" => flags.noexec = word == "noexec",
            "nodev" | "dev" => flags.nodev = word == "nodev",
            "noatime" | "atime" => flags.noatime = word == "noatime",
            // The kernel's default, and one that differs from it only in how often times are written.
            "relatime" | "strictatime" => flags.noatime = false,
            _ => return false,
        }
        true
    }

    fn travel(&mut self, word: &str) -> bool {
        match word {
            "bind" => self.recursive = false,
            "rbind" => self.recursive = true,
            // Said by the mount's mappings.
            "idmap" => {}
            "private" | "rprivate" => self.propagation = Propagation::Private,
            "slave" | "rslave" => self.propagation = Propagation::Slave,
            "shared" | "rshared" => self.propagation = Propagation::Shared,
            _ => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_travel_and_file_system_options_come_apart() {
        let words = ["rbind", "rslave", "ro", "nosuid", "mode=0620", "newinstance", "strictatime"].map(str::to_owned);
        let options = MountOptions::of(&words);
        assert_eq!(options.flags, MountFlags { access: Access::ReadOnly, nosuid: true, ..MountFlags::default() });
        assert!(options.recursive && options.flags_beneath == MountFlags::default());
        assert_eq!(options.propagation, Propagation::Slave);
        assert_eq!(options.data, [("mode".to_owned(), Some("0620".to_owned())), ("newinstance".to_owned(), None)]);
    }

    #[test]
    fn recursive_options_hold_for_the_mounts_beneath() {
        let options = MountOptions::of(&["rro", "rnoexec", "rnodev", "rnosuid"].map(str::to_owned));
        assert_eq!(options.flags_beneath, MountFlags { access: Access::ReadOnly, noexec: true, nosuid: true, nodev: true, noatime: false });
        assert_eq!(options.flags, MountFlags::default());
    }
}
