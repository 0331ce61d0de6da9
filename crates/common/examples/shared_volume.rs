//! Tries a shared volume as the services use it, on two machines that have it mounted:
//!
//!     machine A:  shared_volume read  /mnt 0.0.0.0:7000
//!     machine B:  shared_volume write /mnt A:7000 1000
//!
//! B tells A a name that A looks for in vain (which a file system may remember), publishes a file of that name and tells A its
//! size and checksum; A has to find it whole at once. What was late, short or missing is counted. `shared_volume fill /mnt`
//! writes until the volume is full, and shows what a stage would say.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use common::files::{Draft, FileRecord, JobFolder, Volume, trouble};
use common::job::JobId;
use common::segment::Token;

/// The largest file, and how long a reader waits for a file, as in a stage.
const LARGEST: usize = 2 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["read", folder, address] => read(folder, address),
        ["write", folder, address, rounds] => write(folder, address, rounds.parse()?),
        ["fill", folder] => fill(folder),
        _ => bail!("say: read FOLDER ADDRESS, write FOLDER ADDRESS ROUNDS, or fill FOLDER"),
    }
}

/// The one job whose folder both use.
fn job(folder: &str) -> Result<JobFolder> {
    let job = Volume::new(folder.into()).job(JobId::from([0xee; 12]));
    job.create().with_context(|| format!("{folder} cannot be used"))?;
    Ok(job)
}

fn publish(job: &JobFolder, number: u32, token: &Token) -> std::io::Result<FileRecord> {
    let path = job.pack(number, token);
    let size = rand::random::<u32>() as usize % LARGEST + 1;
    let draft = Draft::new(&path);
    let mut file = draft.create()?;
    let piece: Vec<u8> = (0..size).map(|at| (at % 251) as u8 ^ number as u8).collect();
    file.write_all(&piece)?;
    drop(file);
    draft.publish()?;
    job.record(&path)
}

fn write(folder: &str, address: &str, rounds: u32) -> Result<()> {
    let job = job(folder)?;
    let mut reader = TcpStream::connect(address).context("the reader does not listen")?;
    reader.set_nodelay(true)?;
    let mut answers = BufReader::new(reader.try_clone()?).lines();
    let mut ask = |line: String| -> Result<String> {
        writeln!(reader, "{line}")?;
        Ok(answers.next().context("the reader has gone")??)
    };
    let (mut waits, mut bytes, began) = (Vec::new(), 0, Instant::now());
    for number in 0..rounds {
        let token = Token::random();
        ask(format!("look {}", job.pack(number, &token).file_name().unwrap_or_default().display()))?;
        let record = publish(&job, number, &token)?;
        bytes += record.size;
        waits.push(ask(format!("read {}", serde_json::to_string(&record)?))?.parse::<u64>()?);
        fs::remove_file(job.named(&record))?;
    }
    let late: Vec<u64> = waits.into_iter().filter(|wait| *wait > 0).collect();
    println!(
        "{rounds} files, {} MB, {:.0} s; not whole at the first look: {} (longest wait {} ms)",
        bytes / 1_000_000,
        began.elapsed().as_secs_f64(),
        late.len(),
        late.iter().max().copied().unwrap_or_default()
    );
    Ok(())
}

fn read(folder: &str, address: &str) -> Result<()> {
    let job = job(folder)?;
    let (mut writer, _) = TcpListener::bind(address)?.accept()?;
    writer.set_nodelay(true)?;
    for line in BufReader::new(writer.try_clone()?).lines() {
        let line = line?;
        if let Some(name) = line.strip_prefix("look ") {
            let there = job.subfolder("pack").join(name).exists();
            anyhow::ensure!(!there, "{name} is there before it is written");
            writeln!(writer, "no")?;
        } else if let Some(record) = line.strip_prefix("read ") {
            let record: FileRecord = serde_json::from_str(record)?;
            let began = Instant::now();
            let mut wait = 0;
            while let Err(error) = job.verify(&record) {
                println!("{}: {error}", record.name);
                anyhow::ensure!(began.elapsed() < PATIENCE, "{} is missing for good", record.name);
                std::thread::sleep(Duration::from_millis(20));
                wait = u64::try_from(began.elapsed().as_millis())?.max(1);
            }
            writeln!(writer, "{wait}")?;
        }
    }
    println!("all read");
    Ok(())
}

fn fill(folder: &str) -> Result<()> {
    let (job, token) = (job(folder)?, Token::random());
    let mut written = Vec::new();
    let error = loop {
        match publish(&job, u32::try_from(written.len())?, &token) {
            Ok(record) => written.push(record),
            Err(error) => break error,
        }
    };
    println!("after {} files: {}", written.len(), trouble("write the pack", &error));
    let whole = written.iter().filter(|record| job.verify(record).is_ok()).count();
    let left = fs::read_dir(job.subfolder("pack"))?.count();
    println!("of those published, {whole} are whole; files in the folder: {left}");
    for record in written {
        fs::remove_file(job.named(&record))?;
    }
    Ok(())
}
