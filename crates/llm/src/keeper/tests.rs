use std::path::Path;

use dynamo_runtime::Epoch;

use super::*;
use crate::CardOptions;

fn registered(worker_id: u64, block_size: u32) -> Registered {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/data/tiny-llama");
    let options = CardOptions { kv_cache_block_size: block_size, ..CardOptions::default() };
    let card = ModelCard::from_directory(&directory, options).unwrap();
    Registered {
        endpoint: EndpointId::new("dynamo", "backend", "generate"),
        incarnation: Incarnation { worker_id: WorkerId::from_bits(worker_id), epoch: Epoch::from_unix_ms(1) },
        checksum: card.checksum(),
        is_adapter: false,
        card: Arc::new(card),
    }
}

fn next(registered: &[&Registered], failed: &Failures) -> Option<(u64, Vec<u64>)> {
    let (first, sources) = next_build(registered, failed)?;
    Some((first.incarnation.worker_id.get(), sources.iter().map(|worker| worker.get()).collect()))
}

#[test]
fn a_card_that_fails_does_not_keep_the_next_one_from_its_turn() {
    let (broken, good) = (registered(1, 16), registered(2, 32));
    let mut failed = Failures::new();
    assert_eq!(next(&[&broken, &good], &failed), Some((1, vec![1])));
    failed.insert((broken.card.display_name.clone(), broken.checksum.clone()), Instant::now());
    assert_eq!(next(&[&broken, &good], &failed), Some((2, vec![2])));
    failed.insert((good.card.display_name.clone(), good.checksum.clone()), Instant::now());
    assert_eq!(next(&[&broken, &good], &failed), None);
}

#[test]
fn files_come_from_workers_of_the_same_card_alone() {
    let all = [registered(1, 16), registered(2, 32), registered(3, 16)];
    let all: Vec<&Registered> = all.iter().collect();
    assert_eq!(next(&all, &Failures::new()), Some((1, vec![1, 3])));
}
