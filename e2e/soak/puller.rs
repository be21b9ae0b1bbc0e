//! Somebody who pulls images, looks at them and removes them, over a network that fails.

use std::sync::Arc;
use std::time::Duration;

use coracle_e2e::image::Image;
use coracle_e2e::layer::{Compression, Layer};
use coracle_e2e::registry::{Pushed, Registry};

use crate::caller::Caller;
use crate::dice::Dice;
use crate::relay::Relay;
use crate::sky::Trouble;
use crate::world::World;

const PULL: &str = "PullImage";
const TROUBLES: [Trouble; 3] = [Trouble::Registry, Trouble::StorageFull, Trouble::StateFull];

/// An image of this puller's own, which nobody else pulls or removes. It shares a layer with all others.
struct Subject {
    reference: String,
    id: String,
}

/// One who pulls.
pub(crate) struct Puller {
    caller: Caller,
    dice: Dice,
    images: Vec<Subject>,
}

impl Puller {
    /// One with images of its own in the registry, which the daemon reaches by the relay.
    pub(crate) fn new(world: &Arc<World>, number: u64, registry: &Registry, relay: &Relay) -> Self {
        let mut dice = Dice::new(world.seed, u64::MAX - 16 - number);
        let images = (0..3).map(|index| push(&mut dice, &format!("soak/p{number}i{index}"), registry, relay)).collect();
        Self { caller: Caller::new(world, format!("puller-{number}")), dice, images }
    }

    /// Pulls and removes until the soak is over; leaves no image.
    pub(crate) async fn live(mut self) {
        while !self.caller.world.is_over() {
            let subject = &self.images[usize::try_from(self.dice.between(0, 2)).unwrap_or_default()];
            let (twice, stays, pause) = (self.dice.chance(25), self.dice.chance(50), self.dice.between(0, 3000));
            match twice {
                true => drop(tokio::join!(self.pull(subject), self.pull(subject))),
                false => self.pull(subject).await,
            }
            self.expect(subject, true).await;
            if !stays {
                self.remove(subject).await;
            }
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        for subject in &self.images {
            self.remove(subject).await;
        }
    }

    async fn pull(&self, subject: &Subject) {
        let caller = &self.caller;
        match caller.ask_during(PULL, &TROUBLES, || caller.cri.pull(&subject.reference, None)).await.result {
            Ok(id) if id == subject.id => {}
            other => caller.find(PULL, format!("image {}", subject.id), format!("{other:?}")),
        }
    }

    async fn remove(&self, subject: &Subject) {
        let caller = &self.caller;
        // By its id: all its names go.
        if let Err(status) = caller.ask_during("RemoveImage", &TROUBLES, || caller.cri.remove_image(&subject.id)).await.result {
            caller.find("RemoveImage", "success", status.to_string());
        }
        self.expect(subject, false).await;
    }

    async fn expect(&self, subject: &Subject, present: bool) {
        let caller = &self.caller;
        let status = caller.must("ImageStatus", || caller.cri.image(&subject.reference)).await.flatten();
        if status.as_ref().map(|image| image.id.as_str()) != present.then_some(subject.id.as_str()) {
            caller.find("ImageStatus", format!("{} {}", subject.reference, if present { "here" } else { "gone" }), format!("{status:?}"));
        }
        let listed = caller.must("ListImages", || caller.cri.all_images(None)).await.unwrap_or_default();
        if listed.iter().any(|image| image.id == subject.id) != present {
            caller.find(
                "ListImages",
                format!("{} {}", subject.id, if present { "listed" } else { "not listed" }),
                format!("{} images", listed.len()),
            );
        }
    }
}

fn push(dice: &mut Dice, name: &str, registry: &Registry, relay: &Relay) -> Subject {
    let shared = Layer::new().file("shared", 0o644, &noise(&mut Dice::new(0, 0), 2 << 20)).into_tar();
    let mut own = Layer::new();
    for index in 0..dice.between(1, 20) {
        let length = dice.between(0, 300_000);
        own = own.file(&format!("own{index}"), 0o644, &noise(dice, length));
    }
    let compression = dice.pick(&[Compression::Gzip, Compression::Zstd, Compression::Plain]);
    let image = Image::scratch().layer(&shared, Compression::Gzip).layer(&own.into_tar(), compression).set("User", name.into());
    let Pushed { reference, id, .. } = registry.push(name, "1", &image.build());
    let (_, path) = reference.split_once('/').unwrap_or_default();
    Subject { reference: format!("{}/{path}", relay.host()), id }
}

/// Bytes that do not compress.
fn noise(dice: &mut Dice, length: u64) -> Vec<u8> {
    (0..length.div_ceil(8)).flat_map(|_| dice.between(0, u64::MAX - 1).to_le_bytes()).collect()
}
