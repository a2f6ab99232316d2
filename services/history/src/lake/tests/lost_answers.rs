//! A network that loses answers, and writers that race: what was written counts once, whatever its writer was told.

use std::sync::Arc;

use futures::{StreamExt, future::join_all};
use object_store::{Error, ObjectStoreExt, PutMode, PutOptions, path::Path};

use super::{
    Bench,
    losing::{LosingStore, Loss},
    some,
};
use crate::{
    domain::DeliveryRow,
    fixtures::at,
    lake::{CompactionLimits, KeyCache, LakeError, Location, Writer, compact, vacuum},
};

on_each_store! {
    of_many_creations_one_wins,
    writers_that_race_commit_each_row_once,
    a_commit_whose_answer_is_lost_counts_once,
    a_commit_that_a_client_repeats_loses_only_to_itself,
    a_commit_that_arrives_late_counts_once_or_not_at_all,
    files_whose_answer_is_lost_are_written_anew_and_vacuumed,
    a_compaction_whose_answer_is_lost_shows_every_row_once,
    a_table_is_made_once_though_answers_are_lost,
    with_every_third_answer_lost_every_row_is_there_once,
}

/// Small, so that every commit of a test is compacted.
const EAGER: CompactionLimits =
    CompactionLimits { max_small_files: 2, small_rows: 1_000, target_rows: 1_000, target_bytes: u64::MAX };
/// The part of a path that tells a commit.
const COMMIT: &str = "_delta_log/";
/// The part of a path that tells a data file.
const FILE: &str = "/part-";

/// The bench's lake as reached by somebody whose network loses answers.
pub(super) fn losing(bench: &Bench) -> (Location, Arc<LosingStore>) {
    let mut made = None;
    let location = bench.location().through(|root| made.insert(Arc::new(LosingStore::new(root))).clone());
    (location, made.unwrap())
}

async fn losing_writer(bench: &Bench) -> (Writer<DeliveryRow>, Arc<LosingStore>) {
    let (location, store) = losing(bench);
    (Writer::new(bench.table_at(&location).await, Arc::default()), store)
}

/// What a reader would still read of the log: nothing, if the table is where it should be.
async fn unread(bench: &Bench) -> usize {
    let mut writer = bench.writer().await;
    bench.read_all(&mut writer, "unread").await;
    writer.rows()
}

async fn of_many_creations_one_wins(bench: Bench) {
    let store = bench.table().await.store();
    for round in 0..5 {
        let path = Path::from(format!("_delta_log/race-{round}"));
        let creations = (0..8).map(|writer: u8| {
            let (store, path) = (store.clone(), path.clone());
            async move {
                let create = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
                (writer, store.put_opts(&path, vec![writer].into(), create).await)
            }
        });
        let (mut winners, mut losers) = (Vec::new(), 0);
        for (writer, result) in join_all(creations).await {
            match result {
                Ok(_) => winners.push(writer),
                Err(Error::AlreadyExists { .. }) => losers += 1,
                Err(error) => panic!("neither won nor lost: {error:?}"),
            }
        }
        assert_eq!((winners.len(), losers), (1, 7));
        assert_eq!(store.get(&path).await.unwrap().bytes().await.unwrap(), winners);
    }
}

async fn writers_that_race_commit_each_row_once(bench: Bench) {
    let mut records = Vec::new();
    let mut writers = [bench.writer().await, bench.writer().await, bench.writer().await];
    for round in 0..5 {
        let new = some(20, at(1, 8 + round));
        bench.publish(&new).await;
        records.extend(new);
        for (number, writer) in writers.iter_mut().enumerate() {
            bench.read_all(writer, &format!("round-{round}-{number}")).await;
        }
        let flushed = join_all(writers.iter_mut().map(Writer::flush)).await;
        let rows: usize = flushed.into_iter().map(|flushed| flushed.unwrap().rows).sum();
        assert_eq!(rows, 20);
    }
    bench.assert_holds(&records).await;
}

async fn a_commit_whose_answer_is_lost_counts_once(bench: Bench) {
    let mut records = some(20, at(1, 8));
    bench.publish(&records).await;
    let (mut writer, store) = losing_writer(&bench).await;
    bench.read_all(&mut writer, "a").await;
    store.lose_next(COMMIT, Loss::Answer);
    assert!(matches!(writer.flush().await, Err(LakeError::Unavailable(_))));
    bench.assert_holds(&records).await;

    let again = writer.flush().await.unwrap();
    assert_eq!((again.rows, again.committed.len()), (0, 0));
    assert!(!again.moved.is_empty(), "it is told where to read on");
    let more = some(5, at(1, 9));
    bench.publish(&more).await;
    bench.read_all(&mut writer, "b").await;
    assert_eq!(writer.flush().await.unwrap().rows, 5);
    records.extend(more);
    bench.assert_holds(&records).await;
}

async fn a_commit_that_a_client_repeats_loses_only_to_itself(bench: Bench) {
    let records = some(20, at(1, 8));
    bench.publish(&records).await;
    let (mut writer, store) = losing_writer(&bench).await;
    bench.read_all(&mut writer, "a").await;
    store.lose_next(COMMIT, Loss::AnswerThenRepeated);
    let flushed = writer.flush().await.unwrap();
    assert_eq!(flushed.rows, 0);
    assert!(!flushed.moved.is_empty(), "it is told where to read on");
    assert_eq!(unread(&bench).await, 0);
    bench.assert_holds(&records).await;
}

async fn a_commit_that_arrives_late_counts_once_or_not_at_all(bench: Bench) {
    let mut records = some(20, at(1, 8));
    bench.publish(&records).await;
    let (location, store) = losing(&bench);
    let table = bench.table_at(&location).await;
    let mut writer = Writer::<DeliveryRow>::new(table.clone(), Arc::default());
    bench.read_all(&mut writer, "a").await;
    // After the writer's next attempt: it has no version to take any more.
    store.lose_next(COMMIT, Loss::Late);
    assert!(matches!(writer.flush().await, Err(LakeError::Unavailable(_))));
    assert_eq!(writer.flush().await.unwrap().rows, 20);
    let late = store.deliver().await;
    assert!(matches!(late[..], [Err(Error::AlreadyExists { .. })]), "{late:?}");
    bench.assert_holds(&records).await;

    // Between the next attempt's look at the table and its commit: it takes that version.
    let more = some(5, at(1, 9));
    bench.publish(&more).await;
    bench.read_all(&mut writer, "b").await;
    store.lose_next(COMMIT, Loss::Late);
    assert!(writer.flush().await.is_err());
    let mut locked = table.lock().await.unwrap();
    let prepared = writer.prepare(&mut locked).await.unwrap();
    store.deliver().await.pop().unwrap().unwrap();
    assert!(matches!(writer.finish(&mut locked, prepared).await, Err(LakeError::Conflict)));
    drop(locked);
    assert_eq!(writer.flush().await.unwrap().rows, 0);
    records.extend(more);
    assert_eq!(unread(&bench).await, 0);
    bench.assert_holds(&records).await;
}

async fn files_whose_answer_is_lost_are_written_anew_and_vacuumed(bench: Bench) {
    let records = some(20, at(1, 8));
    bench.publish(&records).await;
    let (location, store) = losing(&bench);
    let table = bench.table_at(&location).await;
    let mut writer = Writer::<DeliveryRow>::new(table.clone(), Arc::default());
    bench.read_all(&mut writer, "a").await;
    store.lose_next(FILE, Loss::Answer);
    assert!(matches!(writer.flush().await, Err(LakeError::Unavailable(_))));
    bench.assert_holds(&[]).await;
    store.lose_next(FILE, Loss::AnswerThenRepeated);
    assert_eq!(writer.flush().await.unwrap().rows, 20, "a file that is put twice is one file");

    let retention = std::time::Duration::from_secs(600);
    bench.clock.advance(chrono::Duration::minutes(11));
    assert_eq!(vacuum(&table, retention).await.unwrap(), 1);
    let left = table.store().list(Some(&Path::from("date=2025-03-01"))).count().await;
    assert_eq!(left, 1);
    bench.assert_holds(&records).await;
}

async fn a_compaction_whose_answer_is_lost_shows_every_row_once(bench: Bench) {
    let (location, store) = losing(&bench);
    let (table, cache) = (bench.table_at(&location).await, Arc::new(KeyCache::default()));
    let mut writer = Writer::<DeliveryRow>::new(table.clone(), cache.clone());
    let mut records = Vec::new();
    for (round, loss) in (0..).zip([Loss::Answer, Loss::AnswerThenRepeated, Loss::Late]) {
        for part in 0..3 {
            let new = some(5, at(1 + round, 8 + part));
            bench.publish(&new).await;
            bench.read_all(&mut writer, &format!("{round}-{part}")).await;
            writer.flush().await.unwrap();
            records.extend(new);
        }
        store.lose_next(COMMIT, loss);
        let told = compact(&table, &cache, EAGER).await;
        assert_eq!(told.is_err(), loss != Loss::AnswerThenRepeated, "{loss:?}: {told:?}");
        bench.assert_holds(&records).await;
        compact(&table, &cache, EAGER).await.unwrap();
        assert!(store.deliver().await.iter().all(Result::is_err));
        assert_eq!(table.lock().await.unwrap().view().of_date(at(1 + round, 0).date_naive()).len(), 1);
        bench.assert_holds(&records).await;
    }
    // What was compacted is still recognised.
    bench.publish(&records).await;
    bench.read_all(&mut writer, "again").await;
    assert_eq!(writer.flush().await.unwrap().rows, 0);
}

async fn a_table_is_made_once_though_answers_are_lost(bench: Bench) {
    for loss in [Loss::Answer, Loss::AnswerThenRepeated] {
        let (location, store) = losing(&bench);
        store.lose_next(COMMIT, loss);
        let table = bench.table_at(&location).await;
        assert_eq!(table.view().version, 0);
        super::remove(&location).await;
    }
}

async fn with_every_third_answer_lost_every_row_is_there_once(bench: Bench) {
    let (location, store) = losing(&bench);
    let (table, cache) = (bench.table_at(&location).await, Arc::new(KeyCache::default()));
    let mut writer = Writer::<DeliveryRow>::new(table.clone(), cache.clone());
    let mut writes = 0_u32;
    store.lose(move |_| {
        writes += 1;
        match writes % 6 {
            0 => Some(Loss::Answer),
            3 => Some(Loss::AnswerThenRepeated),
            _ => None,
        }
    });
    let mut records = Vec::new();
    for round in 0..12 {
        let new = some(10, at(1, round));
        bench.publish(&new).await;
        bench.publish(&new[..3]).await;
        records.extend(new);
        // What fails is tried again, from what the table says then.
        for attempt in 0..10 {
            bench.read_all(&mut writer, &format!("{round}-{attempt}")).await;
            let flushed = writer.flush().await.is_ok();
            let compacted = compact(&table, &cache, EAGER).await.is_ok();
            if flushed && compacted {
                break;
            }
        }
    }
    bench.assert_holds(&records).await;
    assert_eq!(unread(&bench).await, 0);
}
