//! A real store that is cut off in the middle of requests, and for a while altogether: the writer goes on by itself.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use contracts::{Clock, SystemClock, events::Topic};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;

use super::{Bench, exactly_once::until_rows, some};
use crate::{
    domain::DeliveryRow,
    events::{FlushLimits, Subscriber},
    fixtures::at,
    lake::{LakeError, Location, Table, TableKind, Writer},
};

on_each_store!(@on_s3 S3: a_writer_outlives_lost_answers_and_an_outage a_store_that_is_away_is_told_soon);
on_each_store!(@on_azure Azure: a_writer_outlives_lost_answers_and_an_outage a_store_that_is_away_is_told_soon);

/// What a network may do to connections.
#[derive(Default)]
struct Weather {
    /// Answers that the server gives and the client does not get, from now on.
    losing: AtomicU32,
    /// Every connection ends at once.
    away: AtomicBool,
}

impl Weather {
    fn loses_this(&self) -> bool {
        let less = |left: u32| left.checked_sub(1);
        self.losing.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok()
    }
}

/// Carries one connection until an end closes it or the weather does.
async fn carry(mut client: TcpStream, to: u16, weather: Arc<Weather>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(("127.0.0.1", to)).await?;
    let (mut request, mut answer) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        tokio::select! {
            read = client.read(&mut request) => match read? {
                0 => return Ok(()),
                read if !weather.away.load(Ordering::SeqCst) => server.write_all(&request[..read]).await?,
                _ => return Ok(()),
            },
            read = server.read(&mut answer) => match read? {
                0 => return Ok(()),
                _ if weather.loses_this() => return Ok(()),
                read => client.write_all(&answer[..read]).await?,
            },
        }
    }
}

async fn proxy(listener: TcpListener, to: u16, weather: Arc<Weather>) {
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        if !weather.away.load(Ordering::SeqCst) {
            connections.spawn(carry(client, to, weather.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
}

/// The bench's lake by way of a proxy, which runs as long as the tasks.
async fn by_proxy(bench: &Bench) -> (Location, Arc<Weather>, JoinSet<()>) {
    let (weather, mut tasks) = (Arc::new(Weather::default()), JoinSet::new());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (location, to) = bench.location().by_port(listener.local_addr().unwrap().port());
    tasks.spawn(proxy(listener, to, weather.clone()));
    (location, weather, tasks)
}

async fn a_writer_outlives_lost_answers_and_an_outage(bench: Bench) {
    let (location, weather, mut tasks) = by_proxy(&bench).await;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let table = Arc::new(Table::open(TableKind::Deliveries, &location, clock.clone()).await.unwrap());
    let shutdown = CancellationToken::new();
    let writing = Subscriber::<DeliveryRow> {
        log: bench.log.clone(),
        clock,
        topic: Topic::Delivery,
        group: "history",
        limits: FlushLimits { interval: Duration::from_millis(20), rows: 50 },
        writer: Writer::new(table, Arc::default()),
        shutdown: shutdown.clone(),
    };
    tasks.spawn(writing.run());
    let records = some(300, at(1, 8));
    for (number, part) in records.chunks(30).enumerate() {
        weather.losing.store(u32::try_from(number % 3).unwrap(), Ordering::SeqCst);
        weather.away.store(number == 5, Ordering::SeqCst);
        bench.publish(part).await;
        SystemClock.sleep(Duration::from_millis(300)).await;
    }
    until_rows(&bench, 300).await;
    shutdown.cancel();
    tasks.abort_all();
    while tasks.join_next().await.is_some() {}
    bench.assert_holds(&records).await;
}

async fn a_store_that_is_away_is_told_soon(bench: Bench) {
    let (location, weather, _tasks) = by_proxy(&bench).await;
    let records = some(5, at(1, 8));
    bench.publish(&records).await;
    let mut writer = Writer::<DeliveryRow>::new(bench.table_at(&location).await, Arc::default());
    bench.read_all(&mut writer, "a").await;
    weather.away.store(true, Ordering::SeqCst);
    let asked = Instant::now();
    assert!(matches!(writer.flush().await, Err(LakeError::Unavailable(_))));
    assert!(asked.elapsed() < Duration::from_secs(15), "{:?}", asked.elapsed());
    weather.away.store(false, Ordering::SeqCst);
    assert_eq!(writer.flush().await.unwrap().rows, 5);
    bench.assert_holds(&records).await;
}
