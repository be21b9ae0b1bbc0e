//! Blobs: streamed, resumed where they broke off, and compared with their digest.
//!
//! The content goes into a bounded channel as it arrives, so whoever reads it must treat it as unproven
//! until [`Chunk::End`]: that is sent only after length and digest were found right.

use std::time::Duration;

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;

use super::error::{Cause, RegistryError};
use super::source::{Session, Source, last_of};
use crate::Digest;

/// How often a download is taken up again without having moved.
const RETRIES: u32 = 4;
/// A download that brought this many bytes since it was taken up has moved.
const MOVED: u64 = 1 << 20;

/// A blob as its descriptor has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    /// Bytes.
    pub(crate) size: u64,
}

/// A piece of a blob on its way.
#[derive(Debug)]
pub(crate) enum Chunk {
    /// Content.
    Data(Bytes),
    /// All content was sent and is what the digest says.
    End,
}

/// How far a download has come, over all its attempts.
struct Progress {
    hasher: Sha256,
    offset: u64,
}

impl Source {
    /// Sends the blob's content into `sink`. A receiver that goes away ends the download; that is no error.
    pub(crate) async fn download(&self, blob: Blob, sink: mpsc::Sender<Chunk>) -> Result<(), RegistryError> {
        let mut progress = Progress { hasher: Sha256::new(), offset: 0 };
        let mut earlier = Vec::new();
        for session in &self.sessions {
            match persist(session, blob, &mut progress, &sink).await {
                Ok(()) => return Ok(()),
                Err(error) => earlier.push(error),
            }
            if progress.offset == blob.size && blob.size > 0 {
                // Everything came and was wrong: the reader has it already, there is nothing to take up.
                break;
            }
        }
        Err(last_of(earlier, &self.sessions))
    }

    /// A small blob as a whole.
    pub(crate) async fn read(&self, blob: Blob, limit: u64) -> Result<Vec<u8>, RegistryError> {
        if blob.size > limit {
            let error = |session: &Session| session.broken(format!("its size of {} bytes is more than the {limit} allowed", blob.size));
            return Err(self.sessions.last().map_or_else(|| last_of(Vec::new(), &[]), error));
        }
        let (sender, mut receiver) = mpsc::channel(4);
        let collect = async {
            let mut content = Vec::new();
            while let Some(Chunk::Data(bytes)) = receiver.recv().await {
                content.extend_from_slice(&bytes);
            }
            content
        };
        let (downloaded, content) = tokio::join!(self.download(blob, sender), collect);
        downloaded.map(|()| content)
    }
}

/// Downloads from one endpoint, taking up what broke off.
async fn persist(session: &Session, blob: Blob, progress: &mut Progress, sink: &mpsc::Sender<Chunk>) -> Result<(), RegistryError> {
    let mut failures = 0;
    let mut pause: Duration = session.client.registries.retry_pause;
    loop {
        let before = progress.offset;
        let error = match attempt(session, blob, progress, sink).await {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        if progress.offset - before >= MOVED {
            (failures, pause) = (0, session.client.registries.retry_pause);
        }
        failures += 1;
        if error.cause != Cause::Unavailable || failures > RETRIES {
            return Err(error);
        }
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn attempt(session: &Session, blob: Blob, progress: &mut Progress, sink: &mpsc::Sender<Chunk>) -> Result<(), RegistryError> {
    let mut answer = session.blob(&blob.digest, progress.offset).await?;
    let mut skip = match answer.status().as_u16() {
        206 if starts_at(&answer, progress.offset) => 0,
        206 => return Err(session.broken("answers a range request with another range")),
        _ => progress.offset,
    };
    loop {
        let chunk = tokio::select! {
            chunk = answer.chunk() => chunk.map_err(|error| session.transport(error))?,
            () = sink.closed() => return Ok(()),
        };
        let Some(mut chunk) = chunk else { break };
        let known = skip.min(chunk.len() as u64);
        skip -= known;
        let chunk = chunk.split_off(usize::try_from(known).unwrap_or(chunk.len()));
        if chunk.is_empty() {
            continue;
        }
        if chunk.len() as u64 > blob.size - progress.offset {
            return Err(session.broken(format!("sends more than the {} bytes that the manifest declares", blob.size)));
        }
        progress.offset += chunk.len() as u64;
        progress.hasher.update(&chunk);
        if sink.send(Chunk::Data(chunk)).await.is_err() {
            return Ok(());
        }
    }
    if progress.offset < blob.size {
        return Err(session.unavailable(format!("the download broke off after {} of {} bytes", progress.offset, blob.size)));
    }
    let found = Digest::finish(progress.hasher.clone());
    if found != blob.digest {
        return Err(session.broken(format!("the content's digest is {found}")));
    }
    let _ = sink.send(Chunk::End).await;
    Ok(())
}

fn starts_at(answer: &reqwest::Response, offset: u64) -> bool {
    let range = answer.headers().get("content-range").and_then(|value| value.to_str().ok());
    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok()) == Some(offset)
}
