//! What the daemon reads of the node: records, files of /proc and of cgroups, netlink, configuration, logs; the first byte says which.
#![no_main]

// The program has no library: those of its modules that read what others wrote are taken as they are.
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/coracle/src/config.rs"]
mod config;
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/coracle/src/client/error.rs"]
mod error;
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/coracle/src/client/log_file.rs"]
mod log_file;
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/coracle/src/client/time.rs"]
mod time;
#[allow(dead_code, unreachable_pub)]
#[path = "../../crates/coracle/src/client/values.rs"]
mod values;

use libfuzzer_sys::fuzz_target;
use log_file::Entry;
use values::{Cpus, Memory, Moment, User, Volume};

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else { return };
    let text = String::from_utf8_lossy(rest);
    match kind {
        0 => coracle_engine::fuzzing::record(rest),
        1 => coracle_engine::fuzzing::proc(rest),
        2 => coracle_cgroup::fuzzing::files(rest),
        3 => coracle_network::fuzzing::netlink(rest),
        4 => coracle_network::fuzzing::text(&text),
        5 => drop(toml::from_str::<config::Config>(&text)),
        6 => drop(Entry::parse(rest)),
        _ => drop((text.parse::<Memory>(), text.parse::<Cpus>(), text.parse::<Volume>(), text.parse::<User>(), text.parse::<Moment>())),
    }
});
