//! One-shot secrets that stand for requests in URLs.
//!
//! Whoever has one may run a program in a container, so a token is 256 bits from the system's random source, works
//! once, and dies after a minute. It is never written to a log and has no `Debug`.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use coracle_domain::{Failure, FailureKind, Result};
use rustix::rand::{GetRandomFlags, getrandom};
use tokio::time::Instant;

use crate::request::Request;

/// How long a token may wait for its client.
const LIFE: Duration = Duration::from_secs(60);
/// How many may wait at once.
const MOST: usize = 1000;
/// How many bytes their commands may have together, as they are kept: more than the longest that one request has room for.
const MOST_BYTES: usize = 32 << 20;

/// The requests whose clients have not come yet.
#[derive(Default)]
pub(crate) struct Tokens(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    requests: HashMap<String, Request>,
    /// Every token in `requests`, and some that were used, with the time at which it dies; the oldest first.
    deaths: VecDeque<(Instant, String)>,
}

impl Tokens {
    /// A new token for `request`.
    ///
    /// # Errors
    /// A thousand or a lot of bytes wait already, or the system has no random bytes.
    pub(crate) fn issue(&self, request: Request) -> Result<String> {
        let mut entropy = [0; 32];
        getrandom(&mut entropy, GetRandomFlags::empty())
            .map_err(|errno| Failure::new("reading random bytes for", "a streaming token", std::io::Error::from(errno)))?;
        let token = URL_SAFE_NO_PAD.encode(entropy);
        let mut waiting = self.waiting();
        let bytes: usize = waiting.requests.values().chain([&request]).map(Request::bytes).sum();
        if waiting.requests.len() >= MOST || bytes > MOST_BYTES {
            let problem = format!("{} requests wait for their clients already", waiting.requests.len());
            return Err(Failure::new("preparing", "a streaming session", problem).kind(FailureKind::Exhausted).into());
        }
        waiting.deaths.push_back((Instant::now() + LIFE, token.clone()));
        waiting.requests.insert(token.clone(), request);
        Ok(token)
    }

    /// The request that `token` stands for, if it is one, has not been used and is young enough.
    pub(crate) fn redeem(&self, token: &str) -> Option<Request> {
        self.waiting().requests.remove(token)
    }

    /// What waits, without the dead.
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        while waiting.deaths.front().is_some_and(|(death, _)| *death <= now) {
            if let Some((_, token)) = waiting.deaths.pop_front() {
                waiting.requests.remove(&token);
            }
        }
        waiting
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokens").field("waiting", &self.waiting().requests.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use coracle_domain::{Error, PodId};

    use super::*;
    use crate::request::{ExecRequest, PortForwardRequest, StreamFlags, Streams};

    fn request() -> Request {
        Request::PortForward(PortForwardRequest::new(PodId::from_entropy([1; 32]), &[]).unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_works_once_and_for_a_minute() {
        let tokens = Tokens::default();
        let (used, late) = (tokens.issue(request()).unwrap(), tokens.issue(request()).unwrap());
        assert_eq!(used.len(), 43);
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(tokens.redeem(&used).is_some());
        assert!(tokens.redeem(&used).is_none());
        assert!(tokens.redeem("").is_none());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(tokens.redeem(&late).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_wait_at_most_and_the_dead_make_room() {
        let tokens = Tokens::default();
        let issued: HashSet<_> = (0..MOST).map(|_| tokens.issue(request()).unwrap()).collect();
        assert_eq!(issued.len(), MOST);
        let refused = tokens.issue(request()).unwrap_err();
        assert!(matches!(refused, Error::Failed(Failure { kind: FailureKind::Exhausted, .. })), "{refused}");
        tokens.redeem(issued.iter().next().unwrap()).unwrap();
        tokens.issue(request()).unwrap();
        tokens.issue(request()).unwrap_err();
        tokio::time::advance(LIFE).await;
        tokens.issue(request()).unwrap();
        assert_eq!(tokens.waiting().requests.len(), 1);
    }

    #[tokio::test]
    async fn long_commands_wait_only_as_far_as_there_is_room() {
        let tokens = Tokens::default();
        let streams = Streams::new(StreamFlags { stdout: true, ..StreamFlags::default() }).unwrap();
        let long = || {
            let command = vec!["x".repeat(MOST_BYTES / 3)];
            Request::Exec(ExecRequest::new(coracle_domain::ContainerId::from_entropy([1; 32]), command, streams).unwrap())
        };
        let first = tokens.issue(long()).unwrap();
        tokens.issue(long()).unwrap();
        let refused = tokens.issue(long()).unwrap_err();
        assert!(matches!(refused, Error::Failed(Failure { kind: FailureKind::Exhausted, .. })), "{refused}");
        tokens.issue(request()).unwrap();
        tokens.redeem(&first).unwrap();
        tokens.issue(long()).unwrap();
    }

    #[tokio::test]
    async fn a_token_is_never_shown() {
        let tokens = Tokens::default();
        let token = tokens.issue(request()).unwrap();
        assert!(!format!("{tokens:?}").contains(&token));
    }
}
