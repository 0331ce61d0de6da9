//! Asks a service on this machine whether it is alive, for images that hold no other client of HTTP.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::Duration;

/// How long the service may take to answer.
const PATIENCE: Duration = Duration::from_secs(4);
/// The longest answer that is read.
const MOST: u64 = 4096;

/// Asks the service that listens at `listen` for `/healthz`.
///
/// # Errors
/// When it does not answer, or not with 200; the error says which.
pub fn ask(listen: SocketAddr) -> io::Result<()> {
    // Who listens on every address is asked at loopback.
    let ip = match listen.ip() {
        ip if !ip.is_unspecified() => ip,
        IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
    };
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(ip, listen.port()), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(MOST).read_to_string(&mut answer)?;
    match answer.split_whitespace().nth(1) {
        Some("200") => Ok(()),
        _ => Err(io::Error::other(format!("it answers {:?}", answer.lines().next().unwrap_or_default()))),
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    /// Answers one request with `answer`, at a port of every address.
    fn service(answer: &'static str) -> SocketAddr {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = [0; 512];
            let read = stream.read(&mut head).unwrap();
            assert!(head[..read].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).unwrap();
        });
        address
    }

    #[test]
    fn only_an_answer_of_200_is_good_health() {
        assert!(ask(service("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok\n")).is_ok());
        let error = ask(service("HTTP/1.1 503 Service Unavailable\r\n\r\n")).unwrap_err().to_string();
        assert!(error.contains("503"), "{error}");
        assert!(ask(service("")).is_err());
    }

    #[test]
    fn where_nobody_listens_health_is_bad() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        assert!(ask(address).is_err());
    }
}
