//! What a monitor reports, as the rest of the daemon words it.

use std::io;

use coracle_domain::Failure;
use rustix::io::Errno;

use crate::protocol::Fault;

/// A failure with the kernel's error as its source, and advice where the cause is well known.
pub(super) fn from(fault: Fault) -> Failure {
    let hint = hint(&fault);
    let mut failure = if fault.errno == 0 {
        Failure::new(fault.stage, fault.subject, "no error number is known")
    } else {
        Failure::new(fault.stage, fault.subject, io::Error::from_raw_os_error(fault.errno))
    };
    failure.hint = hint;
    failure
}

fn hint(fault: &Fault) -> Option<&'static str> {
    let error = Errno::from_io_error(&io::Error::from_raw_os_error(fault.errno))?;
    match (fault.stage.as_str(), error) {
        ("finding the program", Errno::NOENT) => Some("it is not in the image, or not in the container's PATH"),
        ("executing the program", Errno::ACCESS) => {
            Some("it is not executable for the container's user, or its file system is mounted noexec")
        }
        ("executing the program", Errno::NOEXEC) => Some("it is built for another architecture, or is a script without #!"),
        ("mounting the layers on", Errno::INVAL) => Some("the kernel log names the layer or option it refuses"),
        ("making namespaces", Errno::NOSPC) => Some("see the limits in /proc/sys/user/max_*_namespaces"),
        ("making a process", Errno::AGAIN) => Some("a pids limit is reached: of the cgroup, of the user or of the machine"),
        (_, Errno::MFILE | Errno::NFILE) => Some("raise LimitNOFILE of the daemon, or fs.file-max"),
        _ => None,
    }
}
