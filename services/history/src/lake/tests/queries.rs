//! Answers from the lake are those that a plain search of all rows gives.

use std::sync::Arc;

use contracts::{DeliveryId, api::HistoryQuery, events::DeliveryRecord};

use super::{Bench, forgetful, some};
use crate::{
    fixtures::{at, finished, id},
    lake::{CompactionLimits, KeyCache, Reader, Table, Writer, compact},
};

on_each_store! {
    pages_follow_each_other_newest_first_without_gap_or_overlap,
    what_takes_too_many_files_is_told_a_date_at_a_time,
    a_range_of_times_begins_with_from_and_ends_before_to,
    one_delivery_is_found_whole,
    a_delivery_that_took_over_midnight_is_found,
    a_delivery_that_ended_a_week_after_its_request_is_found,
    the_lake_tells_which_deliveries_it_has,
    a_reader_sees_what_another_process_commits,
    a_reader_whose_clock_was_set_back_still_sees_what_is_committed,
}

/// Three days of deliveries in several files, a part of them compacted.
async fn filled(bench: &Bench) -> (Arc<Table>, Vec<DeliveryRecord>) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    let mut all = Vec::new();
    for (number, (day, hour)) in [(1, 8), (1, 9), (1, 20), (2, 0), (2, 5), (3, 1), (1, 10)].into_iter().enumerate() {
        let records = some(30, at(day, hour));
        bench.publish(&records).await;
        bench.read_all(&mut writer, &format!("reader-{number}")).await;
        writer.flush().await.unwrap();
        all.extend(records);
    }
    let limits = CompactionLimits { max_small_files: 2, small_rows: 50, target_rows: 90, target_bytes: u64::MAX };
    assert!(compact(&table, &cache, limits).await.unwrap() > 0);
    (table, all)
}

fn query(customer: &str, limit: usize) -> HistoryQuery {
    HistoryQuery { customer_id: customer.parse().unwrap(), from: at(1, 0), to: at(9, 0), after: None, limit }
}

/// What a plain search finds.
fn expected(all: &[DeliveryRecord], query: &HistoryQuery) -> Vec<DeliveryId> {
    let mut found: Vec<_> = all
        .iter()
        .filter(|record| record.customer_id == query.customer_id)
        .map(|record| (record.finished_at.unwrap(), record.delivery_id))
        .filter(|(at, _)| *at >= query.from && *at < query.to)
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found.into_iter().map(|(_, id)| id).collect()
}

async fn pages_follow_each_other_newest_first_without_gap_or_overlap(bench: Bench) {
    let (table, all) = filled(&bench).await;
    let reader = Reader::new(table, forgetful());
    for limit in [7, 20, 100] {
        let query = query("bob", limit);
        let pages = pages(&reader, &query).await;
        assert!(pages.iter().all(|page| page.len() <= limit));
        assert_eq!(pages.concat(), expected(&all, &query), "in pages of {limit}");
    }
}

/// What each page lists, to the end.
async fn pages(reader: &Reader, query: &HistoryQuery) -> Vec<Vec<DeliveryId>> {
    let (mut query, mut pages) = (query.clone(), Vec::new());
    loop {
        let page = reader.history(&query).await.unwrap();
        pages.push(page.records.iter().map(|record| record.delivery_id).collect());
        query.after = page.next;
        if page.next.is_none() {
            return pages;
        }
    }
}

async fn what_takes_too_many_files_is_told_a_date_at_a_time(bench: Bench) {
    let (table, all) = filled(&bench).await;
    let mut reader = Reader::new(table, forgetful());
    reader.max_files = 1;
    // Those who have deliveries on each of the three days, and one whom every file may have, and none has.
    for customer in ["alice", "bob", "bobby", "carol"] {
        let query = query(customer, 1_000);
        let pages = pages(&reader, &query).await;
        assert_eq!(pages.concat(), expected(&all, &query), "{customer}");
        assert_eq!(pages.len(), 3, "{customer}: {pages:?}");
    }
}

async fn a_range_of_times_begins_with_from_and_ends_before_to(bench: Bench) {
    let (table, all) = filled(&bench).await;
    let reader = Reader::new(table, forgetful());
    let edge = all.iter().find(|record| record.customer_id.as_str() == "carol").unwrap().finished_at.unwrap();
    for (from, to) in
        [(edge, at(2, 2)), (at(1, 0), edge), (at(2, 0), at(2, 5)), (at(5, 0), at(6, 0)), (at(2, 0), at(1, 0))]
    {
        let query = HistoryQuery { from, to, ..query("carol", 100) };
        let listed: Vec<_> = reader.history(&query).await.unwrap().records.iter().map(|r| r.delivery_id).collect();
        assert_eq!(listed, expected(&all, &query), "{from} to {to}");
    }
    assert!(reader.history(&query("nobody", 10)).await.unwrap().records.is_empty());
}

async fn one_delivery_is_found_whole(bench: Bench) {
    let (table, all) = filled(&bench).await;
    let reader = Reader::new(table, forgetful());
    for record in all.iter().step_by(17) {
        assert_eq!(reader.delivery(record.delivery_id).await.unwrap().as_ref(), Some(record));
    }
    let unknown = finished(999, "bob", at(1, 8)).delivery_id;
    assert_eq!(reader.delivery(unknown).await.unwrap(), None);
    let without_a_time = DeliveryId(uuid::Uuid::from_u128(7));
    assert_eq!(reader.delivery(without_a_time).await.unwrap(), None);
}

async fn a_delivery_that_took_over_midnight_is_found(bench: Bench) {
    let mut record = finished(1, "bob", at(3, 1));
    record.delivery_id = id(1, at(1, 23));
    bench.publish(&[record.clone()]).await;
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "a").await;
    writer.flush().await.unwrap();
    let reader = Reader::new(bench.table().await, forgetful());
    assert_eq!(reader.delivery(record.delivery_id).await.unwrap(), Some(record));
}

async fn a_delivery_that_ended_a_week_after_its_request_is_found(bench: Bench) {
    let mut late = finished(1, "bob", at(9, 1));
    late.delivery_id = id(1, at(1, 23));
    for (number, records) in [some(30, at(5, 8)), vec![late.clone()], some(30, at(11, 8))].into_iter().enumerate() {
        bench.publish(&records).await;
        let mut writer = bench.writer().await;
        bench.read_all(&mut writer, &format!("reader-{number}")).await;
        writer.flush().await.unwrap();
    }
    let reader = Reader::new(bench.table().await, forgetful());
    assert_eq!(reader.contains(&[late.delivery_id]).await.unwrap(), [late.delivery_id]);
    assert_eq!(reader.delivery(late.delivery_id).await.unwrap(), Some(late));
}

async fn the_lake_tells_which_deliveries_it_has(bench: Bench) {
    let (table, all) = filled(&bench).await;
    let reader = Reader::new(table, forgetful());
    let mut asked: Vec<DeliveryId> = all.iter().step_by(2).map(|record| record.delivery_id).collect();
    let known = asked.clone();
    asked.push(finished(999, "bob", at(2, 0)).delivery_id);
    assert_eq!(reader.contains(&asked).await.unwrap(), known);
}

async fn a_reader_sees_what_another_process_commits(bench: Bench) {
    let reader = Reader::new(bench.table().await, forgetful());
    let records = some(3, at(1, 8));
    bench.publish(&records).await;
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "a").await;
    writer.flush().await.unwrap();
    bench.clock.advance(chrono::Duration::seconds(2));
    assert_eq!(reader.delivery(records[0].delivery_id).await.unwrap().as_ref(), Some(&records[0]));
}

async fn a_reader_whose_clock_was_set_back_still_sees_what_is_committed(bench: Bench) {
    let reader = Reader::new(bench.table().await, forgetful());
    bench.clock.advance(chrono::Duration::hours(-1));
    let records = some(3, at(1, 8));
    bench.publish(&records).await;
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "a").await;
    writer.flush().await.unwrap();
    assert_eq!(reader.delivery(records[0].delivery_id).await.unwrap().as_ref(), Some(&records[0]));
}
