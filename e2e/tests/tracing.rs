//! Who may trace the processes around it (CAP_SYS_PTRACE) sees nothing of the node by way of those that are on their way into
//! a container.

use coracle_e2e::api::{ContainerState, ExecRequest, LinuxContainerSecurityContext, NamespaceMode};
use coracle_e2e::session::{REMOTE, STDOUT, Session, exit_code};
use coracle_e2e::{Code, Container, ContainerSpec, Node, Pod, PodSpec, number, skip};

/// Begins to tell again and again who of the processes in sight has a right that no container of these tests has: CAP_SYS_MODULE,
/// the lowest bit of the fifth digit from the right.
const AUDIT: &str = "while :; do for p in /proc/[0-9]*; do \
                     { while read key value; do case $key$value in CapEff:*[13579bdf]????) echo $p has $value;; esac; \
                     done <$p/status; } 2>/dev/null; done; done &";

/// Tells again and again by which links of the processes in sight `secret` can be reached.
fn spying(secret: &str) -> String {
    let up = "/../../../../../..";
    let descriptors: String = (3..10).map(|number| format!(" fd/{number}{up}")).collect();
    format!(
        "echo spying; while :; do for p in /proc/[0-9]*; do \
         for way in root cwd{up} fd/3{descriptors}; do [ -e $p/$way{secret} ] && echo $p $way; done; done; done"
    )
}

async fn sightings(spy: &Container) -> Vec<String> {
    assert_eq!(spy.status().await.state(), ContainerState::ContainerRunning, "it looked all the time");
    spy.lines("stdout").into_iter().filter(|line| line != "spying").collect()
}

#[tokio::test]
async fn who_may_trace_does_not_see_the_node_through_commands_on_their_way_in() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let secret = node.secret();
    for mode in [NamespaceMode::Container, NamespaceMode::Pod] {
        let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
        let victim = pod.start(&ContainerSpec::new("victim", &image).pid_mode(NamespaceMode::Pod)).await;
        let spy = ContainerSpec::new("spy", &image).pid_mode(mode).script(&format!("{AUDIT} {}", spying(&secret)));
        let spy = pod.start(&spy.capability("SYS_PTRACE")).await;
        spy.logged("spying").await;
        let watched = if mode == NamespaceMode::Pod { &victim } else { &spy };
        for round in 0..60 {
            let output = watched.exec(&["/bin/sh", "-c", "echo $$ >/dev/null; cat; echo out; exit 3"]).await;
            assert_eq!((output.stdout.as_str(), output.code), ("out", 3), "{round}");
        }
        let cmd = ["sh", "-c", "tty; ps -o pid,sid,tty,args; exit 4"].map(str::to_owned).to_vec();
        let request = ExecRequest { container_id: watched.id.clone(), cmd, stdin: true, stdout: true, stderr: false, tty: true };
        let mut session = Session::begin(&node.cri.exec_url(request).await.expect("Exec"), REMOTE).await;
        assert_eq!(exit_code(&session.end().await), 4, "{}", session.text(STDOUT));
        assert!(session.text(STDOUT).contains("/dev/"), "{}", session.text(STDOUT));
        let missing = node.cri.exec(&watched.id, &["/no/such/program"], 0).await.expect_err("there is no such program");
        assert!(missing.message().contains("/no/such/program"), "{}", missing.message());
        let late = node.cri.exec(&watched.id, &["/bin/sleep", "100000"], 1).await.expect_err("it takes too long");
        assert_eq!(late.code(), Code::DeadlineExceeded, "{}", late.message());
        let seen = sightings(&spy).await;
        assert!(seen.is_empty(), "{} times: {:?}", seen.len(), seen.first());
        pod.remove().await;
    }
    node.finish().await;
}

/// Starts containers in one pid namespace with `spy`, of all kinds: with a terminal, of another user, in another directory, in vain.
async fn start_beside(spy: &Container, pod: &Pod, node: &Node, spec: &ContainerSpec) {
    for round in 0..40 {
        let mut spec = spec.clone().script("ps -o pid,ppid,args; exit 3");
        spec.config.metadata.get_or_insert_default().name = format!("beside-{round}");
        spec.config.log_path = format!("beside-{round}.log");
        match round % 4 {
            0 => spec.config.tty = true,
            1 => spec = spec.security(|s| s.run_as_user = number(1000)),
            2 => spec.config.working_dir = "/a/new/directory".to_owned(),
            _ => spec = spec.command(&["/no/such/program"]),
        }
        let beside = pod.create(&spec).await;
        match node.cri.start(&beside.id).await {
            Ok(()) => {
                assert_eq!(beside.exited().await.exit_code, 3, "{:?}", beside.lines("stdout"));
                let said = beside.lines("stdout").join("\n");
                assert!(said.contains(" 0 /bin/sh -c ps") && said.contains("while :;"), "{said}");
            }
            Err(refused) => assert!(round % 4 == 3 && refused.message().contains("/no/such/program"), "{}", refused.message()),
        }
        beside.remove().await;
    }
    let seen = sightings(spy).await;
    assert!(seen.is_empty(), "{} times: {:?}", seen.len(), seen.first());
}

#[tokio::test]
async fn who_may_trace_does_not_see_the_node_through_containers_being_started_beside_it() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let secret = node.secret();
    let with_spy = |spec: ContainerSpec| spec.script(&format!("{AUDIT} {}", spying(&secret))).capability("SYS_PTRACE");

    let pod = node.run(&PodSpec::new("shared").pid_mode(NamespaceMode::Pod)).await;
    let spy = pod.start(&with_spy(ContainerSpec::new("spy", &image).pid_mode(NamespaceMode::Pod))).await;
    spy.logged("spying").await;
    start_beside(&spy, &pod, &node, &ContainerSpec::new("beside", &image).pid_mode(NamespaceMode::Pod)).await;
    pod.remove().await;

    let pod = node.pod("target").await;
    let spy = pod.start(&with_spy(ContainerSpec::new("spy", &image))).await;
    spy.logged("spying").await;
    let target = |s: &mut LinuxContainerSecurityContext| s.namespace_options.get_or_insert_default().target_id = spy.id.clone();
    start_beside(&spy, &pod, &node, &ContainerSpec::new("beside", &image).pid_mode(NamespaceMode::Target).security(target)).await;
    pod.remove().await;
    node.finish().await;
}

#[tokio::test]
async fn who_may_trace_among_users_of_the_pods_own_does_not_see_the_node_through_containers_being_started() {
    let Some(node) = Node::own().await else { return };
    let image = node.busybox().await;
    let spec = PodSpec::new("users").users(1_441_792, 65_536).pid_mode(NamespaceMode::Pod);
    let Ok(pod) = node.try_run(&spec).await else {
        skip("no user namespaces here");
        return node.finish().await;
    };
    // Open to everybody on the node, and not in the image.
    let spy = ContainerSpec::new("spy", &image).pid_mode(NamespaceMode::Pod).script(&spying("/usr/lib"));
    let spy = pod.start(&spy.capability("SYS_PTRACE")).await;
    spy.logged("spying").await;
    start_beside(&spy, &pod, &node, &ContainerSpec::new("beside", &image).pid_mode(NamespaceMode::Pod)).await;
    node.finish().await;
}
