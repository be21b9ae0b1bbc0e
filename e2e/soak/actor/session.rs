//! A session of exec: it is whole, or it broke off with its daemon and is held again.

use std::time::{Duration, Instant};

use coracle_e2e::api::ExecRequest;
use coracle_e2e::session::{REMOTE, STDERR, STDOUT, Session, exit_code_if_any};
use serde_json::Value;

use super::activity::chatter;
use super::container::Member;
use crate::sky::CUT;

/// How often a session is tried that breaks off.
const TRIES: usize = 20;

impl Member<'_> {
    /// A session breaks off when its daemon is killed, or cannot hear of its end, and at no other time.
    pub(super) async fn session(&self, id: &str, length: u32) {
        const CALL: &str = "Exec";
        let (caller, sky, expected) = (&self.actor.caller, &self.actor.world().sky, (length as usize, 0));
        let command = ["/bin/sh", "-c", &chatter(length)].map(str::to_owned).to_vec();
        for _ in 0..TRIES {
            let begin = Instant::now();
            let request =
                || ExecRequest { container_id: id.to_owned(), cmd: command.clone(), stdout: true, stderr: true, ..Default::default() };
            let url = match caller.ask(CALL, || caller.cri.exec_url(request())).await.result {
                Ok(url) => url,
                Err(status) => return self.find(CALL, "the URL of a session", status.to_string()),
            };
            let held = hold(&url).await;
            if held == Ok(expected) {
                return self.actor.world().verdict.event("sessions held");
            }
            if !sky.troubled(&CUT, begin) {
                return self.find("a session", format!("{expected:?} bytes and status"), format!("{held:?}"));
            }
            self.actor.world().verdict.event("sessions that broke off with their daemon");
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// Holds a session to its end: how much came as output, and the exit status; or why it was not whole.
async fn hold(url: &str) -> Result<(usize, i32), String> {
    let mut session = Session::try_begin(url, REMOTE).await.map_err(|error| error.to_string())?;
    while session.try_receive().await? {}
    let status: Value = serde_json::from_str(&session.status()).map_err(|error| format!("{error}: {:?}", session.status()))?;
    match (session.bytes(STDERR), exit_code_if_any(&status)) {
        (b"end\n", Some(code)) => Ok((session.bytes(STDOUT).len(), code)),
        (other, _) => Err(format!("error output {:?}, status {status}", String::from_utf8_lossy(other))),
    }
}
