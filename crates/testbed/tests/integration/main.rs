//! The services as they are run: real processes, a real database, one volume.
#![expect(clippy::unwrap_used, reason = "these are tests")]

mod chaos;
mod end_to_end;
mod faults;
