//! Processes between their birth and their program, and at their end.

use std::collections::HashMap;

use rustix::io::Errno;
use rustix::process::{Pid, WaitOptions, wait};

use super::{Asker, Monitor, note};
use crate::channel::{Heard, Listening, Report};
use crate::container::{Container, Phase};
use crate::exit;
use crate::fault::OrFault;
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
    /// Takes the reports of a process that is being set up.
    pub(super) fn hear(&mut self, mut pid: Pid) {
        while let Some(launch) = self.launches.get_mut(&pid) {
            match launch.listening.hear() {
                Heard::Nothing => return,
                Heard::Report(Report::Ready, _) => launch.ready = true,
                Heard::Report(Report::Failed(fault), _) => launch.fail(fault),
                Heard::Report(Report::Moved { pid: next }, handle) if !launch.moved => {
                    let handle = handle.ok_or(Errno::BADF).or_fault("receiving the handle of process", next);
                    match handle.and_then(|handle| Process::moved(next, handle)) {
                        Ok(process) => self.move_launch(&mut pid, process),
                        // The end of the one that was made would be taken for the program's.
                        Err(fault) => launch.fail(fault),
                    }
                }
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
    pub(super) fn hear_all(&mut self) {
        for pid in self.launches.iter().filter(|(_, launch)| !launch.silent).map(|(pid, _)| *pid).collect::<Vec<_>>() {
            self.hear(pid);
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
        self.hear_all();
        self.hear(pid);
        // All that it said is heard, but perhaps not the line's end: one in whose place it went on may still have it open.
        if self.launches.get(&pid).is_some_and(|launch| launch.ready) {
            self.conclude(pid);
        }
        if let Some(launch) = self.launches.get_mut(&pid) {
            let (Target::Container(name) | Target::Exec(name)) = &launch.target;
            let starved = self.containers.get(name).is_some_and(Container::is_oom_killed);
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
