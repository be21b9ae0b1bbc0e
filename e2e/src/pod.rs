//! Pods and containers in the hands of a test. Methods panic where the call fails; a test that expects a
//! failure asks [`Cri`] itself, or uses the `try_` methods.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use k8s_cri::v1::{self as api, ContainerState};
use prost::Message;
use tonic::Status;

use crate::log::{self, Record};
use crate::{ContainerSpec, Cri, eventually, wire};

/// A pod that was run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// The request it was made from.
    pub config: api::PodSandboxConfig,
    pub(crate) cri: Cri,
}

impl Pod {
    /// The same pod, asked over another connection.
    pub fn through(&self, cri: &Cri) -> Self {
        Self { cri: cri.clone(), ..self.clone() }
    }

    /// CreateContainer.
    pub async fn try_create(&self, spec: &ContainerSpec) -> Result<Container, Status> {
        let id = self.cri.create(&self.id, &self.config, &spec.config).await?;
        let log = PathBuf::from(&self.config.log_directory).join(&spec.config.log_path);
        Ok(Container { id, log, cri: self.cri.clone() })
    }

    /// CreateContainer.
    pub async fn create(&self, spec: &ContainerSpec) -> Container {
        self.try_create(spec).await.unwrap_or_else(|status| panic!("CreateContainer: {status}"))
    }

    /// CreateContainer with fields that the generated types do not know: `more` of the message ContainerConfig.
    pub async fn create_with(&self, spec: &ContainerSpec, more: &[u8]) -> Container {
        let request = api::CreateContainerRequest {
            pod_sandbox_id: self.id.clone(),
            config: Some(spec.config.clone()),
            sandbox_config: Some(self.config.clone()),
        };
        let message = [request.encode_to_vec(), wire::bytes(2, more)].concat();
        let answer = self.cri.raw("CreateContainer", message).await.unwrap_or_else(|status| panic!("CreateContainer: {status}"));
        let [wire::Value::Bytes(id)] = &wire::find(&answer, 1)[..] else { panic!("CreateContainer answers with an id: {answer:?}") };
        let log = PathBuf::from(&self.config.log_directory).join(&spec.config.log_path);
        Container { id: String::from_utf8_lossy(id).into_owned(), log, cri: self.cri.clone() }
    }

    /// CreateContainer and StartContainer.
    pub async fn start(&self, spec: &ContainerSpec) -> Container {
        let container = self.create(spec).await;
        container.start().await;
        container
    }

    /// Starts a container, waits until it ends and returns its status and what it wrote to standard output.
    pub async fn run(&self, spec: &ContainerSpec) -> (api::ContainerStatus, String) {
        let container = self.start(spec).await;
        let status = container.exited().await;
        let lines = container.lines("stdout");
        (status, lines.join("\n"))
    }

    /// PodSandboxStatus.
    pub async fn status(&self) -> api::PodSandboxStatus {
        let answer = self.cri.pod_status(&self.id).await.unwrap_or_else(|status| panic!("PodSandboxStatus: {status}"));
        answer.status.expect("PodSandboxStatus answers with a status")
    }

    /// The pod's address.
    pub async fn address(&self) -> String {
        self.status().await.network.map(|network| network.ip).unwrap_or_default()
    }

    /// Where in the node's subnet the pod is.
    pub async fn last_octet(&self) -> u8 {
        let address: Ipv4Addr = self.address().await.parse().expect("a pod has an address");
        address.octets()[3]
    }

    /// StopPodSandbox.
    pub async fn stop(&self) {
        self.cri.stop_pod(&self.id).await.unwrap_or_else(|status| panic!("StopPodSandbox: {status}"));
    }

    /// RemovePodSandbox.
    pub async fn remove(&self) {
        self.cri.remove_pod(&self.id).await.unwrap_or_else(|status| panic!("RemovePodSandbox: {status}"));
    }
}

/// What a command wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// Standard output, without the last line's end.
    pub stdout: String,
    /// Standard error, without the last line's end.
    pub stderr: String,
    /// The exit status.
    pub code: i32,
}

/// A container that was created.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its log's path.
    pub log: PathBuf,
    cri: Cri,
}

impl Container {
    /// The same container, asked over another connection.
    pub fn through(&self, cri: &Cri) -> Self {
        Self { cri: cri.clone(), ..self.clone() }
    }

    /// StartContainer.
    pub async fn start(&self) {
        self.cri.start(&self.id).await.unwrap_or_else(|status| panic!("StartContainer: {status}"));
    }

    /// ExecSync without a time limit.
    pub async fn exec(&self, command: &[&str]) -> Output {
        let answer = self.cri.exec(&self.id, command, 0).await.unwrap_or_else(|status| panic!("ExecSync {command:?}: {status}"));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        Output { stdout: text(&answer.stdout), stderr: text(&answer.stderr), code: answer.exit_code }
    }

    /// Runs a shell script inside, which must succeed; what it wrote to standard output.
    pub async fn shell(&self, script: &str) -> String {
        let output = self.exec(&["/bin/sh", "-c", script]).await;
        assert_eq!(output.code, 0, "{script}: {output:?}");
        output.stdout
    }

    /// ContainerStatus.
    pub async fn status(&self) -> api::ContainerStatus {
        self.cri.status(&self.id).await.unwrap_or_else(|status| panic!("ContainerStatus: {status}"))
    }

    /// The status once it has ended.
    pub async fn exited(&self) -> api::ContainerStatus {
        eventually("the container's end", || async {
            let status = self.status().await;
            (status.state() == ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// StopContainer with a grace period in seconds.
    pub async fn stop(&self, timeout: i64) {
        self.cri.stop(&self.id, timeout).await.unwrap_or_else(|status| panic!("StopContainer: {status}"));
    }

    /// RemoveContainer.
    pub async fn remove(&self) {
        self.cri.remove(&self.id).await.unwrap_or_else(|status| panic!("RemoveContainer: {status}"));
    }

    /// The records of its log.
    pub fn records(&self) -> Vec<Record> {
        log::parse(&std::fs::read(&self.log).unwrap_or_else(|error| panic!("{}: {error}", self.log.display())))
    }

    /// The lines of one stream of its log.
    pub fn lines(&self, stream: &str) -> Vec<String> {
        log::lines(&self.records(), stream)
    }

    /// Waits until the log has a line that contains `text`.
    pub async fn logged(&self, text: &str) {
        eventually(&format!("{text:?} in the log"), || async {
            let records = self.records();
            let found = ["stdout", "stderr"].iter().any(|stream| log::lines(&records, stream).iter().any(|line| line.contains(text)));
            found.then_some(())
        })
        .await;
    }

    /// The container's cgroups, in every hierarchy; `None` where there is no living process.
    pub fn cgroups(&self) -> Option<Vec<PathBuf>> {
        let pid = *self.host_pids().first()?;
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let own = cgroups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find(|path| path.contains(&self.id))?;
        // An exec's leaf is below the container's own directory.
        let own = own.split_inclusive(&self.id).next()?.trim_start_matches('/');
        Some(crate::host::cgroups(std::path::Path::new(own)))
    }

    /// What the kernel has in a file of the container's cgroup, in whichever hierarchy the file is; `None` where there
    /// is none of that name, or no living process.
    pub fn cgroup_file(&self, name: &str) -> Option<String> {
        self.cgroups()?.iter().find_map(|cgroup| std::fs::read_to_string(cgroup.join(name)).ok())
    }

    /// The first number that the kernel has in one of these files, or after `key` in it: on v1 and v2 names differ.
    pub fn cgroup_number(&self, places: &[(&str, &str)]) -> Option<u64> {
        places.iter().find_map(|(file, key)| {
            let text = self.cgroup_file(file)?;
            let mut lines = text.lines().filter_map(|line| line.strip_prefix(key)?.trim().parse().ok());
            lines.next()
        })
    }

    /// The host's ids of its living processes, by the cgroups whose names hold the container's id; its first process first.
    pub fn host_pids(&self) -> Vec<i32> {
        let mut pids = crate::host::processes();
        pids.retain(|&pid| {
            crate::host::is_alive(pid)
                && std::fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(&self.id))
        });
        crate::host::eldest_first(&mut pids);
        pids
    }
}
