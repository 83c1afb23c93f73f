//! Draws without replacement.

use crate::rng::SplitMix;

/// Cards that are drawn in random order, each once before any comes again.
#[derive(Clone, Debug)]
pub(super) struct Deck<T> {
    cards: Vec<T>,
    drawn: usize,
}

impl<T: Copy> Deck<T> {
    pub(super) fn new(cards: Vec<T>) -> Self {
        Self { cards, drawn: 0 }
    }

    pub(super) fn add(&mut self, card: T) {
        self.cards.push(card);
    }

    /// `None` only if there are no cards.
    pub(super) fn draw(&mut self, rng: &mut SplitMix) -> Option<T> {
        if self.drawn == self.cards.len() {
            self.drawn = 0;
        }
        let left = self.cards.len() - self.drawn;
        let chosen = self.drawn + rng.below(left.max(1) as u64) as usize;
        let card = *self.cards.get(chosen)?;
        self.cards.swap(self.drawn, chosen);
        self.drawn += 1;
        Some(card)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_card_comes_once_a_round() {
        let mut deck = Deck::new((0..10).collect());
        let mut rng = SplitMix::new(1);
        let rounds: Vec<Vec<i32>> =
            (0..3).map(|_| (0..10).map(|_| deck.draw(&mut rng).unwrap()).collect()).collect();
        for round in &rounds {
            let mut sorted = round.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        }
        assert_ne!(rounds[0], rounds[1]);
        assert_eq!(Deck::<u32>::new(Vec::new()).draw(&mut rng), None);
    }
}
