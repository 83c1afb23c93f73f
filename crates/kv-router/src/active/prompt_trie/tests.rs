use proptest::prelude::*;

use super::*;

/// Sequence hashes of a prompt: equal exactly where all up to there is equal.
fn hashes(prompt: &[u64]) -> Vec<SequenceHash> {
    (1..=prompt.len())
        .map(|len| SequenceHash(prompt[..len].iter().fold(1, |hash, next| hash * 5 + next + 1)))
        .collect()
}

fn nodes(trie: &PromptTrie) -> usize {
    trie.nodes.len() - trie.free.len() - 1
}

#[test]
fn prompts_part_where_they_differ_and_join_when_one_ends() {
    let mut trie = PromptTrie::default();
    let long = trie.add(0, &hashes(&[1, 2, 3, 4, 5]));
    assert_eq!((long.new_blocks, nodes(&trie)), (5, 1));
    let other = trie.add(0, &hashes(&[1, 2, 3, 0]));
    assert_eq!((other.new_blocks, nodes(&trie)), (1, 3));
    let elsewhere = trie.add(2, &hashes(&[1, 2]));
    assert_eq!((elsewhere.new_blocks, nodes(&trie)), (2, 4));
    let mut shared = [0; 3];
    trie.shared(&hashes(&[1, 2, 3, 4, 4]), &mut shared);
    assert_eq!(shared, [4, 0, 2]);
    assert_eq!((trie.exclusive(0, long.end), trie.exclusive(0, other.end)), (2, 1));
    assert_eq!(trie.remove(0, other.end), 1);
    assert_eq!(trie.exclusive(0, long.end), 5, "the other slot's request does not matter");
    assert_eq!(nodes(&trie), 2);
    assert_eq!(trie.remove(2, elsewhere.end), 2);
    assert_eq!((nodes(&trie), trie.pairs()), (1, 5));
    assert_eq!(trie.remove(0, long.end), 5);
    assert_eq!((nodes(&trie), trie.pairs(), trie.blocks, trie.starts.len()), (0, 0, 0, 0));
}

#[test]
fn the_same_hash_at_two_places_confuses_no_counts() {
    let mut trie = PromptTrie::default();
    let same = [SequenceHash(1), SequenceHash(2), SequenceHash(1), SequenceHash(2)];
    let ends = [&same[..], &same[1..], &same[..1], &same[2..]].map(|prompt| trie.add(0, prompt).end);
    for end in ends {
        trie.remove(0, end);
    }
    assert_eq!((nodes(&trie), trie.pairs(), trie.blocks), (0, 0, 0));
}

proptest! {
    #[test]
    fn every_answer_is_that_of_counting_block_by_block(
        steps in prop::collection::vec(
            (0..4u32, prop::collection::vec(0..2u64, 0..9), any::<prop::sample::Index>(), any::<bool>()),
            1..60,
        ),
        query in prop::collection::vec(0..2u64, 0..9),
    ) {
        let mut trie = PromptTrie::default();
        let mut alive: Vec<(u32, Vec<u64>, NodeId)> = Vec::new();
        let has = |alive: &[(u32, Vec<u64>, NodeId)], slot: u32, blocks: &[u64]| {
            alive.iter().filter(|(s, prompt, _)| *s == slot && prompt.starts_with(blocks)).count()
        };
        for (slot, prompt, which, ends) in steps {
            if ends && !alive.is_empty() {
                let (slot, prompt, end) = alive.swap_remove(which.index(alive.len()));
                let only = |len: &usize| has(&alive, slot, &prompt[..*len]) == 0;
                let expected = (1..=prompt.len()).filter(only).count() as u64;
                prop_assert_eq!(trie.exclusive(slot, end), expected);
                prop_assert_eq!(trie.remove(slot, end), expected);
            } else {
                let expected = (1..=prompt.len()).filter(|&len| has(&alive, slot, &prompt[..len]) == 0).count();
                let added = trie.add(slot, &hashes(&prompt));
                prop_assert_eq!(added.new_blocks, expected as u64);
                alive.push((slot, prompt, added.end));
            }
            prop_assert!(nodes(&trie) <= 2 * alive.len());
            let mut shared = [0; 4];
            trie.shared(&hashes(&query), &mut shared);
            for slot in 0..4 {
                let longest = (0..=query.len()).rev().find(|&len| len == 0 || has(&alive, slot, &query[..len]) > 0);
                prop_assert_eq!(Some(shared[slot as usize] as usize), longest);
            }
        }
        for (slot, _, end) in alive {
            trie.remove(slot, end);
        }
        prop_assert_eq!((nodes(&trie), trie.pairs(), trie.blocks, trie.starts.len()), (0, 0, 0, 0));
    }
}
