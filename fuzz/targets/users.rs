//! An image's /etc/passwd and /etc/group, apart by a NUL byte, and whom they make of users as images write them.
#![no_main]

use coracle_domain::{RunAs, SecurityContext};
use coracle_spec::UserDatabase;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(3, |byte| *byte == 0);
    let (user, passwd, group) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let user = String::from_utf8_lossy(user).into_owned();
    let users = UserDatabase::new(passwd, group).unwrap();
    for run_as in [RunAs::ImageUser, RunAs::Name(user.clone()), RunAs::Uid(1000)] {
        let security = SecurityContext { run_as, ..SecurityContext::default() };
        if let Ok(resolved) = users.resolve(&security, &user, "image") {
            assert_eq!(resolved.groups.first(), Some(&resolved.gid));
            assert!(!resolved.home.is_empty() && !resolved.home.contains('\0'));
            // The kernel takes the highest id for "as it is".
            assert!(resolved.uid != u32::MAX && !resolved.groups.contains(&u32::MAX));
        }
    }
});
