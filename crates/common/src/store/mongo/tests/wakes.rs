//! Hints that reach other processes.

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::worker::Hints;

const SOON: Duration = Duration::from_secs(60);

async fn said(house: &OneDatabase) -> u64 {
    let wakes = house.store.database.collection::<Document>("wakes");
    wakes.count_documents(doc! { "stages": { "$ne": [] } }).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hint_reaches_the_other_processes_and_stays_there() {
    reaches_and_stays(OneDatabase::new().await).await;
}

/// As it is left when the collection is dropped while a process that gives hints is running.
#[tokio::test(flavor = "multi_thread")]
async fn hints_are_carried_where_their_collection_was_an_ordinary_one() {
    let house = OneDatabase::new().await;
    let wakes = house.store.database.collection::<Document>("wakes");
    wakes.insert_one(doc! { "from": mongodb::bson::oid::ObjectId::new(), "stages": [] }).await.unwrap();
    reaches_and_stays(house).await;
}

async fn reaches_and_stays(house: OneDatabase) {
    let (here, there) = (Hints::new(), Hints::new());
    let shutdown = CancellationToken::new();
    let mut bridges = tokio::task::JoinSet::new();
    for (store, hints) in [(&house.store, &here), (&house.other, &there)] {
        let (store, hints, shutdown) = (store.clone(), hints.clone(), shutdown.clone());
        bridges.spawn(async move { store.bridge(hints, shutdown).await });
    }
    // Until both listen, what is said may be lost: that is what polling is for.
    for (from, to) in [(&here, &there), (&there, &here)] {
        let mut woken = to.listen(Stage::Index);
        let heard = async {
            loop {
                from.notify(Stage::Index);
                if timeout(Duration::from_millis(200), woken.changed()).await.is_ok() {
                    break;
                }
            }
        };
        timeout(SOON, heard).await.expect("the bridge works");
    }
    let (before, heard) = (said(&house).await, here.heard());
    let mut woken = there.listen(Stage::Render);
    here.notify(Stage::Render);
    timeout(SOON, woken.changed()).await.expect("it is heard").unwrap();
    let mut woken = here.listen(Stage::Detect);
    there.notify(Stage::Detect);
    timeout(SOON, woken.changed()).await.expect("and the other way").unwrap();
    assert_eq!(said(&house).await, before + 2, "what was heard is not said again");
    assert_eq!(here.heard(), heard + 1, "nobody hears himself");
    shutdown.cancel();
    while let Some(ended) = bridges.join_next().await {
        ended.unwrap();
    }
}
