//! What only this implementation promises. The rest is in [`contract`](crate::store::contract).

use async_trait::async_trait;
use testbed::Mongod;

use super::*;
use crate::clock::ManualClock;
use crate::store::Store;
use crate::store::contract::House;

/// A database of its own on the server that the tests of this program share, by a clock that stands still.
struct OneDatabase {
    store: Arc<MongoStore>,
    other: Arc<MongoStore>,
    clock: Arc<ManualClock>,
}

impl OneDatabase {
    async fn new() -> Self {
        let server = Mongod::shared();
        let (uri, database) = (server.uri(), server.fresh_database());
        let clock = Arc::new(ManualClock::new(Stamp(1_700_000_000_000_000)));
        let open = async || Arc::new(MongoStore::with_clock(&uri, &database, clock.clone()).await.unwrap());
        Self { store: open().await, other: open().await, clock: clock.clone() }
    }
}

#[async_trait]
impl House for OneDatabase {
    fn store(&self) -> Arc<dyn Store> {
        self.store.clone()
    }

    /// Another connection, with a memory of its own, as another process has it.
    fn another(&self) -> Arc<dyn Store> {
        self.other.clone()
    }

    async fn pass(&self, time: Duration) {
        self.clock.advance(time);
    }
}

crate::contract_tests!(OneDatabase::new().await);
