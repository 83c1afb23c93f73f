use super::*;

/// Lets classes with always something to send take `turns` turns, and says who took them.
fn order(turns: &mut Turns, costs: &[u64], count: usize) -> Vec<usize> {
    let offer = |class: usize| Some(Offer { ticket: class as u64, cost: costs[class] });
    (0..count).map(|_| turns.next(offer).unwrap().0).collect()
}

#[test]
fn turns_go_round_and_are_as_long_as_the_quantum() {
    let mut turns = Turns::new([100, 300].into_iter());
    assert_eq!(order(&mut turns, &[100, 100], 9), [1, 1, 1, 0, 1, 1, 1, 0, 1]);
    let mut turns = Turns::new([100, 100].into_iter());
    assert_eq!(order(&mut turns, &[300, 100], 9), [1, 1, 1, 0, 1, 1, 1, 0, 1]);
}

#[test]
fn one_class_alone_pays_whatever_it_costs() {
    let mut turns = Turns::new([1].into_iter());
    assert_eq!(order(&mut turns, &[u64::from(u32::MAX)], 3), [0, 0, 0]);
    assert!(turns.is_spotless());
    assert!(turns.next(|_| None).is_none());
}

#[test]
fn who_has_nothing_to_send_is_passed_over_and_saves_nothing_up() {
    let mut turns = Turns::new([10, 10].into_iter());
    let only = |who: usize| move |class: usize| (class == who).then_some(Offer { ticket: 0, cost: 10 });
    for _ in 0..50 {
        assert_eq!(turns.next(only(0)).unwrap().0, 0);
    }
    assert_eq!(order(&mut turns, &[10, 10], 6), [1, 0, 1, 0, 1, 0]);
    // Credit that was left over goes with the last request.
    let mut turns = Turns::new([10, 10].into_iter());
    order(&mut turns, &[7, 7], 1);
    assert!(!turns.is_spotless());
    turns.ran_out(0);
    turns.ran_out(1);
    assert!(turns.is_spotless());
}

#[test]
fn nobody_is_asked_more_than_once_or_without_need() {
    let mut turns = Turns::new([1000, 1000, 1000].into_iter());
    order(&mut turns, &[10, 10, 10], 1);
    let mut asked = Vec::new();
    turns.next(|class| {
        asked.push(class);
        Some(Offer { ticket: 0, cost: 10 })
    });
    assert_eq!(asked.len(), 1, "whoever can pay goes on");
    asked.clear();
    turns.next(|class| {
        asked.push(class);
        Some(Offer { ticket: 0, cost: 1_000_000_000 })
    });
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 2]);
}

proptest::proptest! {
    /// Crediting many rounds at once is the same as crediting one after the other.
    #[test]
    fn many_rounds_at_once_are_as_one_by_one(
        classes in proptest::collection::vec((1..50u64, 1..2000u64), 1..6),
        blocked in proptest::collection::vec(0..64u8, 40),
    ) {
        let mut turns = Turns::new(classes.iter().map(|(quantum, _)| *quantum));
        let mut plain: Vec<u64> = vec![0; classes.len()];
        let mut at = 0;
        for blocked in blocked {
            let can = |class: usize| blocked & (1 << class) == 0;
            let took = turns.next(|class| {
                can(class).then_some(Offer { ticket: 0, cost: classes[class].1 })
            });
            if !(0..classes.len()).any(can) {
                proptest::prop_assert!(took.is_none());
                continue;
            }
            while !can(at) || plain[at] < classes[at].1 {
                at = (at + 1) % classes.len();
                if can(at) {
                    plain[at] += classes[at].0;
                }
            }
            plain[at] -= classes[at].1;
            proptest::prop_assert_eq!(took.map(|(class, _)| class), Some(at));
            let credits: Vec<u64> = turns.accounts.iter().map(|account| account.credit).collect();
            proptest::prop_assert_eq!(&credits, &plain);
        }
    }
}
