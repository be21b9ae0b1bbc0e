//! Who a process runs as: the request's or the image's user, resolved by the image's own /etc/passwd and /etc/group
//! (passwd(5), group(5)). The engine reads the two files beneath the root file system and hands in their bytes, which
//! are an attacker's: lines that make no sense are skipped, sizes are bounded, nothing panics.

use coracle_domain::{Refusal, Result, RunAs, SecurityContext, SupplementalGroupsPolicy};
use serde::{Deserialize, Serialize};

/// The largest passwd or group file that is looked into, bytes.
pub const LARGEST_DATABASE: usize = 4 << 20;

/// The kernel's limit on supplementary groups (NGROUPS_MAX).
const MOST_GROUPS: usize = 65_536;

/// A numeric identity and what comes with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResolvedUser {
    /// The user.
    pub uid: u32,
    /// The primary group.
    pub gid: u32,
    /// All supplementary groups, the primary one first, each once.
    pub groups: Vec<u32>,
    /// The home directory; `/` where the image knows none.
    pub home: String,
}

/// An image's users and groups.
#[derive(Debug, Clone, Copy)]
pub struct UserDatabase<'a> {
    passwd: &'a [u8],
    group: &'a [u8],
}

/// A user or group as somebody wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Who<'a> {
    Id(u32),
    Name(&'a str),
}

/// A line of passwd.
#[derive(Debug)]
struct UserEntry<'a> {
    name: &'a [u8],
    uid: u32,
    gid: u32,
    home: &'a [u8],
}

/// A line of group.
#[derive(Debug)]
struct GroupEntry<'a> {
    name: &'a [u8],
    gid: u32,
    members: &'a [u8],
}

impl<'a> UserDatabase<'a> {
    /// The users of an image, by the content of its two files; empty where it has none. Refused beyond
    /// [`LARGEST_DATABASE`].
    pub fn new(passwd: &'a [u8], group: &'a [u8]) -> Result<Self> {
        for (path, content) in [("/etc/passwd", passwd), ("/etc/group", group)] {
            if content.len() > LARGEST_DATABASE {
                let problem = format!("its {path} is larger than {LARGEST_DATABASE} bytes");
                return Err(Refusal::invalid("config.image", problem).into());
            }
        }
        Ok(Self { passwd, group })
    }

    /// Whom `security` asks for in an image named `image` whose config says `image_user`.
    ///
    /// A numeric user need not be known; a name must be.
    pub fn resolve(&self, security: &SecurityContext, image_user: &str, image: &str) -> Result<ResolvedUser> {
        let (user, group) = wanted(security, image_user, image)?;
        let entry = match user {
            Who::Id(uid) => self.users().find(|entry| entry.uid == uid),
            Who::Name(name) => {
                let entry = self.users().find(|entry| entry.name == name.as_bytes());
                Some(entry.ok_or_else(|| unknown("user", name, image))?)
            }
        };
        let uid = match user {
            Who::Id(uid) => uid,
            Who::Name(_) => entry.as_ref().map_or(0, |entry| entry.uid),
        };
        let gid = match group {
            Some(Who::Id(gid)) => gid,
            Some(Who::Name(name)) => {
                self.groups().find(|entry| entry.name == name.as_bytes()).ok_or_else(|| unknown("group", name, image))?.gid
            }
            None => entry.as_ref().map_or(0, |entry| entry.gid),
        };
        let groups = self.supplementary(gid, entry.as_ref().map(|entry| entry.name), security)?;
        let home = entry.map(|entry| String::from_utf8_lossy(entry.home).into_owned()).filter(|home| !home.is_empty());
        Ok(ResolvedUser { uid, gid, groups, home: home.unwrap_or_else(|| "/".to_owned()) })
    }

    fn supplementary(&self, gid: u32, name: Option<&[u8]>, security: &SecurityContext) -> Result<Vec<u32>> {
        let mut groups = vec![gid];
        let mut seen = std::collections::HashSet::from([gid]);
        if let (Some(name), SupplementalGroupsPolicy::Merge) = (name, security.supplemental_groups_policy) {
            groups.extend(self.groups().filter(|entry| entry.has(name)).map(|entry| entry.gid).filter(|gid| seen.insert(*gid)));
        }
        groups.extend(security.supplemental_groups.iter().copied().filter(|gid| seen.insert(*gid)));
        if groups.len() > MOST_GROUPS {
            let problem = format!("more than {MOST_GROUPS} together with the image's");
            return Err(Refusal::invalid("linux.security_context.supplemental_groups", problem).into());
        }
        Ok(groups)
    }

    fn users(&self) -> impl Iterator<Item = UserEntry<'a>> + use<'a> {
        lines(self.passwd).filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let uid = number(fields.nth(1)?)?;
            let gid = number(fields.next()?)?;
            let home = fields.nth(1).unwrap_or_default();
            Some(UserEntry { name, uid, gid, home: if home.contains(&0) { b"" } else { home } })
        })
    }

    fn groups(&self) -> impl Iterator<Item = GroupEntry<'a>> + use<'a> {
        lines(self.group).filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b':');
            let name = fields.next().filter(|name| !name.is_empty())?;
            let gid = number(fields.nth(1)?)?;
            Some(GroupEntry { name, gid, members: fields.next().unwrap_or_default() })
        })
    }
}

impl GroupEntry<'_> {
    fn has(&self, user: &[u8]) -> bool {
        self.members.split(|byte| *byte == b',').any(|member| member.trim_ascii() == user)
    }
}

/// The user and the group asked for.
fn wanted<'a>(security: &'a SecurityContext, image_user: &'a str, image: &str) -> Result<(Who<'a>, Option<Who<'a>>)> {
    let group = security.run_as_group.map(Who::Id);
    match &security.run_as {
        RunAs::Uid(uid) => Ok((Who::Id(*uid), group)),
        RunAs::Name(name) => Ok((who(name).ok_or_else(|| unusable(name, "linux.security_context.run_as_username"))?, group)),
        RunAs::ImageUser if group.is_some() => {
            Err(Refusal::invalid("linux.security_context.run_as_group", "a group is given without a user").into())
        }
        RunAs::ImageUser => of_image(image_user).ok_or_else(|| unusable(image_user, image).into()),
    }
}

/// `user`, `user:group`, `:group`; either as a name or a number; empty: root.
fn of_image(text: &str) -> Option<(Who<'_>, Option<Who<'_>>)> {
    let (user, group) = text.split_once(':').unwrap_or((text, ""));
    let user = if user.is_empty() { Who::Id(0) } else { who(user)? };
    let group = if group.is_empty() { None } else { Some(who(group)?) };
    Some((user, group))
}

/// Digits are a number, even where a user has such a name; a number out of range is nobody.
fn who(text: &str) -> Option<Who<'_>> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) {
        number(text.as_bytes()).map(Who::Id)
    } else {
        (!text.contains(':')).then_some(Who::Name(text))
    }
}

/// A uid or gid. The largest u32 means "none" to the kernel.
fn number(text: &[u8]) -> Option<u32> {
    let text = std::str::from_utf8(text).ok()?;
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten().filter(|number| *number != u32::MAX)
}

fn lines(content: &[u8]) -> impl Iterator<Item = &[u8]> {
    content.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii).filter(|line| !line.starts_with(b"#"))
}

fn unknown(noun: &str, name: &str, image: &str) -> Refusal {
    Refusal::invalid("linux.security_context", format!("image {image:?} has no {noun} named {name:?}"))
}

fn unusable(user: &str, whose: &str) -> Refusal {
    Refusal::invalid("linux.security_context", format!("{whose}: {user:?} is no user"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# a comment\nbroken\nweb:x:1000:2000::/srv/web:/bin/sh\n\
        short:x:7:8\nhuge:x:4294967296:1::/:\nmany:x:1000:9:::\nnohome:x:5:5:::\n";
    const GROUP: &[u8] = b"root:x:0:\nweb:x:2000:\nlogs:x:50:web,root\nmore:x:60: web \nbad:x:nan:web\nagain:x:50:web\n";

    fn resolve(change: impl FnOnce(&mut SecurityContext), image_user: &str) -> Result<ResolvedUser> {
        let mut security = SecurityContext::default();
        change(&mut security);
        UserDatabase::new(PASSWD, GROUP)?.resolve(&security, image_user, "registry.test/app:1")
    }

    fn user(uid: u32, gid: u32, groups: &[u32], home: &str) -> ResolvedUser {
        ResolvedUser { uid, gid, groups: groups.to_vec(), home: home.to_owned() }
    }

    #[test]
    fn every_form_of_an_images_user_is_understood() {
        let forms = [
            ("", user(0, 0, &[0, 50], "/root")),
            ("web", user(1000, 2000, &[2000, 50, 60], "/srv/web")),
            ("1000", user(1000, 2000, &[2000, 50, 60], "/srv/web")),
            ("web:logs", user(1000, 50, &[50, 60], "/srv/web")),
            ("web:7", user(1000, 7, &[7, 50, 60], "/srv/web")),
            ("web:", user(1000, 2000, &[2000, 50, 60], "/srv/web")),
            (":web", user(0, 2000, &[2000, 50], "/root")),
            ("4242", user(4242, 0, &[0], "/")),
            ("4242:4343", user(4242, 4343, &[4343], "/")),
            ("short", user(7, 8, &[8], "/")),
            ("nohome", user(5, 5, &[5], "/")),
        ];
        for (text, expected) in forms {
            assert_eq!(resolve(|_| (), text).unwrap(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_request_replaces_the_images_user_and_group() {
        assert_eq!(resolve(|s| s.run_as = RunAs::Uid(1000), "root:root").unwrap(), user(1000, 2000, &[2000, 50, 60], "/srv/web"));
        assert_eq!(resolve(|s| s.run_as = RunAs::Uid(4242), "web").unwrap(), user(4242, 0, &[0], "/"));
        let named = resolve(|s| (s.run_as, s.run_as_group) = (RunAs::Name("web".into()), Some(3)), "").unwrap();
        assert_eq!(named, user(1000, 3, &[3, 50, 60], "/srv/web"));
    }

    #[test]
    fn strict_ignores_the_images_groups_and_merge_adds_the_requests() {
        let asked = |s: &mut SecurityContext| s.supplemental_groups = vec![60, 70, 70, 2000];
        assert_eq!(resolve(asked, "web").unwrap().groups, [2000, 50, 60, 70]);
        let strict = |s: &mut SecurityContext| {
            asked(s);
            s.supplemental_groups_policy = SupplementalGroupsPolicy::Strict;
        };
        assert_eq!(resolve(strict, "web").unwrap().groups, [2000, 60, 70]);
    }

    #[test]
    fn unknown_names_are_refused_with_name_and_image() {
        for text in ["nobody", "web:nogroup", "huge", "broken"] {
            let message = resolve(|_| (), text).unwrap_err().to_string();
            assert!(message.contains("registry.test/app:1") && message.contains(text.rsplit(':').next().unwrap()), "{message}");
        }
        for text in ["a:b:c", "4294967295", "99999999999", "1:99999999999"] {
            assert!(resolve(|_| (), text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_group_without_a_user_is_refused() {
        assert!(resolve(|s| s.run_as_group = Some(5), "web").is_err());
    }

    #[test]
    fn sizes_are_bounded() {
        assert!(UserDatabase::new(&vec![b'\n'; LARGEST_DATABASE + 1], b"").is_err());
        let group: String = (0..70_000).map(|gid| format!("g{gid}:x:{gid}:web\n")).collect();
        let error = UserDatabase::new(PASSWD, group.as_bytes()).unwrap().resolve(&SecurityContext::default(), "web", "app");
        assert!(error.is_err());
    }

    proptest! {
        #[test]
        fn any_bytes_resolve_or_refuse(passwd: Vec<u8>, group: Vec<u8>, image_user: String) {
            let database = UserDatabase::new(&passwd, &group).unwrap();
            let _ = database.resolve(&SecurityContext::default(), &image_user, "app");
        }

        #[test]
        fn files_that_look_real_resolve_or_refuse(
            passwd in "([a-c]?:x?:[0-9]{0,3}:[0-9]{0,11}:?:?/?\n?){0,6}",
            group in "([a-c]?:x?:[0-9]{0,3}:[a-c,]{0,5}\n?){0,6}",
            image_user in "[a-c0-9]{0,2}:?[a-c0-9]{0,2}",
        ) {
            let database = UserDatabase::new(passwd.as_bytes(), group.as_bytes()).unwrap();
            if let Ok(user) = database.resolve(&SecurityContext::default(), &image_user, "app") {
                prop_assert_eq!(user.groups.first(), Some(&user.gid));
                prop_assert!(!user.home.is_empty());
            }
        }
    }
}
