//! Whether and how requests wait for a worker: flags, variables and the file of classes.

use std::{fs::File, io::Read, path::Path, sync::Arc};

use anyhow::Context;
use dynamo_kv_router::{PolicyClasses, QueueConfig, QueuePolicy};
use dynamo_runtime::config::{Key, Layers};

const THRESHOLD: Key =
    Key::new("router-queue-threshold").env(&["DYN_ROUTER_QUEUE_THRESHOLD"]).expects("a number of 0 or more");
const POLICY: Key =
    Key::new("router-queue-policy").env(&["DYN_ROUTER_QUEUE_POLICY"]).expects("fcfs, lcfs, wspt or edf");
const CLASSES: Key =
    Key::new("router-policy-config").env(&["DYN_ROUTER_POLICY_CONFIG"]).expects("a file's path");

/// Flags of the queue.
#[derive(Clone, Debug, Default, clap::Args)]
pub(super) struct QueueArgs {
    /// Requests wait while all workers have more prompt tokens outstanding than this many of their largest steps
    #[arg(long, value_name = "STEPS")]
    router_queue_threshold: Option<f64>,
    /// Which of those that wait is next: fcfs, lcfs, wspt or edf [env: DYN_ROUTER_QUEUE_POLICY] [default: fcfs]
    #[arg(long, value_name = "POLICY")]
    router_queue_policy: Option<QueuePolicy>,
    /// YAML: classes that share the queue by weight, each with a policy, a threshold and limits of its own, and which
    /// requests are of which [env: DYN_ROUTER_POLICY_CONFIG]
    #[arg(long, value_name = "FILE")]
    router_policy_config: Option<String>,
}

impl QueueArgs {
    pub(super) fn resolve(&self, layers: &mut Layers<'_>) -> anyhow::Result<QueueConfig> {
        let file: Option<String> = layers.optional(&CLASSES, self.router_policy_config.clone())?;
        Ok(QueueConfig {
            threshold: layers.optional(&THRESHOLD, self.router_queue_threshold)?,
            policy: layers.value(&POLICY, self.router_queue_policy, QueuePolicy::default())?,
            classes: file.map(|file| read_classes(Path::new(&file))).transpose()?.map(Arc::new),
            ..QueueConfig::OFF
        })
    }
}

fn read_classes(path: &Path) -> anyhow::Result<PolicyClasses> {
    let named = || format!("--router-policy-config {}", path.display());
    let mut text = String::new();
    // One byte more than it may have, so that a longer one is refused and not cut.
    let limit = PolicyClasses::MAX_FILE as u64 + 1;
    File::open(path).and_then(|file| file.take(limit).read_to_string(&mut text)).with_context(named)?;
    PolicyClasses::from_yaml(&text).with_context(named)
}
