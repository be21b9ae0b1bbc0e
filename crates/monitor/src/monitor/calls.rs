//! What daemons ask for, one function each.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use coracle_failpoint::{Point, reach};
use coracle_plan::{PidNamespace, Plan};
use rustix::io::Errno;
use rustix::process::{Signal, getpid};
use serde::Deserialize;

use super::{Asker, Execution, Launch, Monitor};
use crate::attached::Client;
use crate::channel;
use crate::child::{self, Birth, Streams};
use crate::connection::Closed;
use crate::container::{Container, Phase, Pipes};
use crate::fault::{OrFault, Result};
use crate::log::Log;
use crate::process::{self, Place};
use crate::protocol::{Answer, Attach, Call, Exec, FailedStart, Fault, REVISION, Reply, Request, Start, Target, VERSION};

/// The stage of looking for a container that runs.
const FINDING: &str = "finding the running container";
/// The stage of starting one.
const STARTING: &str = "starting container";

impl Monitor {
    /// Acts on a frame. One that is no call closes its connection; one with an unknown request is answered.
    pub(super) fn call(&mut self, connection: u64, frame: &[u8]) -> std::result::Result<(), Closed> {
        #[derive(Deserialize)]
        struct Numbered {
            id: u64,
        }
        let (id, outcome) = match serde_json::from_slice::<Call>(frame) {
            Ok(Call { id, request }) => (id, self.answer(request, Asker { connection, call: id })),
            Err(_) => {
                let Numbered { id } = serde_json::from_slice(frame).map_err(|_| Closed)?;
                if let Some(connection) = self.connections.get_mut(&connection) {
                    connection.drop_descriptors();
                }
                (id, Err(Fault::new("understanding", "the call", Errno::NOSYS)))
            }
        };
        match outcome {
            Ok(None) => {}
            Ok(Some(reply)) => self.reply(Asker { connection, call: id }, reply),
            Err(fault) => self.reply(Asker { connection, call: id }, Reply::Failed(fault)),
        }
        Ok(())
    }

    /// The reply, or `None` if it will come later.
    fn answer(&mut self, request: Request, asker: Asker) -> Result<Option<Reply>> {
        let done = |()| Some(Reply::Done);
        match request {
            Request::Hello => Ok(Some(Reply::Hello { version: VERSION, revision: REVISION, pid: getpid().as_raw_pid() })),
            Request::Prepare(prepare) => self.pod.prepare(prepare).map(done),
            Request::Start(start) => self.start(start, asker).map(|()| None),
            Request::AwaitStart { container } => self.await_start(&container, asker),
            Request::Exec(exec) => self.exec(&exec, asker).map(|()| None),
            Request::Signal { target, signal } => self.signal(&target, signal).map(done),
            Request::Attach(attach) => self.attach(&attach, asker).map(done),
            Request::Resize { container, columns, rows } => self.resize(&container, columns, rows).map(done),
            Request::ReopenLog { container } => self.reopen_log(&container).map(done),
            Request::Forget { container } => self.forget(&container).map(done),
            Request::State => Ok(Some(self.state())),
            Request::Shutdown => {
                self.shut_down(asker);
                Ok(None)
            }
        }
    }

    /// Starts a container; remembers it if that cannot even begin.
    fn start(&mut self, start: Start, asker: Asker) -> Result<()> {
        let id = start.container.clone();
        if self.containers.contains_key(&id) {
            return Err(Errno::EXIST).or_fault(STARTING, id);
        }
        self.failed.remove(&id);
        self.launch(start, asker).inspect_err(|fault| drop(self.failed.insert(id, fault.clone())))
    }

    fn launch(&mut self, start: Start, asker: Asker) -> Result<()> {
        let id = start.container.clone();
        let plan = read_plan(&start.plan)?;
        let (place, birth) = self.place_of(&plan)?;
        let log = Log::open(start.log.as_deref())?;
        reach(Point::LogOpen);
        let pipes = Pipes::new(&start, &plan)?;
        let (listening, reporting) = channel::new().or_fault(STARTING, &id)?;
        let process = process::make(place, true, &plan.cgroups, || child::start(&plan, birth, &pipes.theirs, &reporting))?;
        self.launches.insert(process.pid, Launch::new(listening, Target::Container(id.clone()), asker));
        let serial = self.next_serial();
        self.containers.insert(id, Container::new(serial, process, start, pipes, log).planned(plan));
        Ok(())
    }

    /// Where the first process of a container is to be made, and when to be born where its program will be.
    fn place_of(&self, plan: &Plan) -> Result<(Place<'_>, Birth<'_>)> {
        let has_users = plan.namespaces.user.is_some();
        let neighbour = match &plan.namespaces.pid {
            // It makes its own, when it is in the user namespace that is to own it.
            PidNamespace::New if has_users => return Ok((Place::Node, Birth::First)),
            PidNamespace::New => return Ok((Place::New, Birth::First)),
            PidNamespace::Node => return Ok((Place::Node, Birth::First)),
            PidNamespace::Pod => self.pod.init().ok_or(Errno::SRCH).or_fault("finding", "the pod's init process")?,
            PidNamespace::Container(other) => &self.running(other)?.process,
        };
        // Always, and not only where somebody who may trace lives: one may start meanwhile. Among users of the pod's own nobody
        // may look into what the node has made.
        Ok(if has_users { (Place::Of(neighbour), Birth::First) } else { (Place::Node, Birth::Last(neighbour.as_fd())) })
    }

    /// How a start ended, or a place among those who wait for its end.
    fn await_start(&mut self, id: &str, asker: Asker) -> Result<Option<Reply>> {
        if let Some(fault) = self.failed.get(id) {
            return Err(fault.clone());
        }
        if let Some(launch) = self.launches.values_mut().find(|launch| launch.is_of(id)) {
            launch.join(asker);
            return Ok(None);
        }
        let container = self.containers.get(id).ok_or(Errno::SRCH).or_fault("finding the started container", id)?;
        let state = container.state(id);
        Ok(Some(Reply::Started { pid: state.pid, at: state.started_at }))
    }

    fn state(&self) -> Reply {
        let containers = self.containers.iter().map(|(id, one)| one.state(id)).collect();
        let failed = self.failed.iter().map(|(id, fault)| FailedStart { container: id.clone(), fault: fault.clone() }).collect();
        Reply::State { containers, failed }
    }

    fn exec(&mut self, exec: &Exec, asker: Asker) -> Result<()> {
        let stage = "executing";
        let streams = self.connections.get_mut(&asker.connection).and_then(|connection| connection.take_descriptors());
        let [input, output, error] = streams.ok_or(Errno::BADF).or_fault("receiving the standard streams of", &exec.exec)?;
        let streams = Streams { input, output, error };
        if self.execs.contains_key(&exec.exec) {
            return Err(Errno::EXIST).or_fault(stage, &exec.exec);
        }
        // The capability means nothing to processes of the node where it is one of a user namespace.
        let is_watched = self.containers.values().any(|container| container.may_trace && container.user.is_none() && container.lives());
        let container = running(&mut self.containers, &exec.container)?;
        container.entrances.open(&exec.cgroups.join)?;
        let Container { process: first, entrances, user, .. } = &*container;
        let stays_out = is_watched || exec.is_berth();
        let (place, birth) = if stays_out { (Place::Node, Birth::Last(first.as_fd())) } else { (Place::Of(first), Birth::First) };
        let target = child::Target { process: first.as_fd(), entrances, user: user.as_ref(), birth };
        let (listening, reporting) = channel::new().or_fault(stage, &exec.exec)?;
        let process = process::make(place, false, &exec.cgroups, || child::exec(exec, target, &streams, &reporting))?;
        let launch = Launch::new(listening, Target::Exec(exec.exec.clone()), asker);
        let (launch, asker) = match exec.answer {
            Answer::AtStart => (launch, None),
            // What goes on in another's place must be known before it ends.
            Answer::AtEnd if is_watched => (launch.told_at_its_end(), Some(asker)),
            Answer::AtEnd => (launch.heard_at_its_end(), Some(asker)),
        };
        self.launches.insert(process.pid, launch);
        self.execs.insert(exec.exec.clone(), Execution { process, asker });
        Ok(())
    }

    fn attach(&mut self, attach: &Attach, asker: Asker) -> Result<()> {
        let (stage, id) = ("attaching to container", &attach.container);
        let descriptors = self.connections.get_mut(&asker.connection).and_then(|connection| connection.take_descriptors());
        let descriptors = descriptors.ok_or(Errno::BADF).or_fault("receiving the streams of a client of container", id)?;
        let client = Client::new(self.next_serial(), attach, descriptors).or_fault(stage, id)?;
        let running = self.containers.get_mut(id).filter(|container| matches!(container.phase, Phase::Running { .. }));
        running.ok_or(Errno::SRCH).or_fault(stage, id)?.attach(client);
        Ok(())
    }

    fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<()> {
        self.running(id)?.resize(columns, rows).or_fault("changing the size of the terminal of container", id)
    }

    fn running(&self, id: &str) -> Result<&Container> {
        let running = self.containers.get(id).filter(|container| matches!(container.phase, Phase::Running { .. }));
        running.ok_or(Errno::SRCH).or_fault(FINDING, id)
    }

    fn signal(&mut self, target: &Target, signal: i32) -> Result<()> {
        self.hear_all(None);
        let process = match target {
            Target::Container(id) => self.containers.get(id).filter(|container| container.lives()).map(|container| &container.process),
            Target::Exec(id) => self.execs.get(id).map(|exec| &exec.process),
        };
        process.map_or(Ok(()), |process| process.signal(signal))
    }

    fn reopen_log(&mut self, id: &str) -> Result<()> {
        let running = self.containers.get_mut(id).filter(|container| container.lives());
        running.ok_or(Errno::SRCH).or_fault("finding the running container", id)?.log.reopen()
    }

    fn forget(&mut self, id: &str) -> Result<()> {
        if self.containers.get(id).is_some_and(Container::lives) {
            return Err(Errno::BUSY).or_fault("forgetting container", id);
        }
        self.containers.remove(id);
        self.failed.remove(id);
        Ok(())
    }

    fn shut_down(&mut self, asker: Asker) {
        self.hear_all(None);
        let kill = Signal::KILL.as_raw();
        let first = self.containers.values().filter(|container| container.lives()).map(|container| &container.process);
        for process in first.chain(self.execs.values().map(|exec| &exec.process)).chain(self.pod.init()) {
            // A process that cannot be killed is waited for; the daemon has its own deadline.
            let _ = process.signal(kill);
        }
        self.ending = Some(Some(asker));
    }
}

/// The same, to be changed.
fn running<'a>(containers: &'a mut BTreeMap<String, Container>, id: &str) -> Result<&'a mut Container> {
    let running = containers.get_mut(id).filter(|container| matches!(container.phase, Phase::Running { .. }));
    running.ok_or(Errno::SRCH).or_fault(FINDING, id)
}

fn read_plan(path: &Path) -> Result<Plan> {
    let text = std::fs::read(path).or_fault("reading the plan", path.display())?;
    serde_json::from_slice(&text).map_err(|error| Fault {
        stage: "reading the plan".to_owned(),
        subject: format!("{} ({error})", path.display()),
        errno: Errno::INVAL.raw_os_error(),
    })
}
