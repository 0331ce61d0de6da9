//! Probing, indexing, cutting, decoding.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod bad_inputs;
mod clips;
mod damage;
mod exactness;
mod orientation;
mod pixels;
mod stored_index;
