//! Trees of tasks: what may be spawned, what is told to stop, and what is waited for.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;

#[cfg(test)]
mod tests;

/// A place where tasks live. Cancelling a scope tells its tasks, and those of its children, to stop; it aborts
/// none of them, so each leaves at a point of its own choice. Clones are the same scope.
#[derive(Clone)]
pub struct TaskScope {
    node: Arc<Node>,
}

struct Node {
    name: &'static str,
    handle: Handle,
    token: CancellationToken,
    /// Closed from birth: `wait` then means "no task is left", and spawning is still allowed.
    tracker: TaskTracker,
    parent: Option<Arc<Node>>,
    /// Running tasks by (scope, task), kept by the root and shared: what a drain that does not end is waiting for.
    census: Arc<Mutex<Census>>,
}

/// Bounded by the program: names are `&'static str`.
type Census = BTreeMap<(&'static str, &'static str), usize>;

impl TaskScope {
    /// A scope without a parent whose tasks run on `handle`.
    pub fn root(handle: Handle) -> Self {
        let tracker = TaskTracker::new();
        tracker.close();
        let census = Arc::new(Mutex::new(Census::new()));
        let token = CancellationToken::new();
        Self { node: Arc::new(Node { name: "root", handle, token, tracker, parent: None, census }) }
    }

    /// A scope that is cancelled when this one is, and whose tasks count as tasks of this one.
    pub fn child(&self, name: &'static str) -> TaskScope {
        let tracker = TaskTracker::new();
        tracker.close();
        Self {
            node: Arc::new(Node {
                name,
                handle: self.node.handle.clone(),
                token: self.node.token.child_token(),
                tracker,
                parent: Some(self.node.clone()),
                census: self.node.census.clone(),
            }),
        }
    }

    /// Runs `future` to its end. It is not aborted by [`cancel`](Self::cancel): it watches
    /// [`cancelled`](Self::cancelled) where it waits.
    pub fn spawn<F>(&self, name: &'static str, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let presence = self.enter(name);
        self.node.handle.spawn(async move {
            let _presence = presence;
            future.await
        })
    }

    /// Runs `work`, which may block, on the blocking pool of the handle; it counts as a task.
    pub fn spawn_blocking<F, T>(&self, name: &'static str, work: F) -> JoinHandle<T>
    where
        F: FnOnce() -> T + Send + 'static,
        T: Send + 'static,
    {
        let presence = self.enter(name);
        self.node.handle.spawn_blocking(move || {
            let _presence = presence;
            work()
        })
    }

    /// Tells every task of this scope and of its children to stop.
    pub fn cancel(&self) {
        self.node.token.cancel();
    }

    /// Whether this scope or one above it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.node.token.is_cancelled()
    }

    /// Resolves when this scope or one above it is cancelled.
    pub async fn cancelled(&self) {
        self.node.token.cancelled().await;
    }

    /// Resolves when no task of this scope or of its children is left.
    pub async fn closed(&self) {
        self.node.tracker.wait().await;
    }

    /// Tasks that have not ended, children's included.
    pub fn tasks(&self) -> usize {
        self.node.tracker.len()
    }

    /// The handle that the tasks run on.
    pub fn handle(&self) -> &Handle {
        &self.node.handle
    }

    /// What runs in the whole tree this scope belongs to, as `scope/task` with its count; for logs.
    pub fn census(&self) -> Vec<(String, usize)> {
        let census = self.node.census.lock();
        census.iter().map(|((scope, task), count)| (format!("{scope}/{task}"), *count)).collect()
    }

    fn enter(&self, task: &'static str) -> Presence {
        let mut tokens = Vec::with_capacity(4);
        let mut node = Some(&self.node);
        while let Some(current) = node {
            tokens.push(current.tracker.token());
            node = current.parent.as_ref();
        }
        let key = (self.node.name, task);
        *self.node.census.lock().entry(key).or_default() += 1;
        Presence { key, census: self.node.census.clone(), _tokens: tokens }
    }
}

impl std::fmt::Debug for TaskScope {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskScope")
            .field("name", &self.node.name)
            .field("tasks", &self.tasks())
            .field("cancelled", &self.is_cancelled())
            .finish()
    }
}

/// Held by a running task: counts it in its scope and in every scope above.
struct Presence {
    key: (&'static str, &'static str),
    census: Arc<Mutex<Census>>,
    _tokens: Vec<TaskTrackerToken>,
}

impl Drop for Presence {
    fn drop(&mut self) {
        let mut census = self.census.lock();
        if let Some(count) = census.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                census.remove(&self.key);
            }
        }
    }
}
