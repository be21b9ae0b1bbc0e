//! Mount options as the OCI spec writes them (one list of words, as mount(8) takes them), taken apart into what the
//! kernel keeps apart: flags of the mount, how it travels, and the file system's own options.

use coracle_plan::{Access, MountFlags, Propagation};

/// A mount's options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MountOptions {
    pub(crate) flags: MountFlags,
    /// Whether `flags` hold for every mount beneath (`rro`).
    pub(crate) flags_recursive: bool,
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
        let mut options = Self { flags, flags_recursive: false, recursive: false, propagation: Propagation::Private, data: Vec::new() };
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
        let flags = &mut self.flags;
        match word {
            "ro" => flags.access = Access::ReadOnly,
            "rw" => flags.access = Access::ReadWrite,
            "rro" => (flags.access, self.flags_recursive) = (Access::ReadOnly, true),
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
        assert!(options.recursive && !options.flags_recursive);
        assert_eq!(options.propagation, Propagation::Slave);
        assert_eq!(options.data, [("mode".to_owned(), Some("0620".to_owned())), ("newinstance".to_owned(), None)]);
    }

    #[test]
    fn recursive_read_only_is_read_only_all_the_way_down() {
        let options = MountOptions::of(&["rro".to_owned()]);
        assert!(options.flags_recursive && options.flags.access == Access::ReadOnly);
    }
}
