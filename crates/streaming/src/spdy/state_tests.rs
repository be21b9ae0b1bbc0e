//! Windows against a model: whatever a client grants and takes back, nothing is sent that it has not granted, and what it
//! has granted can be sent.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Grant { stream: u32, bytes: u32 },
    Initial(u32),
    Send { stream: u32, want: usize, used: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let stream = prop_oneof![Just(1_u32), Just(3)];
    prop_oneof![
        (prop_oneof![Just(0_u32), Just(1), Just(3)], 0_u32..5000).prop_map(|(stream, bytes)| Step::Grant { stream, bytes }),
        (0_u32..5000).prop_map(Step::Initial),
        (stream, 1_usize..4000, 0_usize..4000).prop_map(|(stream, want, used)| Step::Send { stream, want, used }),
    ]
}

proptest! {
    #[test]
    fn what_is_sent_is_what_was_granted(steps in vec(step(), 0..60)) {
        let (shared, _queue) = Shared::new();
        let _streams = [1, 3].map(|number| shared.open(number, false, false).unwrap().unwrap());
        shared.initial_window(1000).unwrap();
        let mut initial = 1000_i64;
        // Granted and sent: of the session, of stream 1, of stream 3.
        let (mut granted, mut sent) = ([i64::from(DEFAULT_WINDOW), 0, 0], [0_i64; 3]);
        let index = |stream: u32| stream.div_ceil(2) as usize;
        for step in steps {
            match step {
                Step::Grant { stream, bytes } => {
                    shared.granted(stream, bytes).unwrap();
                    granted[index(stream)] += i64::from(bytes);
                }
                Step::Initial(bytes) => {
                    shared.initial_window(bytes).unwrap();
                    initial = bytes.into();
                }
                Step::Send { stream, want, used } => {
                    let at = index(stream);
                    let left = (initial + granted[at] - sent[at]).min(granted[0] - sent[0]);
                    match shared.take(stream, want) {
                        Taken::Bytes(taken) => {
                            prop_assert_eq!(taken as i64, left.min(want as i64));
                            let used = used.min(taken);
                            shared.give_back(stream, taken - used);
                            sent[at] += used as i64;
                            sent[0] += used as i64;
                        }
                        Taken::Nothing => prop_assert!(left <= 0, "{left} could have been sent"),
                        Taken::Gone => prop_assert!(false, "the stream is open"),
                    }
                }
            }
        }
    }

    #[test]
    fn streams_end_once_and_leave_nothing(steps in vec((0_u8..6, prop_oneof![Just(1_u32), Just(3), Just(5)]), 0..40)) {
        let (shared, mut queue) = Shared::new();
        let _streams = [1, 3, 5].map(|number| shared.open(number, false, false).unwrap().unwrap());
        let (mut ours, mut theirs) = ([false; 3], [false; 3]);
        for (step, stream) in steps {
            let at = (stream / 2) as usize;
            match step {
                0 => { shared.finish(stream); ours[at] = true; }
                1 => { shared.finished(stream); theirs[at] = true; }
                2 => { shared.arrived(stream, Bytes::new(), true); theirs[at] = true; }
                3 => { shared.was_reset(stream); (ours[at], theirs[at]) = (true, true); }
                4 => { shared.reset(stream, Reset::Cancel); (ours[at], theirs[at]) = (true, true); }
                _ => shared.arrived(stream, Bytes::from_static(b"x"), false),
            }
            for (at, number) in [1, 3, 5].into_iter().enumerate() {
                prop_assert_eq!(shared.writable(number), !ours[at]);
                prop_assert_eq!(shared.state().streams.contains_key(&number), !(ours[at] && theirs[at]));
            }
        }
        shared.client_leaves();
        let open = !shared.state().streams.is_empty();
        let mut ended = false;
        while let Ok(out) = queue.try_recv() {
            ended |= matches!(out, Out::End(_));
        }
        prop_assert_eq!(ended, !open);
    }
}

#[test]
fn a_stream_that_was_reset_before_it_was_accepted_is_left_alone() {
    let (shared, mut queue) = Shared::new();
    let _streams = [1, 3].map(|number| shared.open(number, false, false).unwrap().unwrap());
    // More than a window can be.
    shared.granted(1, i32::MAX as u32).unwrap();
    while queue.try_recv().is_ok() {}
    shared.accept(1);
    assert!(queue.try_recv().is_err(), "nothing is said on a stream after its end");
    shared.accept(3);
    assert!(matches!(queue.try_recv(), Ok(Out::Control(_))));
}

/// What a fuzzer found: the reader's task resets a stream while another is about to send on it.
#[tokio::test]
async fn nothing_is_sent_on_a_stream_after_its_reset() {
    let (shared, mut queue) = Shared::new();
    let (_incoming, writer) = shared.open(1, false, false).unwrap().unwrap();
    shared.initial_window(1000).unwrap();
    let room = writer.room().await.unwrap();
    shared.granted(1, MAX_NUMBER).unwrap();
    shared.granted(1, 1).unwrap();
    while queue.try_recv().is_ok() {}
    writer.send(room, b"late".to_vec());
    assert!(queue.try_recv().is_err(), "the reset was the last word");
    assert_eq!(shared.state().window, i64::from(DEFAULT_WINDOW), "what was not sent takes nothing of the session's window");
}
