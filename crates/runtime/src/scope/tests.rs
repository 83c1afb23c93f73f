use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::timeout;

use super::TaskScope;

#[tokio::test(start_paused = true)]
async fn cancelling_a_parent_reaches_children_but_not_the_other_way() {
    let root = TaskScope::root(Handle::current());
    let (left, right) = (root.child("left"), root.child("right"));
    left.cancel();
    assert!(left.is_cancelled() && !root.is_cancelled() && !right.is_cancelled());
    root.cancel();
    assert!(right.is_cancelled());
}

#[tokio::test(start_paused = true)]
async fn tasks_count_in_every_scope_above() {
    let root = TaskScope::root(Handle::current());
    let inner = root.child("a").child("b");
    let task = inner.spawn("sleeper", {
        let inner = inner.clone();
        async move { inner.cancelled().await }
    });
    assert_eq!((root.tasks(), inner.tasks()), (1, 1));
    assert_eq!(root.census(), vec![("b/sleeper".to_owned(), 1)]);
    assert!(timeout(Duration::from_secs(1), root.closed()).await.is_err(), "a task is still there");
    root.cancel();
    root.closed().await;
    task.await.unwrap();
    assert_eq!(root.tasks(), 0);
    assert!(root.census().is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_cancelled_task_is_not_aborted() {
    let root = TaskScope::root(Handle::current());
    let task = root.spawn("stubborn", async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        7
    });
    root.cancel();
    assert_eq!(task.await.unwrap(), 7);
}

#[tokio::test(start_paused = true)]
async fn a_panicking_task_leaves_its_scope() {
    let root = TaskScope::root(Handle::current());
    let task = root.spawn("panics", async { panic!("on purpose") });
    assert!(task.await.is_err());
    root.closed().await;
    assert_eq!(root.tasks(), 0);
}
