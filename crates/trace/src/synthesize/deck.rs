//! Draws without replacement, near the order in which things were.

use crate::rng::SplitMix;

/// Cards with their places in the old order. One that was near the next one there is drawn; each comes once before any comes
/// again.
#[derive(Clone, Debug)]
pub(super) struct Deck<T> {
    /// Those that were drawn, then the others; these in the old order unless all of them are near.
    cards: Vec<(u32, T)>,
    drawn: usize,
    /// Cards are near one another if their places are less than this apart.
    window: u32,
}

impl<T: Copy> Deck<T> {
    /// Cards in the old order.
    pub(super) fn new(cards: Vec<T>, window: u32) -> Self {
        Self { cards: (0..).zip(cards).collect(), drawn: 0, window: window.max(1) }
    }

    /// Adds a card that comes after all others.
    pub(super) fn add(&mut self, place: u32, card: T) {
        self.cards.push((place, card));
    }

    /// `None` only if there are no cards.
    pub(super) fn draw(&mut self, rng: &mut SplitMix) -> Option<T> {
        if self.drawn == self.cards.len() {
            self.drawn = 0;
            if self.window != u32::MAX {
                self.cards.sort_unstable_by_key(|(place, _)| *place);
            }
        }
        let left = &mut self.cards[self.drawn..];
        let end = left.first()?.0.saturating_add(self.window);
        let near =
            if self.window == u32::MAX { left.len() } else { left.partition_point(|card| card.0 < end) };
        let chosen = rng.below(near as u64) as usize;
        let card = left[chosen].1;
        if self.window == u32::MAX {
            left.swap(0, chosen);
        } else {
            left[..=chosen].rotate_right(1);
        }
        self.drawn += 1;
        Some(card)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_comes_once_a_round() {
        let mut rng = SplitMix::new(1);
        for window in [1, 4, u32::MAX] {
            let mut deck = Deck::new((0..10).collect(), window);
            let rounds: Vec<Vec<i32>> =
                (0..3).map(|_| (0..10).map(|_| deck.draw(&mut rng).unwrap()).collect()).collect();
            for round in &rounds {
                let mut sorted = round.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (0..10).collect::<Vec<_>>());
            }
            assert_eq!(rounds[0] == rounds[1], window == 1);
        }
        assert_eq!(Deck::<u32>::new(Vec::new(), 1).draw(&mut rng), None);
    }

    #[test]
    fn only_near_cards_change_places() {
        let mut rng = SplitMix::new(1);
        let mut deck = Deck::new(Vec::new(), 10);
        for place in [0, 3, 9, 1000, 1001, 5000] {
            deck.add(place, place);
        }
        for _ in 0..20 {
            let round: Vec<u32> = (0..6).map(|_| deck.draw(&mut rng).unwrap()).collect();
            assert!(round[..3].iter().all(|card| *card < 10), "{round:?}");
            assert!(round[3..5].iter().all(|card| *card / 100 == 10) && round[5] == 5000, "{round:?}");
        }
    }
}
