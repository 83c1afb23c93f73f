use super::super::payload_arena::PayloadArena;
use super::*;
use crate::identity::{Epoch, Incarnation};
use proptest::prelude::*;

fn topic() -> Arc<str> {
    "kv-events".into()
}

fn frames_of(envelope: &Envelope, payload: &[u8]) -> [Vec<u8>; 4] {
    let Encoded { publisher, sequence, body } = encode(envelope, payload).unwrap();
    [envelope.topic.as_bytes().to_vec(), publisher.to_vec(), sequence.to_vec(), body]
}

fn sample() -> Envelope {
    let publisher = Incarnation { worker_id: WorkerId::from_bits(0xabcd), epoch: Epoch::from_unix_ms(77) };
    Envelope { publisher, sequence: 5, published_at_ms: 1234, topic: topic() }
}

#[test]
fn an_event_survives_the_trip() {
    let arrival = decode(&frames_of(&sample(), b"payload"), &topic(), &mut PayloadArena::default()).unwrap();
    assert_eq!(arrival.envelope, sample());
    assert_eq!(&arrival.payload[..], b"payload");
}

#[test]
fn the_bytes_are_the_incumbent_s_plus_the_epoch() {
    let [topic, publisher, sequence, body] = frames_of(&sample(), b"\x01\x02");
    assert_eq!(topic, b"kv-events");
    assert_eq!(publisher, [0, 0, 0, 0, 0, 0, 0xab, 0xcd]);
    assert_eq!(sequence, [0, 0, 0, 0, 0, 0, 0, 5]);
    let mut expected =
        b"\x86\xacpublisher_id\xcd\xab\xcd\xa8sequence\x05\xacpublished_at\xcd\x04\xd2".to_vec();
    expected.extend_from_slice(b"\xa5topic\xa9kv-events\xa7payload\xc4\x02\x01\x02\xa5epoch\x4d");
    assert_eq!(body[0], 1);
    assert_eq!(body[1..5], u32::try_from(expected.len()).unwrap().to_be_bytes());
    assert_eq!(body[5..], expected);
}

#[test]
fn an_envelope_without_epoch_is_read() {
    let mut envelope =
        b"\x85\xacpublisher_id\xcd\xab\xcd\xa8sequence\x05\xacpublished_at\xcd\x04\xd2".to_vec();
    envelope.extend_from_slice(b"\xa5topic\xa9kv-events\xa7payload\xc4\x02\x01\x02");
    let [topic_frame, publisher, sequence, _] = frames_of(&sample(), b"");
    let mut body = vec![1];
    body.extend_from_slice(&u32::try_from(envelope.len()).unwrap().to_be_bytes());
    body.extend_from_slice(&envelope);
    let arrival =
        decode(&[topic_frame, publisher, sequence, body], &topic(), &mut PayloadArena::default()).unwrap();
    assert_eq!(arrival.envelope.publisher.epoch, Epoch::from_unix_ms(0));
    assert_eq!(&arrival.payload[..], b"\x01\x02");
}

#[test]
fn each_defect_has_its_name() {
    let with = |change: fn(&mut [Vec<u8>; 4])| {
        let mut frames = frames_of(&sample(), b"payload");
        change(&mut frames);
        decode(&frames, &topic(), &mut PayloadArena::default()).unwrap_err()
    };
    assert_eq!(
        decode(&frames_of(&sample(), b"")[..3], &topic(), &mut PayloadArena::default()),
        Err(Malformed::FrameCount)
    );
    assert_eq!(with(|frames| frames[0].push(b'2')), Malformed::ForeignTopic);
    assert_eq!(with(|frames| frames[1].truncate(4)), Malformed::Number);
    assert_eq!(with(|frames| frames[2].push(0)), Malformed::Number);
    assert_eq!(with(|frames| frames[3].truncate(4)), Malformed::Length);
    assert_eq!(with(|frames| frames[3].push(0)), Malformed::Length);
    assert_eq!(with(|frames| frames[3][0] = 2), Malformed::Version(2));
    assert_eq!(with(|frames| frames[3][5] = 0xc0), Malformed::Envelope);
    assert_eq!(with(|frames| frames[1][7] ^= 1), Malformed::Disagreement);
    assert_eq!(with(|frames| frames[2][7] ^= 1), Malformed::Disagreement);
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(
        mut frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..64), 0..6),
        version in any::<bool>(),
    ) {
        if let [first, publisher, sequence, body] = frames.as_mut_slice() {
            *first = topic().as_bytes().to_vec();
            publisher.resize(8, 0);
            sequence.resize(8, 0);
            if version && body.len() >= 5 {
                let length = u32::try_from(body.len() - 5).unwrap();
                body[0] = 1;
                body[1..5].copy_from_slice(&length.to_be_bytes());
            }
        }
        let _ = decode(&frames, &topic(), &mut PayloadArena::default());
    }
}
