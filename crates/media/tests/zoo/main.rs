//! The zoo: a clip of every kind that people upload, through the code the stages run.
//!
//! `cargo test -p media --test zoo` tries some clips of every kind, and a few hundred damaged ones. With
//! `BOXREEL_LONG=1` it tries every clip and ten thousand damaged ones, and prints the tables.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test without the harness is not known to be one"
)]

use std::process::ExitCode;
use std::sync::{Arc, Mutex};

use libtest_mimic::{Failed, Trial};

mod bits;
mod clips;
mod colour;
mod fence;
mod fuzz;
mod prove;
mod shown;
mod sound;
mod tasks;

/// Rows of a table, filled by trials that run side by side, in the order of the cases.
#[derive(Clone, Default)]
struct Table(Arc<Mutex<Vec<(usize, String)>>>);

impl Table {
    fn add(&self, at: usize, row: String) {
        self.0.lock().unwrap().push((at, row));
    }

    fn print(&self, header: &str) {
        let mut rows = self.0.lock().unwrap();
        rows.sort();
        println!("\n{header}");
        rows.iter().for_each(|(_, row)| println!("{row}"));
    }
}

fn all_right(wrong: &[String]) -> Result<(), Failed> {
    if wrong.is_empty() { Ok(()) } else { Err(Failed::from(wrong.join("\n"))) }
}

/// How far the sound may move (seconds), and a colour change (levels).
const SYNC: f64 = 0.005;
const LEVELS: u8 = 3;

/// Damaged clips that are tried.
fn damaged(long: bool) -> usize {
    let asked = std::env::var("BOXREEL_DAMAGED").ok().and_then(|count| count.parse().ok());
    asked.unwrap_or(if long { 10_000 } else { 216 })
}

fn main() -> ExitCode {
    tasks::registry().serve_if_child();
    let arguments = libtest_mimic::Arguments::from_args();
    let long = std::env::var_os("BOXREEL_LONG").is_some();
    let (clips, sounds, colours) = (Table::default(), Table::default(), Table::default());
    let mut trials = Vec::new();
    for (at, clip) in clips::zoo().into_iter().enumerate().filter(|(_, clip)| long || clip.often) {
        let table = clips.clone();
        trials.push(Trial::test(format!("clip::{}", clip.name), move || {
            let row = prove::prove(&clip);
            table.add(at, row.markdown());
            all_right(&row.wrong)
        }));
    }
    for (at, case) in sound::cases().into_iter().enumerate().filter(|(_, case)| long || case.often) {
        let table = sounds.clone();
        trials.push(Trial::test(format!("sound::{}", case.name), move || {
            let heard = sound::hear(&case);
            table.add(at, heard.markdown());
            if heard.moved().abs() > SYNC { Err(Failed::from(heard.markdown())) } else { Ok(()) }
        }));
    }
    for (at, case) in colour::cases().into_iter().enumerate().filter(|(_, case)| long || case.often) {
        let table = colours.clone();
        trials.push(Trial::test(format!("colour::{}", case.name), move || {
            let seen = colour::see(&case);
            table.add(at, seen.markdown());
            if seen.video.max(seen.jpeg) > LEVELS { Err(Failed::from(seen.markdown())) } else { Ok(()) }
        }));
    }
    for transfer in ["smpte2084", "arib-std-b67"] {
        trials.push(Trial::test(format!("hdr::{transfer}"), move || {
            let greys = colour::hdr(transfer);
            // Up to the knee of the curve greys stay what they were; beyond, there must be room for highlights.
            let right = |&(from, to): &(u8, u8)| match from {
                ..=140 => from.abs_diff(to) <= 8,
                _ => to < from && from - to <= 50,
            };
            let rise = greys.windows(2).all(|w| w[0].1 < w[1].1);
            if rise && greys.iter().all(right) { Ok(()) } else { Err(Failed::from(format!("{greys:?}"))) }
        }));
    }
    let fences: [(_, fn()); 4] = [
        ("no_file_leads_to_another", fence::no_file_leads_to_another),
        ("a_link_to_another_file_is_refused_inside", fence::a_link_to_another_file_is_refused_inside),
        ("a_full_disk_and_a_size_limit_are_said", fence::a_full_disk_and_a_size_limit_are_said),
        ("a_memory_limit_ends_the_child_only", fence::a_memory_limit_ends_the_child_only),
    ];
    for (name, check) in fences {
        trials.push(Trial::test(format!("fence::{name}"), move || {
            check();
            Ok(())
        }));
    }
    trials.push(Trial::test("damaged::index_and_decode", move || {
        let first = std::env::var("BOXREEL_FIRST").ok().and_then(|n| n.parse().ok()).unwrap_or(0);
        let ends = fuzz::run(damaged(long), first);
        println!("{} damaged clips: {:?}, the slowest {:.1?}", damaged(long), ends.counts, ends.slowest);
        all_right(&ends.wrong)
    }));
    let conclusion = libtest_mimic::run(&arguments, trials);
    if long {
        clips.print(prove::HEADER);
        sounds.print(sound::HEADER);
        colours.print(colour::HEADER);
    }
    conclusion.exit_code()
}
