//! The limit of open descriptors: one per connection, so a server wants all that it may have.

use rustix::process::{Resource, getrlimit, setrlimit};

/// Raises the soft limit to the hard one; returns the limit in force (`None`: unlimited).
pub(crate) fn raise_limit() -> Option<u64> {
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // A refusal leaves the limit as it was; the log line with the limit in force shows it.
        let _ = setrlimit(Resource::Nofile, limit);
    }
    getrlimit(Resource::Nofile).current
}
