//! Compaction, checkpoints and vacuum: the lake stays quick, and no reader notices.

use std::{collections::HashSet, sync::Arc, time::Duration};

use contracts::events::{DeliveryRecord, Topic};
use deltalake_core::kernel::Version;
use futures::TryStreamExt;
use object_store::{ObjectStore, ObjectStoreExt, path::Path};

use super::{Bench, Place, lost_answers::losing, some};
use crate::{
    domain::{DeliveryRow, Key},
    fixtures::at,
    lake::{CompactionLimits, KeyCache, Table, Writer, compact, files::View, parquet_file, vacuum},
};

on_each_store! {
    a_compaction_shows_every_row_once_in_every_version,
    two_replicas_compact_the_same_files_once,
    a_file_that_is_gone_keeps_no_other_date_from_compaction,
    compacted_files_are_ordered_by_delivery,
    a_compaction_commits_no_file_that_a_vacuum_may_have_taken,
    a_checkpoint_carries_files_and_offsets,
    a_file_that_is_gone_keeps_no_checkpoint_from_being_made,
    an_offset_is_found_after_the_entries_that_a_replica_began_with_were_cleaned_up,
    a_vacuum_deletes_replaced_files_and_orphans_after_the_retention_only,
    a_vacuum_spares_for_its_retention_what_another_replica_replaces_meanwhile,
    a_replica_that_slept_for_long_reads_the_table_anew,
}

const EAGER: CompactionLimits =
    CompactionLimits { max_small_files: 4, small_rows: 40, target_rows: 60, target_bytes: u64::MAX };

/// A lake of one small file per five deliveries.
async fn many_small_files(bench: &Bench, writer: &mut Writer<DeliveryRow>, files: u64) -> Vec<DeliveryRecord> {
    let records = some(files * 5, at(1, 8));
    for (number, part) in records.chunks(5).enumerate() {
        bench.publish(part).await;
        bench.read_all(writer, &format!("reader-{number}")).await;
        writer.flush().await.unwrap();
    }
    records
}

async fn keys_in(table: &Table, view: &View) -> Vec<Key> {
    let mut keys = Vec::new();
    for file in view.files() {
        let bytes = table.store().get(&Path::parse(&file.path).unwrap()).await.unwrap().bytes().await.unwrap();
        for batch in parquet_file::decode(bytes, None).unwrap() {
            parquet_file::keys_of(&batch, &mut keys).unwrap();
        }
    }
    keys
}

async fn a_compaction_shows_every_row_once_in_every_version(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    let records = many_small_files(&bench, &mut writer, 20).await;
    let replaced = compact(&table, &cache, EAGER).await.unwrap();
    assert!(replaced >= 16, "{replaced} files were replaced");
    assert!(table.view().files().count() <= 5);
    let newest = table.view().version;
    let mut seen = 0;
    for version in 0..=newest {
        let view = table.view_at(version).await.unwrap();
        let keys = keys_in(&table, &view).await;
        let distinct: HashSet<&Key> = keys.iter().collect();
        assert_eq!(distinct.len(), keys.len(), "version {version} shows a row twice");
        assert!(keys.len() >= seen, "version {version} misses rows");
        seen = keys.len();
    }
    assert_eq!(seen, records.len());
    bench.assert_holds(&records).await;
    // What was compacted is still recognised.
    bench.publish(&records[..30]).await;
    bench.read_all(&mut writer, "again").await;
    assert_eq!(writer.flush().await.unwrap().rows, 0);
    assert_eq!(compact(&table, &cache, EAGER).await.unwrap(), 0, "there is nothing left to do");
}

async fn two_replicas_compact_the_same_files_once(bench: Bench) {
    let mut writer = bench.writer().await;
    let records = many_small_files(&bench, &mut writer, 12).await;
    let (one, other) = (bench.table().await, bench.table().await);
    let (one_cache, other_cache) = (KeyCache::default(), KeyCache::default());
    let (first, second) = tokio::join!(compact(&one, &one_cache, EAGER), compact(&other, &other_cache, EAGER));
    assert!(first.unwrap() + second.unwrap() >= 8);
    bench.assert_holds(&records).await;
}

async fn a_file_that_is_gone_keeps_no_other_date_from_compaction(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    many_small_files(&bench, &mut writer, 8).await;
    let later: Vec<_> = some(80, at(2, 8)).split_off(40);
    for (number, part) in later.chunks(5).enumerate() {
        bench.publish(part).await;
        bench.read_all(&mut writer, &format!("later-{number}")).await;
        writer.flush().await.unwrap();
    }
    let view = table.view();
    let files_of = |view: &View| view.iter().map(|(_, files)| files.len()).collect::<Vec<_>>();
    assert_eq!(files_of(&view), [8, 8]);
    let gone = view.files().next().unwrap();
    table.store().delete(&Path::parse(&gone.path).unwrap()).await.unwrap();
    let error = compact(&table, &cache, CompactionLimits { target_rows: 1_000, ..EAGER }).await.unwrap_err();
    assert_eq!(files_of(&table.view()), [8, 1], "{error}");
}

async fn compacted_files_are_ordered_by_delivery(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    many_small_files(&bench, &mut writer, 8).await;
    let limits = CompactionLimits { target_rows: 1_000, ..EAGER };
    compact(&table, &cache, limits).await.unwrap();
    assert_eq!(table.view().files().count(), 1);
    let keys = keys_in(&table, &table.view()).await;
    assert!(keys.is_sorted());
}

async fn a_compaction_commits_no_file_that_a_vacuum_may_have_taken(bench: Bench) {
    let mut writer = bench.writer().await;
    let records = many_small_files(&bench, &mut writer, 8).await;
    let (location, store) = losing(&bench);
    let (table, cache) = (bench.table_at(&location).await, KeyCache::default());
    let limits = CompactionLimits { target_rows: 1_000, ..EAGER };
    // It sleeps with its file written, which another replica takes for an orphan.
    let (other, clock) = (bench.table().await, bench.clock.clone());
    store.after_next_write("/part-", async move {
        clock.advance(chrono::Duration::minutes(11));
        assert_eq!(vacuum(&other, Duration::from_secs(600)).await.unwrap(), 1);
    });
    assert_eq!(compact(&table, &cache, limits).await.unwrap(), 0);
    bench.assert_holds(&records).await;
    // It sleeps for so long that somebody may be about to.
    let clock = bench.clock.clone();
    store.after_next_write("/part-", async move { clock.advance(chrono::Duration::minutes(31)) });
    assert_eq!(compact(&table, &cache, limits).await.unwrap(), 0);
    bench.assert_holds(&records).await;
    assert_eq!(compact(&table, &cache, limits).await.unwrap(), 8, "anew, with a fresh file");
    bench.assert_holds(&records).await;
}

async fn a_file_that_is_gone_keeps_no_checkpoint_from_being_made(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    many_small_files(&bench, &mut writer, 55).await;
    for file in table.view().files() {
        table.store().delete(&Path::parse(&file.path).unwrap()).await.unwrap();
    }
    crate::maintain_once(&table, &cache, false).await;
    assert_eq!(table.view().files().count(), 55, "none could be compacted");
    table.store().head(&Path::from("_delta_log/_last_checkpoint")).await.unwrap();
}

async fn a_checkpoint_carries_files_and_offsets(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    let records = many_small_files(&bench, &mut writer, 55).await;
    table.checkpoint().await.unwrap();
    table.store().head(&Path::from("_delta_log/_last_checkpoint")).await.unwrap();
    let reopened = bench.table().await;
    let paths = |view: &View| view.files().map(|file| file.path.clone()).collect::<HashSet<_>>();
    assert_eq!(paths(&reopened.view()), paths(&table.view()));
    for file in reopened.view().files() {
        assert!(file.stats.rows == 5 && file.stats.customers.0 == "alice", "statistics survive: {file:?}");
    }
    let mut restarted = bench.writer().await;
    bench.read_all(&mut restarted, "restarted").await;
    assert_eq!(restarted.rows(), 0, "offsets survive");
    bench.assert_holds(&records).await;
}

async fn an_offset_is_found_after_the_entries_that_a_replica_began_with_were_cleaned_up(bench: Bench) {
    let (began, other) = (bench.table().await, bench.table().await);
    let records = many_small_files(&bench, &mut Writer::new(other.clone(), Arc::default()), 55).await;
    other.checkpoint().await.unwrap();
    // Hours, in which it looks again and again and is never so late that it reads the table anew.
    for _ in 0..20 {
        bench.clock.advance(chrono::Duration::minutes(20));
        drop(began.lock().await.unwrap());
    }
    let newest = other.view().version;
    let entries: Vec<_> = other.store().list(Some(&Path::from("_delta_log"))).try_collect().await.unwrap();
    for entry in entries {
        let version = entry.location.filename().and_then(|name| name.strip_suffix(".json")?.parse().ok());
        if version.is_some_and(|version: Version| version < newest) {
            other.store().delete(&entry.location).await.unwrap();
        }
    }
    let mut writer = Writer::<DeliveryRow>::new(began, Arc::default());
    let place = Place { topic: Topic::Delivery.name().into(), partition: 0 };
    assert_eq!(writer.align(place, "a topic that was made anew").await.unwrap(), 0);
    bench.assert_holds(&records).await;
}

async fn a_vacuum_deletes_replaced_files_and_orphans_after_the_retention_only(bench: Bench) {
    let (table, cache) = (bench.table().await, Arc::new(KeyCache::default()));
    let mut writer = Writer::new(table.clone(), cache.clone());
    let mut records = many_small_files(&bench, &mut writer, 8).await;
    compact(&table, &cache, CompactionLimits { target_rows: 1_000, ..EAGER }).await.unwrap();
    let late = some(3, at(1, 12));
    bench.publish(&late).await;
    let mut paused = bench.writer().await;
    bench.read_all(&mut paused, "paused").await;
    let paused_table = bench.table().await;
    let mut held_up = paused_table.lock().await.unwrap();
    let prepared = paused.prepare(&mut held_up).await.unwrap();

    // Short, so that the paused writer is not so late that it looks again of its own accord.
    let retention = Duration::from_secs(600);
    assert_eq!(vacuum(&table, retention).await.unwrap(), 0);
    bench.clock.advance(chrono::Duration::minutes(11));
    assert_eq!(vacuum(&table, retention).await.unwrap(), 9, "eight replaced files and an orphan");
    bench.assert_holds(&records).await;

    // The orphan's writer wakes up: its files are gone, so it must not commit them.
    assert!(paused.finish(&mut held_up, prepared).await.is_err());
    drop(held_up);
    assert_eq!(paused.flush().await.unwrap().rows, 3);
    records.extend(late);
    bench.assert_holds(&records).await;
}

async fn a_vacuum_spares_for_its_retention_what_another_replica_replaces_meanwhile(bench: Bench) {
    let mut writer = bench.writer().await;
    let records = many_small_files(&bench, &mut writer, 8).await;
    let (location, store) = losing(&bench);
    let (table, other) = (bench.table_at(&location).await, bench.table().await);
    bench.clock.advance(chrono::Duration::minutes(11));
    // The vacuum asks for the commit after those that it knows: there it is.
    store.before_next_read(format!("{:020}.json", table.view().version + 1), async move {
        let limits = CompactionLimits { target_rows: 1_000, ..EAGER };
        assert_eq!(compact(&other, &KeyCache::default(), limits).await.unwrap(), 8);
    });
    let retention = Duration::from_secs(600);
    assert_eq!(vacuum(&table, retention).await.unwrap(), 0, "they are old, but they were replaced just now");
    assert_eq!(table.view().files().count(), 1, "they were replaced");
    bench.clock.advance(chrono::Duration::minutes(11));
    assert_eq!(vacuum(&table, retention).await.unwrap(), 8);
    bench.assert_holds(&records).await;
}

async fn a_replica_that_slept_for_long_reads_the_table_anew(bench: Bench) {
    let sleeper = bench.table().await;
    let mut writer = bench.writer().await;
    many_small_files(&bench, &mut writer, 3).await;
    bench.clock.advance(chrono::Duration::hours(2));
    assert_eq!(sleeper.lock().await.unwrap().view().files().count(), 3);
    assert_eq!(sleeper.view().version, 3);
}
