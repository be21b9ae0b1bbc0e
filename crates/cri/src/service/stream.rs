//! The Stream… lists: the items of a list in batches, then the end (KEP-5825).

use prost::Message;
use tonic::Status;

/// A batch is closed when its items have this many bytes: far below what a kubelet takes, so that one
/// large item more does no harm.
const BATCH_BYTES: usize = 1 << 20;

/// A stream of batches, all of them known.
pub(super) type Batches<T> = tokio_stream::Iter<std::vec::IntoIter<Result<T, Status>>>;

/// The stream of `items`, each batch in its `response`. Nothing at all is a stream that ends at once.
pub(super) fn batches<I: Message, T>(items: impl IntoIterator<Item = I>, response: impl Fn(Vec<I>) -> T) -> Batches<T> {
    let mut full = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        batch.push(item);
        if bytes >= BATCH_BYTES {
            full.push(std::mem::take(&mut batch));
            bytes = 0;
        }
    }
    full.extend((!batch.is_empty()).then_some(batch));
    let responses: Vec<_> = full.into_iter().map(|batch| Ok(response(batch))).collect();
    tokio_stream::iter(responses)
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;
    use crate::v1::Container;

    async fn sizes(items: Vec<Container>) -> Vec<usize> {
        batches(items, |batch| batch.len()).map(|size| size.unwrap()).collect().await
    }

    #[tokio::test]
    async fn every_item_comes_once_and_no_batch_is_empty() {
        let item = |bytes: usize| Container { image_ref: "x".repeat(bytes), ..Default::default() };
        assert!(sizes(Vec::new()).await.is_empty());
        assert_eq!(sizes(vec![item(10); 3]).await, [3]);
        assert_eq!(sizes(vec![item(BATCH_BYTES); 2]).await, [1, 1]);
        assert_eq!(sizes(vec![item(BATCH_BYTES / 4); 9]).await, [4, 4, 1]);
    }
}
