//! A connection that breaks in the middle of an upload.

use std::fs;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use testbed::House;
use testbed::cluster::ffmpeg;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};

use crate::browser::Browser;

/// Bytes from the browser after which the first connection that carries so many is cut.
const CUT: u64 = 2 << 20;

/// What lies between the browser and the server: passes everything on, and cuts one connection.
struct Wire {
    url: String,
    seen: Arc<Mutex<Seen>>,
}

/// What has passed a [`Wire`].
#[derive(Default)]
struct Seen {
    cut: bool,
    /// Where in the file the browser went on, each time.
    offsets: Vec<u64>,
}

impl Seen {
    /// Looks for the header that says where the bytes belong. (It begins a request, and so a buffer.)
    fn read(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).to_lowercase();
        if let Some((_, rest)) = text.split_once("\nupload-offset: ") {
            self.offsets.extend(rest.lines().next().and_then(|number| number.trim().parse::<u64>().ok()));
        }
    }
}

impl Wire {
    async fn to(server: &str) -> Self {
        let server: SocketAddr = server.strip_prefix("http://").unwrap().parse().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen = Arc::<Mutex<Seen>>::default();
        let shared = seen.clone();
        tokio::spawn(async move {
            while let Ok((browser, _)) = listener.accept().await {
                tokio::spawn(pass(browser, server, shared.clone()));
            }
        });
        Self { url, seen }
    }
}

async fn pass(browser: TcpStream, server: SocketAddr, seen: Arc<Mutex<Seen>>) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (mut from_browser, mut to_browser) = browser.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers = tokio::spawn(async move {
        // One request a connection: Chromium itself sends one again that breaks on a connection it had used before.
        let status = read_line(&mut from_server).await?;
        to_browser.write_all(&[&status, &b"connection: close\r\n"[..]].concat()).await?;
        copy(&mut from_server, &mut to_browser).await
    });
    let (mut buffer, mut here) = (vec![0; 64 << 10], 0);
    while let Ok(count @ 1..) = from_browser.read(&mut buffer).await {
        seen.lock().unwrap().read(&buffer[..count]);
        if to_server.write_all(&buffer[..count]).await.is_err() {
            break;
        }
        here += count as u64;
        let mut seen = seen.lock().unwrap();
        if here > CUT && !seen.cut {
            seen.cut = true;
            break;
        }
    }
    // Dropped, both ends are closed.
    answers.abort();
}

/// The first line of an answer, with its end.
async fn read_line(from: &mut OwnedReadHalf) -> std::io::Result<Vec<u8>> {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        line.push(from.read_u8().await?);
    }
    Ok(line)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_whose_connection_breaks_goes_on_where_it_was() {
    let house = House::start();
    let file = house.folder().join("large.mov");
    let picture = "-f lavfi -i testsrc2=size=1280x720:rate=25";
    ffmpeg(house.folder(), &format!("{picture} -c:v mjpeg -q:v 2 -frames:v 100 {}", file.display())).unwrap();
    let size = fs::metadata(&file).unwrap().len();
    assert!(size > 2 * CUT, "{size} bytes: too few to break off in the middle");
    let wire = Wire::to(&house.url).await;
    let browser = Browser::open(&wire.url).await;

    browser.goto("/upload").await;
    browser.choose(&file).await;
    browser.press("upload").await;
    browser.until_said("your id is").await;
    let id = browser.find(".file-id").await.text().await.unwrap();

    {
        let seen = wire.seen.lock().unwrap();
        assert!(seen.cut, "the connection was not cut");
        let furthest = seen.offsets.iter().max();
        assert!(furthest.is_some_and(|offset| *offset > CUT / 2), "it began anew: {:?}", seen.offsets);
    }
    let stored = house.folder().join("data/src").join(id);
    assert!(fs::read(stored).unwrap() == fs::read(&file).unwrap(), "what arrived is not what was sent");
    // The browser itself tells of the connection, whatever the page makes of it.
    browser.console(Some("/v1/uploads/")).await;
    browser.close().await;
}
