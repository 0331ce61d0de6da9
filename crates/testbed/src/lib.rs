//! What the tests of several crates start: real MongoDB servers ([`Mongod`], [`ReplicaSet`]), free ports, and
//! programs whose clock is wrong ([`set_clock_off`]). For tests only: no crate depends on this but under
//! `[dev-dependencies]`.
//!
//! All calls block, for at most some seconds, and panic where something is wrong: they are a test's first lines.
//! Whatever is started dies with the test's process, however that ends.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc, reason = "for tests")]

mod clock;
pub mod cluster;
mod house;
mod kept;
mod mongod;

pub use clock::set_clock_off;
pub use house::House;
pub use kept::spawn_kept;
pub use mongod::{Mongod, ReplicaSet};

/// A TCP port of the loopback address that nobody listens on at this moment.
#[must_use]
pub fn free_port() -> u16 {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap().port()
}
