use super::{EndpointId, Epoch, WorkerId};

#[test]
fn ids_survive_a_json_double() {
    for _ in 0..1000 {
        let id = WorkerId::random();
        assert!(id.get() != 0 && id.get() <= WorkerId::MAX);
        let text = serde_json::to_string(&id).unwrap();
        let double: f64 = text.parse().unwrap();
        assert_eq!(double as u64, id.get());
    }
    assert_eq!(WorkerId::from_bits(u64::MAX).get(), WorkerId::MAX);
    assert_eq!(format!("{:x}", WorkerId::from_bits(0xab)), "ab");
}

#[test]
fn an_epoch_is_later_than_the_one_found() {
    let now = Epoch::from_unix_ms(1_000);
    assert_eq!(now.after(Epoch::from_unix_ms(900)).get(), 1_000);
    assert_eq!(now.after(Epoch::from_unix_ms(1_000)).get(), 1_001);
    assert_eq!(now.after(Epoch::from_unix_ms(5_000)).get(), 5_001);
}

#[test]
fn endpoint_paths_parse_as_the_reference_says() {
    let cases = [
        ("dyn://ns.comp.ep", ("ns", "comp", "ep")),
        ("ns/comp/ep", ("ns", "comp", "ep")),
        (" /ns.comp.ep/ ", ("ns", "comp", "ep")),
        ("comp", ("NS", "comp", "E")),
        ("ns.comp", ("ns", "comp", "E")),
        ("ns..comp", ("ns", "comp", "E")),
        ("ns.comp.a.b.c", ("ns", "comp", "a_b_c")),
        ("", ("NS", "C", "E")),
    ];
    for (path, (namespace, component, endpoint)) in cases {
        assert_eq!(EndpointId::parse(path), EndpointId::new(namespace, component, endpoint), "{path:?}");
    }
    assert_eq!(EndpointId::parse("a.b.c").to_string(), "a/b/c");
    assert_eq!(EndpointId::parse("a/b/c").as_url(), "dyn://a.b.c");
}
