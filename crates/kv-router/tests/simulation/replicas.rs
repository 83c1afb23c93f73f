//! Two routers that tell each other what they send are as good as one.

use std::time::Duration;

use dynamo_kv_router::KvRouterConfig;

use super::{
    balance::conversations,
    stack::{Setting, run},
};

#[test]
fn two_routers_with_synchronisation_are_within_five_percent_of_one() {
    let config = KvRouterConfig::REFERENCE;
    let setting =
        |routers, sync| Setting { config: config.clone(), workers: 8, routers, capacity: 4096, sync };
    let (mut slow_two, mut slow_one) = (Duration::ZERO, Duration::ZERO);
    for (per_second, seed) in [(8.0, 11), (14.0, 9), (20.0, 5)] {
        let trace = conversations(2000, per_second, seed);
        let one = run(&setting(1, None), &trace);
        let two = run(&setting(2, Some(Duration::from_millis(2))), &trace);
        let near = |two: f64, one: f64| (two / one - 1.0).abs() < 0.05;
        assert!(
            near(two.cached_share(), one.cached_share()),
            "{} {}",
            two.cached_share(),
            one.cached_share()
        );
        let ((two_most, two_least), (one_most, one_least)) = (two.spread(), one.spread());
        assert!(
            near(two_most, one_most) && near(two_least, one_least),
            "{:?} {:?}",
            two.requests,
            one.requests
        );
        slow_two += two.first_token_at(0.99);
        slow_one += one.first_token_at(0.99);
    }
    assert!(slow_two < slow_one.mul_f64(1.05), "{slow_two:?} {slow_one:?}");
}

#[test]
fn without_synchronisation_they_are_worse() {
    let config = KvRouterConfig::REFERENCE;
    let setting = |sync| Setting { config: config.clone(), workers: 8, routers: 4, capacity: 4096, sync };
    let trace = conversations(2000, 26.0, 9);
    let told = run(&setting(Some(Duration::from_millis(2))), &trace);
    let untold = run(&setting(None), &trace);
    let slow = (told.first_token_at(0.99), untold.first_token_at(0.99));
    assert!(slow.0.mul_f64(1.1) < slow.1, "{slow:?}");
}
