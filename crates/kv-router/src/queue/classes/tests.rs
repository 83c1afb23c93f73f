use std::{sync::Arc, time::Instant};

use proptest::prelude::*;

use super::{
    super::{QueueConfig, QueueRejected, RouterQueue, Waiting},
    *,
};

const FILE: &str = "
# Chat goes before batch work, four to one.
quantum: 512
classes:
  chat:
    weight: 4
    policy: edf
    threshold: 2
    max_wait_secs: 2.5
    request_limit: 3
    raw_isl_token_limit: 1000
    cached_token_limit: 100
  batch: {policy: WSPT}
  idle:
rules:
  - {class: chat, priority: {min: 5}}
  - class: batch
    models: [big, bigger]
    isl_tokens: {min: 100, max: 200}
  - {class: idle, strict_priority: {max: 0}, isl_tokens: {min: 1000}}
";

fn config(text: &str) -> QueueConfig {
    let classes = PolicyClasses::from_yaml(text).unwrap();
    QueueConfig { threshold: Some(1.0), classes: Some(Arc::new(classes)), ..QueueConfig::OFF }
}

const ANYONE: ClassQuery<'_> =
    ClassQuery { class: None, model: "m", isl_tokens: 10, priority_jump: 0.0, strict_priority: 0 };

fn id(config: &QueueConfig, name: &str) -> ClassId {
    config.class_of(&ClassQuery { class: Some(name), ..ANYONE }).unwrap()
}

fn of(class: ClassId, isl_tokens: usize) -> Waiting {
    Waiting {
        class,
        lane: 0,
        strict_priority: 0,
        priority_jump: 0.0,
        isl_tokens,
        cached_tokens: 0,
        deadline: None,
    }
}

#[test]
fn a_file_says_what_a_class_has_of_its_own() {
    let config = config(FILE);
    let names: Vec<&str> = config.class_names().map(|(_, name)| name).collect();
    assert_eq!(names, ["default", "batch", "chat", "idle"]);
    let [chat, batch, idle] = ["chat", "batch", "idle"].map(|name| id(&config, name));
    assert_eq!((config.threshold_of(chat), config.threshold_of(batch)), (Some(2.0), Some(1.0)));
    assert_eq!((config.policy_of(chat), config.policy_of(idle)), (QueuePolicy::Edf, QueuePolicy::Fcfs));
    assert_eq!(config.policy_of(batch), QueuePolicy::Wspt);
    assert_eq!(config.max_wait_of(chat), Duration::from_millis(2500));
    assert_eq!(config.max_wait_of(batch), QueueConfig::OFF.max_wait);
    assert_eq!((config.quantum_of(chat), config.quantum_of(ClassId::DEFAULT)), (2048, 512));
    let alone = QueueConfig::OFF;
    assert_eq!(alone.class_names().collect::<Vec<_>>(), [(ClassId::DEFAULT, "default")]);
    assert!(!alone.is_used());
    assert!(QueueConfig { threshold: None, ..config }.is_used(), "one class has a threshold");
}

#[test]
fn a_request_is_of_the_class_that_it_names_or_of_the_first_rule_that_it_fits() {
    let config = config(FILE);
    let class = |query: ClassQuery<'_>| config.class_name(config.class_of(&query).unwrap()).to_owned();
    assert_eq!(class(ANYONE), "default");
    assert_eq!(class(ClassQuery { class: Some("idle"), priority_jump: 9.0, ..ANYONE }), "idle");
    assert_eq!(class(ClassQuery { priority_jump: 5.0, model: "big", isl_tokens: 150, ..ANYONE }), "chat");
    assert_eq!(class(ClassQuery { priority_jump: 4.9, model: "bigger", isl_tokens: 200, ..ANYONE }), "batch");
    assert_eq!(class(ClassQuery { model: "big", isl_tokens: 201, ..ANYONE }), "default");
    assert_eq!(class(ClassQuery { model: "large", isl_tokens: 150, ..ANYONE }), "default");
    assert_eq!(class(ClassQuery { isl_tokens: 1000, ..ANYONE }), "idle");
    assert_eq!(class(ClassQuery { isl_tokens: 1000, strict_priority: 1, ..ANYONE }), "default");
    let unknown = ClassQuery { class: Some("Chat"), ..ANYONE };
    assert_eq!(config.class_of(&unknown), Err(UnknownClass));
    assert_eq!(QueueConfig::OFF.class_of(&unknown), Ok(ClassId::DEFAULT), "there are no names to know");
}

#[test]
fn the_example_is_read_and_does_what_it_says() {
    let config = config(include_str!("../../../../../docs/policy-classes.yaml"));
    let [interactive, batch] = ["interactive", "batch"].map(|name| id(&config, name));
    assert_eq!(config.class_of(&ClassQuery { priority_jump: 5.0, ..ANYONE }), Ok(interactive));
    assert_eq!(config.class_of(&ClassQuery { isl_tokens: 32_000, ..ANYONE }), Ok(batch));
    assert_eq!(config.class_of(&ClassQuery { model: "llama-3-8b-batch", ..ANYONE }), Ok(batch));
    assert_eq!(config.class_of(&ANYONE), Ok(ClassId::DEFAULT));
    assert_eq!(
        [ClassId::DEFAULT, interactive, batch].map(|class| config.quantum_of(class) / 1024),
        [2, 6, 1]
    );
}

#[test]
fn an_empty_file_has_the_default_class_and_nothing_else() {
    for text in ["{}", "classes:\n  default: {weight: 3}\n"] {
        assert_eq!(PolicyClasses::from_yaml(text).unwrap().len(), 1, "{text}");
    }
}

#[test]
fn what_cannot_be_read_is_named_by_line_or_key() {
    let many: String = (0..64).map(|number| format!("  c{number}:\n")).collect();
    let rules = "  - {class: default}\n".repeat(PolicyClasses::MAX_RULES + 1);
    for (text, words) in [
        ("classes:\n  a:\n    wait: 4\n", ["line 3", "wait"]),
        ("classes:\n  a: {}\nclasess: {}\n", ["line 3", "clasess"]),
        ("classes:\n  a: {}\n  a: {}\n", ["line 3", "a"]),
        ("classes:\n  a:\n    weight: heavy\n", ["line 3", "u32"]),
        ("classes: [\n", ["line", "column"]),
        ("classes:\n  a: {weight: 0}\n", ["classes.a.weight", "1 to 1000"]),
        ("classes:\n  a: {policy: sjf}\n", ["classes.a.policy", "fcfs, lcfs"]),
        ("classes:\n  a: {threshold: -1}\n", ["classes.a.threshold", "not -1"]),
        ("classes:\n  a: {threshold: .nan}\n", ["classes.a.threshold", "NaN"]),
        ("classes:\n  a: {max_wait_secs: 0}\n", ["classes.a.max_wait_secs", "more than 0"]),
        ("classes:\n  a: {max_wait_secs: 1e18}\n", ["classes.a.max_wait_secs", "at most 86400"]),
        ("classes:\n  a b: {}\n", ["classes.a b", "letters"]),
        ("quantum: 0\n", ["quantum", "1048576"]),
        ("rules: [{class: b}]\n", ["rules[0].class", "no class `b`"]),
        ("rules: [{class: default, isl_tokens: {min: 5, max: 4}}]\n", ["rules[0].isl_tokens", "5 to 4"]),
        ("rules: [{class: default, priority: {min: .nan}}]\n", ["rules[0].priority", "NaN"]),
        ("rules: [{class: default, isl: {min: 5}}]\n", ["line 1", "isl"]),
        (&format!("classes:\n{many}"), ["classes", "there are 65"]),
        (&format!("rules:\n{rules}"), ["rules", "there are 257"]),
        (&" ".repeat(PolicyClasses::MAX_FILE + 1), ["longer than", "1048576"]),
    ] {
        let error = PolicyClasses::from_yaml(text).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    }
}

#[test]
fn a_class_has_limits_of_its_own_and_all_have_common_ones() {
    let now = Instant::now();
    let config = QueueConfig { max_requests: 4, ..config(FILE) };
    let (chat, batch) = (id(&config, "chat"), id(&config, "batch"));
    let mut queue = RouterQueue::new(config, now);
    let reason = |refused: Result<_, (QueueRejected, ())>| refused.unwrap_err().0.reason();
    assert_eq!(reason(queue.push(of(chat, 1001), (), now)), "raw_isl_token_limit");
    let cached = Waiting { cached_tokens: 60, ..of(chat, 100) };
    queue.push(cached, (), now).unwrap();
    assert_eq!(reason(queue.push(cached, (), now)), "cached_token_limit");
    let second = queue.push(of(chat, 100), (), now).unwrap();
    queue.push(of(chat, 100), (), now).unwrap();
    assert_eq!(reason(queue.push(of(chat, 1), (), now)), "request_limit");
    queue.push(of(batch, 5000), (), now).unwrap();
    assert_eq!(reason(queue.push(of(batch, 1), (), now)), "request_limit");
    assert_eq!((queue.depth_of(chat).isl_tokens, queue.depth_of(batch).requests), (300, 1));
    assert_eq!((queue.depth().isl_tokens, queue.depth().cached_tokens), (5300, 60));
    queue.remove(second).unwrap();
    queue.push(of(batch, 1), (), now).unwrap();
}

#[test]
fn each_class_has_its_own_order_and_strict_priority_stays_within_it() {
    let now = Instant::now();
    let config = config("{quantum: 10, classes: {a: {policy: lcfs}, b: {policy: fcfs}}}");
    let (a, b) = (id(&config, "a"), id(&config, "b"));
    let mut queue = RouterQueue::new(config, now);
    let first = |class| of(class, 10);
    let urgent = Waiting { strict_priority: 9, ..of(b, 10) };
    for (number, waiting) in [first(a), first(b), first(a), urgent, first(b), urgent].into_iter().enumerate()
    {
        let at = now + Duration::from_secs(number as u64);
        queue.push(waiting, number, at).unwrap();
    }
    let order: Vec<usize> = std::iter::from_fn(|| queue.pop(|_| true)).collect();
    assert_eq!(order, [2, 3, 0, 5, 1, 4], "a's last first, and b's urgent ones, in turn");
}

#[test]
fn a_class_that_cannot_go_holds_up_no_other_and_keeps_its_turn() {
    let now = Instant::now();
    let config = config("{quantum: 10, classes: {a: {}, b: {}}}");
    let (a, b) = (id(&config, "a"), id(&config, "b"));
    let mut queue = RouterQueue::new(config, now);
    for _ in 0..3 {
        queue.push(of(a, 10), 'a', now).unwrap();
        queue.push(of(b, 10), 'b', now).unwrap();
    }
    assert_eq!([(); 2].map(|()| queue.pop(|class| *class == 'b')), [Some('b'); 2]);
    assert_eq!(queue.pop(|_| false), None);
    let rest: String = std::iter::from_fn(|| queue.pop(|_| true)).collect();
    assert_eq!(rest, "abaa");
    assert!(queue.is_spotless());
}

proptest! {
    /// A class that always has somebody waiting gets its share of the tokens that leave, less its quantum and its longest
    /// request at most, whatever the others' loads, lanes and leavers are.
    #[test]
    fn no_class_starves(
        weights in prop::collection::vec(1..20u32, 2..6),
        quantum in 1..3000u64,
        watched in any::<prop::sample::Index>(),
        steps in prop::collection::vec((0..8u8, any::<prop::sample::Index>(), 1..4000usize, 0..5000usize), 1..300),
    ) {
        let text: String = weights.iter().enumerate()
            .map(|(number, weight)| format!("  c{number}: {{weight: {weight}, policy: wspt}}\n")).collect();
        let config = config(&format!("quantum: {quantum}\nclasses:\n{text}"));
        let ids: Vec<ClassId> = (0..weights.len()).map(|number| id(&config, &format!("c{number}"))).collect();
        let now = Instant::now();
        let mut queue = RouterQueue::new(config, now);
        let watched = watched.index(weights.len());
        let (mut served, mut longest) = (vec![0u64; weights.len()], 0u64);
        let mut tickets = Vec::new();
        for (kind, class, isl_tokens, cached_tokens) in steps {
            let class = class.index(weights.len());
            let entry = |class: usize| Waiting { lane: isl_tokens as u64 % 3, cached_tokens, ..of(ids[class], isl_tokens) };
            let cost = |class: usize| (class, entry(class).cost());
            if queue.depth_of(ids[watched]).requests < 2 {
                longest = longest.max(cost(watched).1);
                queue.push(entry(watched), cost(watched), now).unwrap();
            }
            match kind {
                0..=2 => {
                    if class == watched {
                        longest = longest.max(cost(class).1);
                    }
                    tickets.push(queue.push(entry(class), cost(class), now).unwrap());
                    continue;
                }
                3 => {
                    // Whoever is next of the watched class stays, so that it never runs out.
                    if let Some(ticket) = tickets.pop().filter(|_| queue.depth_of(ids[watched]).requests > 1) {
                        queue.remove(ticket);
                    }
                    continue;
                }
                _ => {}
            }
            let blocked = (class != watched).then_some(class);
            let (left, cost) = queue.pop(|&(of, cost)| of == watched || Some(of) != blocked || cost % 2 == 0).unwrap();
            served[left] += cost;
            let all: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
            let weight = u64::from(weights[watched]);
            let due = weight * served.iter().sum::<u64>();
            let lag = all * (weight * quantum + longest);
            prop_assert!(all * served[watched] + lag >= due, "{} of {:?}, class {}", lag, served, watched);
        }
    }
}
