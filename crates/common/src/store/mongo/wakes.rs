//! Hints from process to process: a small capped collection, whose readers wait in the server until something is
//! put into it. It works on a standalone server, where change streams don't.

use std::sync::Arc;
use std::time::Duration;

use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Bson, Document, doc};
use mongodb::error::ErrorKind;
use mongodb::options::{Acknowledgment, CollectionOptions, CursorType, WriteConcern};
use mongodb::{Collection, Cursor};
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::{ANSWER, MongoStore, StoreError, answer, unanswered, within};
use crate::segment::Stage;
use crate::worker::Hints;

const WAKES: &str = "wakes";
/// Bytes of hints that are kept: some hundred, for readers that are behind.
const SIZE: u64 = 64 * 1024;
/// At most one hint a stage goes out in this time, with all that was said in it.
const TOGETHER: Duration = Duration::from_millis(20);
/// How long the server holds a reader's question open before it answers that there is nothing.
const AWAIT: Duration = Duration::from_secs(10);
/// How long a reader that hears nothing trusts that its server is still there, before it begins anew.
const QUIET: Duration = Duration::from_secs(60);
/// The pause after a failure.
const PAUSE: Duration = Duration::from_secs(1);

impl MongoStore {
    /// Carries the hints given in this process to the others on this database, and theirs to this, until
    /// `shutdown`. A hint that is lost costs a poll's pause, so that nothing is repeated: after an outage this
    /// goes on with what is said then.
    pub async fn bridge(&self, hints: Arc<Hints>, shutdown: CancellationToken) {
        let me = ObjectId::new();
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = self.say(&hints, me) => {}
            () = self.hear(&hints, me) => {}
        }
    }

    fn wakes(&self) -> Collection<Document> {
        // Nobody waits for a hint to be on disk.
        let quick = WriteConcern::builder().w(Acknowledgment::Nodes(1)).build();
        let options = CollectionOptions::builder().write_concern(quick).build();
        self.database.collection_with_options(WAKES, options)
    }

    async fn say(&self, hints: &Hints, me: ObjectId) {
        let wakes = self.wakes();
        let mut given = hints.given();
        let mut said = *given.borrow_and_update();
        // What is put into a collection that is not there makes one that nobody can wait at.
        while let Err(error) = self.make_wakes().await {
            debug!("no hints are given: {error}");
            tokio::time::sleep(PAUSE).await;
        }
        while given.changed().await.is_ok() {
            let now = *given.borrow_and_update();
            let stages =
                Stage::ALL.into_iter().zip(now.iter().zip(said)).filter(|(_, (now, said))| **now != *said);
            let stages: Vec<_> = stages.map(|(stage, _)| stage.as_str()).collect();
            said = now;
            if let Err(error) = answer(wakes.insert_one(doc! { "from": me, "stages": stages })).await {
                debug!("a hint was lost: {error}");
                tokio::time::sleep(PAUSE).await;
            }
            tokio::time::sleep(TOGETHER).await;
        }
    }

    async fn hear(&self, hints: &Hints, me: ObjectId) {
        let mut after = None;
        loop {
            if let Err(error) = self.listen(hints, me, &mut after).await {
                debug!("no hints are heard: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Listens until nothing was heard for long, or until the cursor ends, which it does when the primary goes.
    /// `after` is the last hint known.
    async fn listen(&self, hints: &Hints, me: ObjectId, after: &mut Option<Bson>) -> Result<(), StoreError> {
        self.make_wakes().await?;
        let wakes = self.wakes();
        let known = answer(wakes.find_one(doc! { "_id": after.clone() })).await?.is_some();
        if !known {
            // From the last one that is there: the older ones were for those who listened then.
            let last = answer(wakes.find_one(doc! {}).sort(doc! { "$natural": -1 })).await?;
            *after = match last.and_then(|last| last.get("_id").cloned()) {
                Some(id) => Some(id),
                // A cursor on an empty collection is dead at once: there has to be one to begin after.
                None => Some(answer(wakes.insert_one(doc! { "from": me, "stages": [] })).await?.inserted_id),
            };
        }
        let mut cursor: Cursor<Document> =
            answer(wakes.find(doc! {}).cursor_type(CursorType::TailableAwait).max_await_time(AWAIT)).await?;
        // They lie in the order of their coming, not of their ids.
        let mut old = true;
        loop {
            let Ok(more) = tokio::time::timeout(QUIET, cursor.advance()).await else { return Ok(()) };
            if !more.map_err(|error| unanswered(&error))? {
                return Err(StoreError::Unavailable("the cursor has come to its end".to_owned()));
            }
            let wake = answer(std::future::ready(cursor.deserialize_current())).await?;
            let id = wake.get("_id").cloned();
            if old {
                old = id != *after;
                continue;
            }
            *after = id;
            if wake.get_object_id("from").is_ok_and(|from| from == me) {
                continue;
            }
            let Ok(stages) = wake.get_array("stages") else { continue };
            for stage in Stage::ALL {
                if stages.iter().any(|name| name.as_str() == Some(stage.as_str())) {
                    hints.hear(stage);
                }
            }
        }
    }

    async fn make_wakes(&self) -> Result<(), StoreError> {
        let make = || self.database.create_collection(WAKES).capped(true).size(SIZE);
        match within(ANSWER, make()).await? {
            Err(error) if !is_there(&error) => return Err(unanswered(&error)),
            Err(_) => {}
            Ok(()) => return Ok(()),
        }
        let filter = doc! { "name": WAKES, "options.capped": { "$ne": true } };
        let mut ordinary = answer(self.database.list_collections().filter(filter)).await?;
        if !answer(ordinary.advance()).await? {
            return Ok(());
        }
        // Somebody put a hint there after it was dropped. Nothing in it is worth keeping.
        answer(self.wakes().drop()).await?;
        answer(make()).await
    }
}

fn is_there(error: &mongodb::error::Error) -> bool {
    const NAMESPACE_EXISTS: i32 = 48;
    matches!(&*error.kind, ErrorKind::Command(error) if error.code == NAMESPACE_EXISTS)
}
