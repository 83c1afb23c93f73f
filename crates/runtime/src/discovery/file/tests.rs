use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::tempdir;
use tokio::runtime::Handle;

use super::default_root;
use crate::discovery::suite::View;
use crate::discovery::test_records::{endpoint, model};
use crate::discovery::{Discovery, Query};
use crate::scope::TaskScope;

const ROOT: &str = "TEST_DISCOVERY_ROOT";
const FIRST_ID: &str = "TEST_DISCOVERY_FIRST_ID";

async fn client(root: &Path) -> Discovery {
    Discovery::file(root, TaskScope::root(Handle::current())).await.unwrap()
}

/// The second process: registers four endpoints and stays until it is killed.
#[tokio::test]
#[ignore = "is the second process of other tests"]
async fn second_process() {
    let (Ok(root), Ok(first)) = (std::env::var(ROOT), std::env::var(FIRST_ID)) else { return };
    let discovery = client(Path::new(&root)).await;
    let first: u64 = first.parse().unwrap();
    let mut held = Vec::new();
    for id in first..first + 4 {
        held.push(discovery.register(endpoint("ns/comp/ep", id)).await.unwrap());
    }
    println!("registered");
    std::future::pending::<()>().await;
}

fn start_second_process(root: &Path, first: u64) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "discovery::file::tests::second_process", "--ignored", "--nocapture"])
        .env(ROOT, root)
        .env(FIRST_ID, first.to_string())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

fn wait_until_registered(child: &mut Child) {
    let output = BufReader::new(child.stdout.take().unwrap());
    assert!(output.lines().any(|line| line.unwrap().contains("registered")), "the second process registers");
}

#[tokio::test]
async fn a_killed_process_is_noticed_and_cleaned_up() {
    let root = tempdir().unwrap();
    let ours = client(root.path()).await;
    let _kept = ours.register(endpoint("ns/comp/ep", 100)).await.unwrap();
    let mut child = start_second_process(root.path(), 1);
    wait_until_registered(&mut child);
    let mut view = View::new(ours.watch(Query::AllEndpoints));
    view.until(|records| records.len() == 5).await;

    child.kill().unwrap();
    child.wait().unwrap();
    let killed = Instant::now();
    let mut view = View::new(ours.watch(Query::AllEndpoints));
    view.until(|records| records.len() == 1).await;
    // A tenth of a second where the machine has time for it; this is for one that has not.
    assert!(killed.elapsed() < Duration::from_secs(5), "noticed after {:?}", killed.elapsed());
    let files = || std::fs::read_dir(root.path().join("v1/instances")).unwrap().count();
    let deadline = Instant::now() + Duration::from_secs(20);
    while files() > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(files(), 1, "the orphans are deleted");
}

#[tokio::test]
async fn processes_that_start_together_all_see_each_other() {
    let root = tempdir().unwrap();
    let mut children: Vec<Child> = (0..3).map(|n| start_second_process(root.path(), 1 + 4 * n)).collect();
    let ours = client(root.path()).await;
    View::new(ours.watch(Query::AllEndpoints)).until(|records| records.len() == 12).await;
    for child in &mut children {
        child.kill().unwrap();
        child.wait().unwrap();
    }
    View::new(ours.watch(Query::AllEndpoints)).until(|records| records.is_empty()).await;
}

#[tokio::test]
async fn orphans_of_an_earlier_run_are_not_shown_to_a_newcomer() {
    let root = tempdir().unwrap();
    let mut child = start_second_process(root.path(), 1);
    wait_until_registered(&mut child);
    child.kill().unwrap();
    child.wait().unwrap();
    let ours = client(root.path()).await;
    assert_eq!(ours.list(&Query::AllEndpoints).await.unwrap(), vec![]);
    assert_eq!(std::fs::read_dir(root.path().join("v1/instances")).unwrap().count(), 0);
}

#[tokio::test]
async fn files_are_private_and_where_tools_look() {
    let parent = tempdir().unwrap();
    let root = parent.path().join("made/here");
    let ours = client(&root).await;
    let _held = ours.register(model("ns/comp/ep", 0x1f, None)).await.unwrap();
    let file = root.join("v1/mdc/ns%2Fcomp%2Fep%2F1f");
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&root), mode(&file)), (0o700, 0o600));
    let json: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(json["type"], "Model");
    assert_eq!(json["card_json"]["display_name"], "m");
}

#[tokio::test]
async fn unfinished_and_foreign_files_are_invisible() {
    let root = tempdir().unwrap();
    let ours = client(root.path()).await;
    let _held = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    let instances = root.path().join("v1/instances");
    let good = std::fs::read(instances.join("ns%2Fcomp%2Fep%2F1")).unwrap();
    for (name, text) in
        [(".tmp_0123456789abcdef", &good[..]), ("elsewhere", &good), ("broken", b"{\"type\":")]
    {
        std::fs::write(instances.join(name), text).unwrap();
    }
    assert_eq!(ours.list(&Query::AllEndpoints).await.unwrap(), vec![endpoint("ns/comp/ep", 1)]);
}

#[tokio::test]
async fn what_we_hold_is_written_again_when_the_files_are_deleted() {
    let root = tempdir().unwrap();
    let ours = client(root.path()).await;
    let _held = ours.register(endpoint("ns/comp/ep", 1)).await.unwrap();
    std::fs::remove_dir_all(root.path().join("v1")).unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    let file = root.path().join("v1/instances/ns%2Fcomp%2Fep%2F1");
    while !file.exists() && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let theirs = client(root.path()).await;
    View::new(theirs.watch(Query::AllEndpoints)).until(|records| records.len() == 1).await;
}

#[test]
fn the_root_follows_the_environment() {
    let root = |vars: &[(&str, &str)]| {
        default_root(|name| {
            vars.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    };
    assert_eq!(root(&[("DYN_FILE_KV", "/a"), ("XDG_RUNTIME_DIR", "/run/u")]), Path::new("/a"));
    assert_eq!(root(&[("DYN_FILE_KV", ""), ("XDG_RUNTIME_DIR", "/run/u")]), Path::new("/run/u/dynamo"));
    let uid = rustix::process::getuid().as_raw();
    assert_eq!(root(&[("TMPDIR", "/scratch")]), Path::new("/scratch").join(format!("dynamo-{uid}")));
}

#[tokio::test]
async fn a_root_of_another_user_is_refused() {
    // Only root can hand a directory over; elsewhere a directory of root serves.
    let owned_by_other = tempdir().unwrap();
    let path = if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(owned_by_other.path(), Some(65_534), None).unwrap();
        owned_by_other.path().to_owned()
    } else {
        Path::new("/").to_owned()
    };
    let refused = Discovery::file(&path, TaskScope::root(Handle::current())).await.err();
    assert!(refused.is_some(), "a foreign root must be refused");
    assert!(!path.join("v1").exists(), "and left as it was");
}
