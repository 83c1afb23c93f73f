use super::*;

const RANK: WorkerRank = WorkerRank { worker_id: 7, dp_rank: 0 };

fn outcome(ask: Ask) -> Outcome {
    let answer = Ok(KvQueryAnswer::TreeDump { events: Vec::new(), last_event_id: 0 });
    Outcome { rank: ask.rank, generation: ask.generation, token: ask.request.token, answer }
}

#[test]
fn an_answer_to_an_earlier_incarnation_counts_for_nothing() {
    let (mut orders, now) = (KvOrders::default(), Instant::now());
    let first = orders.add(7, 1, 0..1, now);
    let second = orders.add(7, 2, 0..1, now);
    assert_eq!(first[0].request.token, second[0].request.token);
    assert!(orders.answered(outcome(first[0]), now).is_none());
    let answered = orders.answered(outcome(second[0]), now).unwrap();
    assert_eq!((answered.epoch, answered.recovered.replace), (2, true));
}

#[test]
fn an_answer_to_a_worker_that_left_and_came_back_counts_for_nothing() {
    let (mut orders, now) = (KvOrders::default(), Instant::now());
    let first = orders.add(7, 1, 0..1, now);
    orders.remove(7);
    assert!(orders.answered(outcome(first[0]), now).is_none());
    orders.add(7, 1, 0..1, now);
    assert!(orders.answered(outcome(first[0]), now).is_none());
}

#[test]
fn a_dump_that_is_needed_is_asked_for_after_the_question_that_is_out() {
    let (mut orders, now) = (KvOrders::default(), Instant::now());
    let first = orders.add(7, 1, 0..1, now);
    orders.lost(RANK);
    assert!(orders.due_dumps(now).is_empty());
    let failed = Outcome { answer: Err("lost".to_owned()), ..outcome(first[0]) };
    let next = orders.answered(failed, now).unwrap().next.unwrap();
    assert!(orders.due_dumps(now).is_empty());
    orders.answered(outcome(next), now).unwrap();
    assert!(orders.due_dumps(now).is_empty(), "the answer was a dump");
    orders.lost(RANK);
    assert_eq!(orders.due_dumps(now).len(), 1);
}

#[test]
fn dumps_are_asked_for_now_and_then_and_none_is_forgotten() {
    let (mut orders, now) = (KvOrders::default(), Instant::now());
    let first = orders.add(7, 1, 0..1, now);
    orders.answered(outcome(first[0]), now).unwrap();
    orders.lost(RANK);
    let dump = orders.due_dumps(now);
    orders.answered(outcome(dump[0]), now).unwrap();
    orders.lost(RANK);
    assert!(orders.due_dumps(now).is_empty());
    assert_eq!(orders.due_dumps(now + DUMP_PAUSE).len(), 1);
    assert!(orders.due_dumps(now + DUMP_PAUSE * 3).is_empty(), "it was asked for");
}

#[test]
fn what_is_lost_of_a_stranger_is_not_asked_for() {
    let mut orders = KvOrders::default();
    orders.lost(RANK);
    assert!(orders.due_dumps(Instant::now()).is_empty());
}
