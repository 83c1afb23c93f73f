//! Whose turn it is among classes: deficit round robin.
//!
//! In each round a class that has something to send is credited with its quantum, and sends while its credit pays for
//! what is first in it. So over any time in which a class never ran out, it sent its share of the tokens, less its quantum
//! and the longest of its requests at most, whatever the others did. A class that cannot send just now is passed over and
//! keeps what it has; one that has nothing more loses it, so that nobody saves up while idle.

/// What a class could send now.
#[derive(Clone, Copy, Debug)]
pub(super) struct Offer {
    /// Which request.
    pub(super) ticket: u64,
    /// What it costs: its tokens, at least 1.
    pub(super) cost: u64,
}

struct Account {
    /// What a round is worth, at least 1.
    quantum: u64,
    credit: u64,
}

/// Whose turn it is.
pub(super) struct Turns {
    accounts: Vec<Account>,
    /// The class that was credited last.
    at: usize,
}

impl Turns {
    /// `quanta` are the classes' tokens in each round.
    pub(super) fn new(quanta: impl Iterator<Item = u64>) -> Self {
        let accounts = quanta.map(|quantum| Account { quantum: quantum.max(1), credit: 0 }).collect();
        Self { accounts, at: 0 }
    }

    /// The class whose turn it is and what it sends, which it has then paid for. `offer_of` says what a class could send;
    /// it is asked at most once for each, and not for more than need be.
    pub(super) fn next(
        &mut self,
        mut offer_of: impl FnMut(usize) -> Option<Offer>,
    ) -> Option<(usize, Offer)> {
        let count = self.accounts.len();
        let mut offers: smallvec::SmallVec<[(usize, Offer); 4]> = smallvec::SmallVec::new();
        for step in 0..count {
            let class = (self.at + step) % count;
            let Some(offer) = offer_of(class) else { continue };
            let account = &mut self.accounts[class];
            if step > 0 {
                account.credit = account.credit.saturating_add(account.quantum);
            }
            if account.credit >= offer.cost {
                return Some(self.pay(class, offer));
            }
            offers.push((class, offer));
        }
        // Nobody can pay yet. The rounds until somebody can are credited at once.
        let rounds = |(class, offer): &(usize, Offer)| {
            let account = &self.accounts[*class];
            (offer.cost - account.credit).div_ceil(account.quantum)
        };
        let least = offers.iter().map(rounds).min()?;
        let place = offers.iter().position(|offer| rounds(offer) == least)?;
        for (number, (class, _)) in offers.iter().enumerate() {
            let rounds = if number <= place { least } else { least - 1 };
            let account = &mut self.accounts[*class];
            account.credit = account.credit.saturating_add(rounds.saturating_mul(account.quantum));
        }
        let (class, offer) = offers[place];
        Some(self.pay(class, offer))
    }

    fn pay(&mut self, class: usize, offer: Offer) -> (usize, Offer) {
        self.accounts[class].credit -= offer.cost;
        self.at = class;
        (class, offer)
    }

    /// A class has nothing more to send.
    pub(super) fn ran_out(&mut self, class: usize) {
        self.accounts[class].credit = 0;
    }

    #[cfg(test)]
    pub(super) fn is_spotless(&self) -> bool {
        self.accounts.iter().all(|account| account.credit == 0)
    }
}

#[cfg(test)]
mod tests;
