//! What queries cost, as the server itself explains it.

use super::*;
use crate::job::{ModelKey, Precision};
use crate::store::contract::{film, new_job, step};

async fn explained(store: &MongoStore, command: Document) -> Document {
    let explain = doc! { "explain": command, "verbosity": "executionStats" };
    store.database.run_command(explain).await.unwrap()
}

/// The names of the steps of the plan that won, and all other text in it.
fn steps(plan: &Bson, found: &mut Vec<String>) {
    match plan {
        Bson::Document(document) => {
            for (key, value) in document {
                match (key.as_str(), value) {
                    ("stage", Bson::String(step)) => found.push(step.clone()),
                    // Not the server's words, but ours.
                    (
                        "filter" | "indexBounds" | "keyPattern" | "command" | "rejectedPlans" | "parsedQuery",
                        _,
                    ) => {}
                    _ => steps(value, found),
                }
            }
        }
        Bson::Array(values) => values.iter().for_each(|value| steps(value, found)),
        _ => {}
    }
}

fn stat(document: &Document, name: &str) -> i64 {
    fn find(value: &Bson, name: &str) -> Option<i64> {
        match value {
            Bson::Document(document) => match document.get(name) {
                Some(Bson::Int32(n)) => Some(i64::from(*n)),
                Some(Bson::Int64(n)) => Some(*n),
                _ => document.values().find_map(|value| find(value, name)),
            },
            Bson::Array(values) => values.iter().find_map(|value| find(value, name)),
            _ => None,
        }
    }
    find(&Bson::Document(document.clone()), name).unwrap_or_else(|| panic!("no {name} in {document}"))
}

fn request(stage: Stage, model: Option<ModelKey>) -> ClaimRequest {
    ClaimRequest {
        stage,
        worker: "w".to_owned(),
        token: Token::random(),
        lease: LEASE,
        model,
        pack_budget: None,
    }
}

fn claim(store: &MongoStore, request: &ClaimRequest) -> Document {
    let (sort, hint) = work::order(request);
    let collection = match request.stage {
        Stage::Index | Stage::Assemble => schema::REQUESTS,
        Stage::Decode | Stage::Detect | Stage::Render => schema::SEGMENTS,
    };
    doc! {
        "findAndModify": collection,
        "query": work::claimable(request, &store.now()),
        "sort": sort,
        "hint": hint,
        "update": store.take(request),
        "new": true,
    }
}

fn model() -> ModelKey {
    ModelKey { digest: "abc".to_owned(), precision: Precision::Fp32 }
}

#[tokio::test]
async fn no_claim_scans_or_sorts() {
    let house = OneDatabase::new().await;
    let store = &house.store;
    film(&**store, 5).await;
    store.create_job(new_job()).await.unwrap();
    let token = doc! { "tokens": Token::random().as_str() };
    let mut queries = vec![
        doc! { "aggregate": schema::SEGMENTS, "pipeline": work::packs().to_vec(), "cursor": {}, "hint": schema::PACKS },
        doc! { "find": schema::SEGMENTS, "filter": token.clone() },
        doc! { "find": schema::REQUESTS, "filter": token },
        doc! { "find": schema::REQUESTS, "filter": { "unsettled": true }, "sort": { "_id": 1 }, "projection": { "_id": 1 } },
    ];
    for stage in Stage::ALL {
        for model in [None, Some(model())] {
            queries.push(claim(store, &request(stage, model)));
        }
    }
    for query in queries {
        let plan = explained(store, query.clone()).await;
        let mut found = Vec::new();
        steps(&Bson::Document(plan), &mut found);
        assert!(found.iter().any(|step| step == "IXSCAN"), "{found:?} for {query}");
        assert!(!found.iter().any(|step| step == "COLLSCAN" || step == "SORT"), "{found:?} for {query}");
    }
}

#[tokio::test]
async fn a_claim_costs_the_same_in_a_full_collection() {
    let house = OneDatabase::new().await;
    let store = &house.store;
    film(&**store, 5).await;
    let cost = async || {
        let plan = explained(store, claim(store, &request(Stage::Decode, None))).await;
        (stat(&plan, "totalKeysExamined"), stat(&plan, "totalDocsExamined"))
    };
    let few = cost().await;
    // Waiting ones, done ones, and those of jobs that are over.
    film(&**store, 600).await;
    for _ in 0..20 {
        for stage in [Stage::Decode, Stage::Detect, Stage::Render] {
            step(&**store, stage).await;
        }
    }
    let cancelled = film(&**store, 600).await;
    store.cancel(cancelled).await.unwrap();
    assert_eq!(cost().await, few, "keys and documents looked at");
    // What others hold is skipped in the index, without looking at the documents.
    for _ in 0..20 {
        store.claim(&request(Stage::Decode, None)).await.unwrap().unwrap();
    }
    let (keys, documents) = cost().await;
    assert!(documents == few.1 && keys <= few.0 + 2 * 20 + 1, "{keys} keys, {documents} documents");
}
