//! What a pull shows while it runs. CRI tells nothing of a pull's progress, so this is only what can be seen from
//! outside: the time that has passed, and by how much the image store has grown meanwhile, whoever made it grow.

use std::convert::Infallible;
use std::future::Future;
use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use coracle_cri::v1;

use super::connect::Client;
use super::error::Result;
use super::render::units::growth;

const FRAMES: [char; 4] = ['|', '/', '-', '\\'];
const FRAME: Duration = Duration::from_millis(120);
/// Frames between two looks at the image store.
const LOOK_EVERY: usize = 5;

/// Waits for `work`, and shows on a terminal that it goes on.
pub(crate) async fn during<T>(client: &Client, image: &str, work: impl Future<Output = Result<T>>) -> Result<T> {
    if !io::stderr().is_terminal() {
        return work.await;
    }
    let spinner = spin(client, image);
    let result = tokio::select! {
        result = work => result,
        never = spinner => match never {},
    };
    draw("");
    result
}

async fn spin(client: &Client, image: &str) -> Infallible {
    let start = Instant::now();
    let before = used_bytes(client).await;
    let mut grown = String::new();
    let mut turn = 0_usize;
    loop {
        turn = turn.wrapping_add(1);
        if turn.is_multiple_of(LOOK_EVERY)
            && let (Some(before), Some(after)) = (before, used_bytes(client).await)
        {
            grown = format!("  image store {}", growth(before, after));
        }
        let frame = FRAMES.get(turn % FRAMES.len()).unwrap_or(&' ');
        draw(&format!("{frame} pulling {image}  {}s{grown}", start.elapsed().as_secs()));
        tokio::time::sleep(FRAME).await;
    }
}

/// Replaces the terminal's current line. That it cannot be drawn harms nothing.
fn draw(line: &str) {
    let mut stderr = io::stderr().lock();
    let _ = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
}

async fn used_bytes(client: &Client) -> Option<u64> {
    let answer = client.images.clone().image_fs_info(v1::ImageFsInfoRequest {}).await.ok()?.into_inner();
    answer.image_filesystems.first()?.used_bytes.map(|used| used.value)
}
