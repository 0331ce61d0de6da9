//! The pages as people meet them: real Chromium, real services, real clips.
//!
//! Things are found by what they say to a reader (the words of a link, a button, a label), and every wait is for
//! something that is to be seen. With `BOXREEL_TEST_PICTURES=FOLDER` each page that is checked is also pictured there,
//! in every look.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "these are tests")]

mod browser;
mod clip;
mod failed;
mod plain;
mod resume;
mod services;
mod walk;
