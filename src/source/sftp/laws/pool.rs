//! What a pool of connections promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::timeout;

use super::{Asked, DEADLINE, HELLO, ask, collect, connect, content, handle, run, version};
use crate::core::range::ByteRange;
use crate::error::{Error, Kind, Result};
use crate::source::sftp::packet::{Answer, Status};
use crate::source::sftp::pool::{CONNECTIONS, Connect, Pool};
use crate::source::sftp::reading;
use crate::source::sftp::session::Session;

/// Connections to servers that live until they are told to end.
struct Farm {
    pool: Pool,
    connected: Arc<AtomicUsize>,
    end: tokio::sync::watch::Sender<()>,
}

fn farm(fails: bool) -> Farm {
    let connected = Arc::new(AtomicUsize::new(0));
    let (end, ended) = tokio::sync::watch::channel(());
    let count = Arc::clone(&connected);
    let connect: Connect = Box::new(move || {
        count.fetch_add(1, Ordering::SeqCst);
        let mut ended = ended.clone();
        ended.mark_unchanged();
        Box::pin(async move {
            if fails {
                return Err(Error::new(Kind::Denied, "connect"));
            }
            let (greeted, server) = connect(HELLO).await;
            let (session, wire) = greeted?;
            run(wire);
            tokio::spawn(async move {
                let _either = ended.changed().await;
                drop(server);
            });
            Ok(session)
        })
    });
    let pool = Pool::new(connect, Duration::from_millis(10));
    Farm { pool, connected, end }
}

#[tokio::test]
async fn who_asks_while_none_is_open_shares_the_attempt() {
    for fails in [false, true] {
        let farm = farm(fails);
        let asked = (0..20).map(|_| lend(&farm.pool));
        let got = futures_util::future::join_all(asked).await;
        assert!(got.iter().all(|got| got.is_err() == fails));
        assert_eq!(farm.connected.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn busy_connections_get_help_up_to_four_and_idle_help_goes() {
    let farm = farm(false);
    let mut used = Vec::new();
    let has_all = |used: &[Arc<Session>]| {
        let mut all: Vec<_> = used.iter().map(Arc::as_ptr).collect();
        all.sort_unstable();
        all.dedup();
        all.len() == CONNECTIONS
    };
    until(async || {
        used.push(lend(&farm.pool).await.unwrap());
        has_all(&used)
    })
    .await;
    for _ in 0..100 {
        used.push(lend(&farm.pool).await.unwrap());
    }
    assert!(has_all(&used), "never more");
    let all: Vec<_> = used.iter().map(Arc::downgrade).collect();
    used.clear();
    let others = || all.iter().filter(|session| !session.ptr_eq(&all[0]));
    until(async || others().all(|session| session.strong_count() == 0)).await;
    assert!(all[0].upgrade().is_some(), "one is kept");
}

async fn lend(pool: &Pool) -> Result<Arc<Session>> {
    pool.lend(None).await.map(|lent| lent.session)
}

#[tokio::test]
async fn a_file_that_is_read_on_is_not_opened_again_unless_its_name_means_another() {
    let size = 1 << 20;
    let counts = Arc::new([const { AtomicUsize::new(0) }; 3]);
    let server_counts = Arc::clone(&counts);
    let connect: Connect = Box::new(move || {
        let counts = Arc::clone(&server_counts);
        Box::pin(async move {
            let (greeted, mut server) = connect(HELLO).await;
            let (session, wire) = greeted?;
            run(wire);
            tokio::spawn(async move {
                server.packet().await.unwrap();
                let [opened, closed, changed] = &*counts;
                while let Some(asked) = server.next().await {
                    let is_changed = changed.load(Ordering::SeqCst) > 0;
                    let done = Answer::Status(Status { code: 0, message: String::new() });
                    let (id, answer) = match asked {
                        Asked::Open(id) => {
                            opened.fetch_add(1, Ordering::SeqCst);
                            (id, handle())
                        }
                        // What is open stays as it was.
                        Asked::Fstat(id) => (id, version(size, 1)),
                        Asked::Other(id) => (id, version(size, if is_changed { 2 } else { 1 })),
                        Asked::Read { id, offset, len } => {
                            (id, Answer::Data(content(offset, u64::from(len))))
                        }
                        Asked::Close(id, _) => {
                            closed.fetch_add(1, Ordering::SeqCst);
                            (id, done)
                        }
                    };
                    server.say(id, &answer).await;
                }
            });
            Ok(session)
        })
    });
    let pool = Pool::new(connect, Duration::from_secs(3600));
    let [opened, closed, changed] = &*counts;
    let at = |offset| ByteRange::at(offset, 1000);
    for offset in [5, 70_000, 0] {
        let ask = ask(size, at(offset), pool.returns());
        let lent = pool.lend(Some(ask.file.clone())).await.unwrap();
        let (bytes, error) = collect(reading::read(lent, ask).await.unwrap()).await;
        assert!(error.is_none() && bytes == content(offset, 1000));
        // It is kept before anybody asks for it.
        let returns = pool.returns();
        until(async || returns.capacity() == returns.max_capacity()).await;
    }
    assert_eq!((opened.load(Ordering::SeqCst), closed.load(Ordering::SeqCst)), (1, 0));
    changed.store(1, Ordering::SeqCst);
    let ask = ask(size, at(9), pool.returns());
    let lent = pool.lend(Some(ask.file.clone())).await.unwrap();
    assert!(lent.handle.is_some());
    let error = reading::read(lent, ask).await.map(drop).unwrap_err();
    assert_eq!(error.kind(), Kind::Stale);
    until(async || closed.load(Ordering::SeqCst) == 1).await;
}

/// Waits until `holds`, by asking again and again.
async fn until(mut holds: impl AsyncFnMut() -> bool) {
    let waited = async {
        while !holds().await {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(DEADLINE, waited).await.expect("it never holds");
}

#[tokio::test]
async fn a_connection_that_died_is_replaced_when_somebody_asks() {
    let farm = farm(false);
    let first = lend(&farm.pool).await.unwrap();
    farm.end.send(()).unwrap();
    until(async || first.is_over()).await;
    let second = lend(&farm.pool).await.unwrap();
    assert!(!second.is_over() && !Arc::ptr_eq(&first, &second));
    assert_eq!(farm.connected.load(Ordering::SeqCst), 2);
}
