//! Collections and their indexes.

use mongodb::IndexModel;
use mongodb::bson::{Document, doc};
use mongodb::options::IndexOptions;

use super::{MongoStore, StoreError, long_answer};

pub(super) const REQUESTS: &str = "requests";
pub(super) const SEGMENTS: &str = "segments";
pub(super) const TURNS: &str = "turns";
pub(super) const WORKERS: &str = "workers";
pub(super) const TIES: &str = "ties";
pub(super) const DUTIES: &str = "duties";
pub(super) const UPLOADS: &str = "uploads";

/// The index that claims of any model go by, in both collections.
pub(super) const TURN: &str = "turn";
/// The index that claims of one model go by.
pub(super) const MODEL_TURN: &str = "model_turn";
/// The unique index of tokens.
pub(super) const TOKENS: &str = "tokens";
/// The index that tells what packs wait.
pub(super) const PACKS: &str = "packs";

fn index(name: &str, keys: Document) -> IndexModel {
    IndexModel::builder().keys(keys).options(IndexOptions::builder().name(name.to_owned()).build()).build()
}

/// An index of those documents only that have `field`: what is over for good costs nothing.
fn partial(name: &str, field: &str, unique: bool, keys: Document) -> IndexModel {
    let options = IndexOptions::builder()
        .name(name.to_owned())
        .unique(unique)
        .partial_filter_expression(doc! { field: { "$exists": true } })
        .build();
    IndexModel::builder().keys(keys).options(options).build()
}

/// Makes the indexes that are missing.
pub(super) async fn prepare(store: &MongoStore) -> Result<(), StoreError> {
    // In the order of a claim's equality, sort and range: the first entry that may be claimed is the answer.
    let turn = doc! { "stage": 1, "priority": 1, "PROCESS_START": 1, "_id": 1, "ready": 1 };
    let requests = [
        partial(TURN, "stage", false, turn),
        partial(TOKENS, "tokens", true, doc! { "tokens": 1 }),
        partial("unsettled", "unsettled", false, doc! { "unsettled": 1, "_id": 1 }),
        partial("ended", "PROCESS_END", false, doc! { "PROCESS_END": 1 }),
        partial("callback", "callback_due", false, doc! { "callback_due": 1 }),
        index("status", doc! { "STATUS": 1, "_id": -1 }),
    ];
    let turn = doc! { "stage": 1, "priority": 1, "rank": 1, "job": 1, "number": 1, "ready": 1 };
    let model_turn =
        doc! { "stage": 1, "model": 1, "priority": 1, "rank": 1, "job": 1, "number": 1, "ready": 1 };
    let segments = [
        partial(TURN, "stage", false, turn),
        partial(MODEL_TURN, "stage", false, model_turn),
        partial(TOKENS, "tokens", true, doc! { "tokens": 1 }),
        partial(PACKS, "stage", false, doc! { "stage": 1, "pack_bytes": 1 }),
        index("job", doc! { "job": 1, "cut": 1, "state": 1 }),
    ];
    long_answer(store.requests.create_indexes(requests)).await?;
    long_answer(store.segments.create_indexes(segments)).await?;
    let due = index("due", doc! { "due": 1 });
    long_answer(store.uploads.create_index(due)).await?;
    Ok(())
}
