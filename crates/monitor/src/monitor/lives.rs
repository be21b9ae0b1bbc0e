//! Processes between their birth and their program, and at their end.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use coracle_sys::process::send_signal;
use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use super::{Asker, Monitor, note};
use crate::channel::{Heard, Listening, Report};
use crate::container::{Container, Phase};
use crate::exit;
use crate::fault::{OrFault, Result};
use crate::log::{Buffers, time};
use crate::process::Process;
use crate::protocol::{Answer, Event, Fault, Reply, Target};

/// Processes that are being set up, by their number.
pub(super) type Launches = HashMap<Pid, Launch>;

/// A process that is being set up.
#[derive(Debug)]
pub(super) struct Launch {
    /// Where it reports.
    pub(super) listening: Listening,
    /// Whether it is heard at its end only: it will say no more, though its program was not executed, or nobody waits
    /// for what it says.
    pub(super) silent: bool,
    target: Target,
    /// Who waits for the outcome.
    askers: Vec<Asker>,
    answer: Answer,
    /// Whether another process went on in the place of the one that was made.
    moved: bool,
    ready: bool,
    fault: Option<Fault>,
}

impl Launch {
    /// One that was just made.
    pub(super) fn new(listening: Listening, target: Target, asker: Asker) -> Self {
        Self { listening, silent: false, target, askers: vec![asker], answer: Answer::AtStart, moved: false, ready: false, fault: None }
    }

    /// The same, for one who wants to know of the program's end and not of its start.
    pub(super) fn told_at_its_end(self) -> Self {
        Self { answer: Answer::AtEnd, ..self }
    }

    /// The same, and nobody listens before.
    pub(super) fn heard_at_its_end(self) -> Self {
        Self { silent: true, ..self.told_at_its_end() }
    }

    /// Whether it is this container that is being started.
    pub(super) fn is_of(&self, container: &str) -> bool {
        matches!(&self.target, Target::Container(id) if id == container)
    }

    /// It cannot go on. What came first is told: the rest may follow from it.
    fn fail(&mut self, fault: Fault) {
        self.fault.get_or_insert(fault);
    }

    /// One more waits for the outcome.
    pub(super) fn join(&mut self, asker: Asker) {
        self.askers.push(asker);
    }
}

impl Monitor {
    /// Takes the reports of a process that is being set up. The end of the one that was `reaped` just now is still to be taken
    /// note of.
    pub(super) fn hear(&mut self, mut pid: Pid, reaped: Option<Pid>) {
        while let Some(launch) = self.launches.get_mut(&pid) {
            match launch.listening.hear() {
                Heard::Nothing => return,
                Heard::Report(Report::Ready, _) => launch.ready = true,
                Heard::Report(Report::Failed(fault), _) => launch.fail(fault),
                Heard::Report(Report::Moved { pid: next }, handle) if !launch.moved => match successor(next, handle, reaped) {
                    Ok(process) => self.move_launch(&mut pid, process),
                    // The end of the one that was made would be taken for the program's.
                    Err(fault) => launch.fail(fault),
                },
                Heard::Report(Report::Terminal, master) => {
                    if let Target::Container(id) = &launch.target
                        && let Some(container) = self.containers.get_mut(id)
                        && let Err(fault) = container.take_terminal(master).or_fault("taking the terminal of container", id)
                    {
                        launch.fail(fault);
                    }
                }
                // Nobody who goes on in another's place has news of this kind: it is one whom a container has led astray.
                Heard::Report(Report::Moved { .. } | Report::Begun, _) => {}
                Heard::End if launch.ready || launch.fault.is_some() => return self.conclude(pid),
                Heard::End => {
                    launch.silent = true;
                    return;
                }
            }
        }
    }

    /// Takes what was reported so far, so that it is known who is who.
    pub(super) fn hear_all(&mut self, reaped: Option<Pid>) {
        for pid in self.launches.iter().filter(|(_, launch)| !launch.silent).map(|(pid, _)| *pid).collect::<Vec<_>>() {
            self.hear(pid, reaped);
        }
    }

    /// Another process goes on in the place of the one that was made.
    fn move_launch(&mut self, pid: &mut Pid, process: Process) {
        let Some(launch) = self.launches.remove(pid).map(|launch| Launch { moved: true, ..launch }) else { return };
        *pid = process.pid;
        let moved = match &launch.target {
            Target::Container(id) => self.containers.get_mut(id).map(|container| &mut container.process),
            Target::Exec(id) => self.execs.get_mut(id).map(|exec| &mut exec.process),
        };
        if let Some(moved) = moved {
            *moved = process;
        }
        self.launches.insert(*pid, launch);
    }

    /// Answers all who asked for a process: it runs its program now, or never will.
    fn conclude(&mut self, pid: Pid) {
        let Some(launch) = self.launches.remove(&pid) else { return };
        let reply = match launch.fault {
            None if launch.answer == Answer::AtEnd => return,
            Some(fault) => {
                match launch.target {
                    Target::Container(id) => {
                        self.containers.remove(&id);
                        self.failed.insert(id, fault.clone());
                    }
                    Target::Exec(id) => drop(self.execs.remove(&id)),
                }
                Reply::Failed(fault)
            }
            None => {
                let at = time::now();
                if let Target::Container(id) = &launch.target
                    && let Some(container) = self.containers.get_mut(id)
                {
                    container.phase = Phase::Running { started_at: at };
                }
                Reply::Started { pid: pid.as_raw_pid(), at }
            }
        };
        for asker in launch.askers {
            self.reply(asker, reply.clone());
        }
    }

    /// Takes signals: reaps, or prepares to end.
    pub(super) fn take_signals(&mut self) {
        while let Ok(signal) = self.signals.next() {
            if signal == rustix::process::Signal::TERM.as_raw() {
                self.ending.get_or_insert(None);
            }
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.ended(pid, exit::code(status));
        }
    }

    fn ended(&mut self, pid: Pid, code: i32) {
        // The others too: it may be one that took another's place, and this not be heard yet.
        self.hear_all(Some(pid));
        self.hear(pid, Some(pid));
        // All that it said is heard, but perhaps not the line's end: one in whose place it went on may still have it open.
        if self.launches.get(&pid).is_some_and(|launch| launch.ready) {
            self.conclude(pid);
        }
        if let Some(launch) = self.launches.get_mut(&pid) {
            let (name, starved) = match &launch.target {
                Target::Container(id) => (id, self.containers.get(id).is_some_and(Container::is_oom_killed)),
                // Not known: whom the kernel has killed in its container may have been another, long ago.
                Target::Exec(name) => (name, false),
            };
            launch.fail(if starved {
                Fault::new("setting up, within its memory limit, container", name, Errno::NOMEM)
            } else {
                let subject = format!("{name}: its process ended with {code} before the program was executed");
                Fault { stage: "setting up".to_owned(), subject, errno: 0 }
            });
            return self.conclude(pid);
        }
        if self.pod.ended(pid) {
            return;
        }
        if let Some(exec) = self.execs.iter().find_map(|(name, exec)| (exec.process.pid == pid).then(|| name.clone())) {
            return match self.execs.remove(&exec).and_then(|exec| exec.asker) {
                Some(asker) => self.reply(asker, Reply::Ended { code }),
                None => self.tell_all(Event::ExecExited { exec, code }),
            };
        }
        self.container_ended(pid, code);
    }

    fn container_ended(&mut self, pid: Pid, code: i32) {
        let buffers = self.buffers.get_or_insert_with(Buffers::new);
        let Some((id, container)) = self.containers.iter_mut().find(|(_, one)| one.lives() && one.process.pid == pid) else {
            return;
        };
        let id = id.clone();
        let (exit, recorded) = container.end(code, buffers);
        if let Err(fault) = recorded {
            note(&fault);
        }
        self.tell_losses(true);
        self.tell_all(Event::Exited { container: id, exit });
    }
}

/// The process that goes on in another's place, by the number and handle that it reported. ESRCH: it was killed and reaped before,
/// and nothing more will be heard of its end.
fn successor(pid: i32, handle: Option<OwnedFd>, reaped: Option<Pid>) -> Result<Process> {
    let handle = handle.ok_or(Errno::BADF).or_fault("receiving the handle of process", pid)?;
    let process = Process::moved(pid, handle)?;
    if reaped != Some(process.pid) {
        let subject = format_args!("{pid}, which was to execute the program");
        send_signal(process.as_fd(), 0).or_fault("finding process", subject)?;
    }
    Ok(process)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::process::Command;

    use coracle_sys::signal::SignalQueue;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    use super::super::Source;
    use super::*;
    use crate::channel::{self, Reporting};
    use crate::pod::Pod;

    /// A monitor that has container `one` set up, by a process that has this one's number, and that process's line to it.
    fn starting() -> (Monitor, Reporting) {
        let (listening, reporting) = channel::new().unwrap();
        let launch = Launch::new(listening, Target::Container("one".to_owned()), Asker { connection: 0, call: 0 });
        let monitor = Monitor {
            listener: tempfile::tempfile().unwrap().into(),
            deaf_until: None,
            signals: SignalQueue::new(&[], false).unwrap(),
            connections: BTreeMap::new(),
            pod: Pod::default(),
            containers: BTreeMap::new(),
            failed: BTreeMap::new(),
            execs: BTreeMap::new(),
            launches: Launches::from([(getpid(), launch)]),
            serial: 0,
            buffers: None,
            ending: None,
        };
        (monitor, reporting)
    }

    /// A monitor that is yet to hear who goes on in the place of the process that it has made: one that was reaped. Its number.
    fn moving_to_reaped() -> (Monitor, Pid) {
        let (monitor, reporting) = starting();
        let mut child = Command::new("true").spawn().unwrap();
        let pid = Pid::from_child(&child);
        let handle = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        child.wait().unwrap();
        reporting.hand_over(&Report::Moved { pid: pid.as_raw_pid() }, handle.as_fd()).unwrap();
        drop(reporting);
        // Other tests' children have the line open until they execute their programs.
        let line = &monitor.launches.get(&getpid()).unwrap().listening;
        poll(&mut [PollFd::new(line, PollFlags::HUP)], None).unwrap();
        (monitor, pid)
    }

    #[test]
    fn a_start_ends_though_the_process_that_goes_on_was_reaped_before_it_was_told_of() {
        let (mut monitor, _) = moving_to_reaped();
        monitor.act(Source::Launch(getpid()), PollFlags::IN);
        assert_eq!(monitor.failed.get("one").map(|fault| fault.errno), Some(Errno::SRCH.raw_os_error()), "{monitor:?}");
        assert!(monitor.launches.is_empty(), "{monitor:?}");
    }

    #[test]
    fn a_start_whose_process_is_told_of_only_when_it_was_reaped_ends_as_that_did() {
        let (mut monitor, pid) = moving_to_reaped();
        monitor.ended(pid, 137);
        assert!(monitor.failed.get("one").is_some_and(|fault| fault.subject.contains("ended with 137")), "{monitor:?}");
        assert!(monitor.launches.is_empty(), "{monitor:?}");
    }
}
