use std::collections::BTreeMap;

use super::{Entry, MAX_PENDING_CHANGES, Table};
use crate::discovery::owner::OwnerId;
use crate::discovery::test_records::endpoint;
use crate::discovery::{Change, Query, Record};
use crate::metrics::{BoundHits, Metrics};

fn entry(id: u64) -> Entry {
    Entry { record: endpoint("ns/comp/ep", id), owner: OwnerId::from_bits(1) }
}

fn with_address(mut entry: Entry, address: &str) -> Entry {
    if let Record::Endpoint(record) = &mut entry.record {
        record.address = address.to_owned();
    }
    entry
}

#[tokio::test]
async fn replacing_all_reports_only_differences_by_value() {
    let table = Table::new();
    table.put(entry(1));
    table.put(entry(2));
    table.put(entry(3));
    let mut watch = table.watch(Query::AllEndpoints, None);
    assert!(matches!(watch.next().await, Some(Change::Snapshot(all)) if all.len() == 3));
    let changed = with_address(entry(2), "elsewhere:1/x");
    let next =
        [entry(1), changed.clone()].into_iter().map(|e| (e.record.key(), e)).collect::<BTreeMap<_, _>>();
    table.replace(next);
    assert_eq!(watch.next().await, Some(Change::Removed(entry(3).record.key())));
    assert_eq!(watch.next().await, Some(Change::Put(changed.record)));
    assert!(watch.take().is_none());
}

#[tokio::test]
async fn a_watcher_that_lags_gets_a_fresh_snapshot() {
    let table = Table::new();
    let hits = BoundHits::new(&Metrics::new()).unwrap().of("discovery_watch");
    let mut watch = table.watch(Query::AllEndpoints, Some(hits.clone()));
    assert_eq!(watch.next().await, Some(Change::Snapshot(vec![])));
    for port in 0..=MAX_PENDING_CHANGES {
        table.put(with_address(entry(1), &format!("h:{port}/x")));
    }
    let last = with_address(entry(1), &format!("h:{MAX_PENDING_CHANGES}/x"));
    assert_eq!(watch.next().await, Some(Change::Snapshot(vec![last.record])));
    assert_eq!(hits.get(), 1);
    assert!(watch.take().is_none());
    table.remove(&entry(1).record.key(), OwnerId::from_bits(1));
    assert_eq!(watch.next().await, Some(Change::Removed(entry(1).record.key())));
}

#[tokio::test]
async fn a_closed_table_ends_its_watches_after_what_is_pending() {
    let table = Table::new();
    let mut watch = table.watch(Query::AllEndpoints, None);
    assert!(watch.next().await.is_some());
    table.put(entry(1));
    table.close();
    assert_eq!(watch.next().await, Some(Change::Put(entry(1).record)));
    assert_eq!(watch.next().await, None);
}
