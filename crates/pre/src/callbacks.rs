//! Word of a job's end to whoever asked for it: a POST to the job's `callback_url`.
//!
//! The body is `{"event": "job.ended", "job": …}` with the job as `GET /v1/jobs/{id}` shows it. With a secret it is
//! signed: `Boxreel-Signature: t=1700000000,v1=…`, where v1 is the HMAC-SHA256, in hexadecimal, of the text of t, a
//! full stop, and the body. `Boxreel-Delivery` is the same for every try of one end, which may arrive more than once.
//! Any answer of 2xx settles it, 410 too; else it is tried again with growing pauses for a day. Redirects are not
//! followed.
//!
//! Whoever creates jobs chooses the address, so unless it is allowed nothing is ever sent to loopback, link-local or
//! private addresses: every address that a name stands for is checked, and the connection goes to just those, so a
//! name that stands for another address a moment later is of no use.

use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use anyhow::Result;
use common::clock::Stamp;
use common::config::Secret;
use common::store::{Job, Tried};
use hmac::{Hmac, KeyInit, Mac};
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use reqwest::{StatusCode, Url, redirect};
use sha2::Sha256;
use tokio::task::JoinSet;
use tracing::{info, warn};

use crate::api;
use crate::app::App;
use crate::duty::Duty;
use crate::metrics::Call;

/// How often due callbacks are looked for.
const INTERVAL: Duration = Duration::from_secs(2);
/// How often somebody who does not hold the duty asks for it.
const STAND_BY: Duration = Duration::from_secs(10);
/// How long the duty is held without a word.
const HELD: Duration = Duration::from_secs(60);
/// Callbacks under way at once.
const BATCH: u32 = 32;
/// How long a receiver may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// The pause after the first failure, doubled with each, and the longest.
const PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(3600);
/// How long after a job's end its callback is given up.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The client that callbacks are sent with.
///
/// # Errors
/// When HTTP cannot be used.
pub(crate) fn client(allow_private: bool) -> Result<reqwest::Client> {
    common::service::crypto();
    Ok(reqwest::Client::builder()
        .timeout(PATIENCE)
        .redirect(redirect::Policy::none())
        // A proxy would resolve names itself, unchecked.
        .no_proxy()
        .dns_resolver(Resolver { allow_private })
        .user_agent(concat!("boxreel/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// Sends due callbacks until [`common::service::Service::stop`]; one process at a time does.
pub(crate) async fn run(app: App) {
    let mut duty = Duty::new(app.service.store.clone(), "callbacks", app.service.worker.clone(), HELD);
    let mut pause = INTERVAL;
    while app.service.stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_some() {
        pause = INTERVAL;
        let sent = match duty.mine().await {
            Ok(true) => send_due(&app).await,
            Ok(false) => {
                pause = STAND_BY;
                continue;
            }
            Err(error) => Err(error.into()),
        };
        if let Err(error) = sent {
            warn!("callbacks wait, the database does not answer: {error:#}");
        }
    }
    duty.release().await;
}

/// Tries all callbacks that are due, once; how many there were.
///
/// # Errors
/// When the store does not answer.
pub async fn send_due(app: &App) -> Result<usize> {
    let due = app.store().due_callbacks(BATCH).await?;
    let count = due.len();
    let mut tries = JoinSet::new();
    for job in due {
        let app = app.clone();
        tries.spawn(async move {
            if let Err(error) = attempt(&app, &job).await {
                warn!(job.id = %job.id, "a callback's outcome is not recorded: {error:#}");
            }
        });
    }
    while tries.join_next().await.is_some() {}
    Ok(count)
}

/// Tries one callback and records how it went.
async fn attempt(app: &App, job: &Job) -> Result<()> {
    let Some(callback) = &job.callback else { return Ok(()) };
    let now = app.store().now().await?;
    let sent = send(app, job, &callback.url, now).await;
    let (tried, outcome) = match sent {
        Sent::Taken => (Tried::Settled, Call::Delivered),
        Sent::Unwanted(why) => {
            info!(job.id = %job.id, "a callback is given up: {why}");
            (Tried::Settled, Call::GivenUp)
        }
        Sent::Failed(why) => {
            let over = job.timeline.process_end.is_some_and(|end| now.since(end) >= GIVEN_UP_AFTER);
            if over {
                warn!(job.id = %job.id, "a callback is given up after a day: {why}");
                (Tried::Settled, Call::GivenUp)
            } else {
                info!(job.id = %job.id, "a callback failed, and is tried again: {why}");
                (Tried::Again(pause(callback.failures)), Call::Retry)
            }
        }
    };
    app.metrics.called(outcome);
    app.store().callback_tried(job.id, job.run, tried).await?;
    Ok(())
}

/// The pause after `failures` earlier failures.
fn pause(failures: u32) -> Duration {
    PAUSE.saturating_mul(1 << failures.min(16)).min(MAX_PAUSE)
}

/// How a try went.
enum Sent {
    Taken,
    Failed(String),
    Unwanted(&'static str),
}

async fn send(app: &App, job: &Job, url: &str, now: Stamp) -> Sent {
    let Ok(url) = Url::parse(url) else { return Sent::Unwanted("its address makes no sense") };
    if !app.settings.allow_private_callbacks && names_private_address(&url) {
        return Sent::Unwanted("its address is not a public one");
    }
    let body = match api::ended(app.store(), job).await {
        Ok(body) => body,
        Err(why) => return Sent::Failed(why),
    };
    let mut request = app
        .callbacks
        .post(url)
        .header("Content-Type", "application/json")
        .header("Boxreel-Delivery", format!("{}-{}", job.id, job.run));
    if let Some(secret) = &app.callback_secret {
        match signature(secret, now.0 / 1_000_000, &body) {
            Some(signature) => request = request.header("Boxreel-Signature", signature),
            None => return Sent::Unwanted("its secret cannot be used"),
        }
    }
    match request.body(body).send().await {
        Ok(answer) if answer.status().is_success() => Sent::Taken,
        Ok(answer) if answer.status() == StatusCode::GONE => Sent::Unwanted("its receiver wants no more"),
        Ok(answer) => Sent::Failed(format!("it is answered with {}", answer.status())),
        Err(error) => Sent::Failed(common::worker::Cause::of(&error).0),
    }
}

/// The value of `Boxreel-Signature`.
fn signature(secret: &Secret, seconds: i64, body: &str) -> Option<String> {
    let mut mac = Hmac::<Sha256>::new_from_slice(secret.reveal().as_bytes()).ok()?;
    mac.update(format!("{seconds}.").as_bytes());
    mac.update(body.as_bytes());
    let mut text = format!("t={seconds},v1=");
    for byte in mac.finalize().into_bytes() {
        let _ = write!(text, "{byte:02x}");
    }
    Some(text)
}

/// Whether a URL names an address (and no name) that is not public.
pub(crate) fn names_private_address(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.parse().is_ok_and(|address: IpAddr| !is_public(address))
}

/// Resolves names to public addresses only.
struct Resolver {
    allow_private: bool,
}

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        let allow_private = self.allow_private;
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if !allow_private && found.iter().any(|address| !is_public(address.ip())) {
                return Err(format!("{} stands for an address that is not public", name.as_str()).into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || address.is_multicast()
        || a == 0
        // Of carriers' own networks, of benchmarks, of protocols; reserved, and broadcast.
        || (a == 100 && (64..128).contains(&b))
        || (a == 198 && (18..20).contains(&b))
        || (a, b, c) == (192, 0, 0)
        || a >= 240;
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let s = address.segments();
    let embedded = |high: u16, low: u16| {
        let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match s {
        // IPv4 in other clothes: mapped, translated (NAT64), tunnelled (6to4).
        [0, 0, 0, 0, 0, 0xffff, high, low] | [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        // Documentation, Teredo and other special ones.
        [0x2001, 0xdb8 | 0..0x200, ..] => false,
        // Global unicast is 2000::/3; all else is loopback, private, link-local, multicast or nothing yet.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_the_internet_are_public() {
        for public in ["93.184.216.34", "8.8.8.8", "100.128.0.1", "2606:2800:220:1::1", "64:ff9b::808:808"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for other in [
            "127.0.0.1",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "198.18.0.1",
            "192.0.0.8",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd12::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:10.0.0.1",
            "::7f00:1",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "2001::1",
        ] {
            assert!(!is_public(other.parse().unwrap()), "{other}");
        }
    }

    #[test]
    fn addresses_are_seen_through_in_any_spelling() {
        for url in ["http://127.0.0.1/x", "http://[::1]:8080/", "http://2130706433/", "http://0x7f.1/"] {
            assert!(names_private_address(&Url::parse(url).unwrap()), "{url}");
        }
        for url in ["http://example.org/", "https://8.8.8.8/"] {
            assert!(!names_private_address(&Url::parse(url).unwrap()), "{url}");
        }
    }

    #[tokio::test]
    async fn a_name_for_a_private_address_is_not_resolved() {
        let resolver = Resolver { allow_private: false };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_err());
        let resolver = Resolver { allow_private: true };
        assert!(resolver.resolve("localhost".parse().unwrap()).await.is_ok());
    }

    #[test]
    fn the_signature_is_the_one_that_others_compute() {
        // printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac secret
        let signed = signature(&Secret::from("secret".to_owned()), 1_700_000_000, "{\"a\":1}").unwrap();
        assert_eq!(signed, SIGNED);
    }

    const SIGNED: &str = "t=1700000000,v1=49f24e537407743fa4a0242bb63b94b9a47ee99cbbe071ccd8a22550ae411686";

    #[test]
    fn pauses_grow_to_an_hour() {
        assert_eq!(pause(0), Duration::from_secs(10));
        assert_eq!(pause(3), Duration::from_secs(80));
        assert_eq!(pause(40), Duration::from_secs(3600));
    }
}
