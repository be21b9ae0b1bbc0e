//! Claims: who is making a pod under which name right now.
//!
//! A kubelet that lost patience sends the same RunPodSandbox again. It must neither make a second pod nor be
//! told that its own name is taken: it waits for the attempt under way, and if that fails makes its own.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use coracle_domain::PodMetadata;
use tokio::sync::watch;

/// The names being worked on.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claims(Arc<Mutex<HashMap<PodMetadata, watch::Receiver<()>>>>);

/// The right to work on a name, given back on drop.
#[derive(Debug)]
pub(crate) struct Claim {
    claims: Claims,
    name: PodMetadata,
    _done: watch::Sender<()>,
}

impl Claims {
    /// Waits until nobody else works on `name`, then claims it.
    pub(crate) async fn claim(&self, name: &PodMetadata) -> Claim {
        loop {
            let mut other = match self.try_claim(name) {
                Ok(claim) => return claim,
                Err(other) => other,
            };
            // Ends with an error when the claim is dropped, which is all there is to wait for.
            let _ = other.changed().await;
        }
    }

    fn try_claim(&self, name: &PodMetadata) -> Result<Claim, watch::Receiver<()>> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(other) = names.get(name) {
            return Err(other.clone());
        }
        let (done, receiver) = watch::channel(());
        names.insert(name.clone(), receiver);
        Ok(Claim { claims: self.clone(), name: name.clone(), _done: done })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.claims.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_second_claim_waits_for_the_first() {
        let claims = Claims::default();
        let name = PodMetadata { name: "web".into(), uid: "1".into(), namespace: "default".into(), attempt: 0 };
        let first = claims.claim(&name).await;
        let waiting = tokio::spawn({
            let (claims, name) = (claims.clone(), name.clone());
            async move { drop(claims.claim(&name).await) }
        });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        let other = PodMetadata { attempt: 1, ..name };
        drop(claims.claim(&other).await);
        drop(first);
        waiting.await.unwrap();
    }
}
