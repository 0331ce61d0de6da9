//! Sessions of browsers: who has entered the API token is let in by a cookie, at any pre.
//!
//! The cookie is `EXPIRES.NONCE.MAC`, with the HMAC-SHA256 of the first two under the API token. So no pre has to
//! remember it, and another API token ends every session. It is no `Secure` cookie, because the service also stands
//! on a plain HTTP port; a proxy that speaks TLS may add the attribute.

use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Redirect, Response};
use common::clock::Stamp;
use common::config::Secret;
use common::http_error::HttpError;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::{Failed, Pages};

/// A kind of session: the cookie that carries it, where it is sent, and how long it lasts.
pub(super) struct Kind {
    pub name: &'static str,
    pub path: &'static str,
    pub kept: Duration,
}

/// The session of who has entered the API token.
pub(super) const USER: Kind =
    Kind { name: "boxreel_session", path: "/", kept: Duration::from_secs(30 * 24 * 3600) };

impl Kind {
    /// The header that begins a session.
    pub(super) fn begin(&self, key: &SessionKey, now: Stamp) -> String {
        self.cookie(&key.begin(now, self.kept), self.kept)
    }

    /// The header that ends it.
    pub(super) fn end(&self) -> String {
        self.cookie("", Duration::ZERO)
    }

    fn cookie(&self, session: &str, kept: Duration) -> String {
        let Self { name, path, .. } = self;
        format!("{name}={session}; Path={path}; Max-Age={}; HttpOnly; SameSite=Strict", kept.as_secs())
    }

    /// The form token of the session that a request is in.
    pub(super) async fn checked(
        &self,
        key: Option<&SessionKey>,
        pages: &Pages,
        headers: &HeaderMap,
    ) -> Result<Option<FormToken>, HttpError> {
        let (Some(key), Some(session)) = (key, value(headers, self.name)) else { return Ok(None) };
        Ok(key.check(session, pages.app.store().now().await?))
    }
}

/// What sessions are signed with.
#[derive(Clone)]
pub(super) struct SessionKey(Hmac<Sha256>);

/// What forms of this session carry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FormToken(pub String);

impl SessionKey {
    pub(super) fn new(token: &Secret) -> Self {
        // HMAC takes keys of any length; one that it would not take signs nothing that anybody could guess.
        let mac = Hmac::new_from_slice(token.reveal().as_bytes());
        Self(mac.unwrap_or_else(|_| Hmac::new(&rand::random::<[u8; 64]>().into())))
    }

    fn signed(&self, what: &str, value: &str) -> Hmac<Sha256> {
        let mut mac = self.0.clone();
        mac.update(format!("boxreel {what} 1|{value}").as_bytes());
        mac
    }

    fn signature(&self, what: &str, value: &str) -> String {
        let bytes = self.signed(what, value).finalize().into_bytes();
        bytes.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}"))
    }

    /// The value of a new session that lasts for `kept`.
    fn begin(&self, now: Stamp, kept: Duration) -> String {
        let body = format!("{}.{:032x}", now.after(kept).0 / 1_000_000, rand::random::<u128>());
        let signature = self.signature("session", &body);
        format!("{body}.{signature}")
    }

    /// The form token of a session, if it is one and has not ended.
    fn check(&self, session: &str, now: Stamp) -> Option<FormToken> {
        let (body, signature) = session.rsplit_once('.')?;
        let signature: Option<Vec<u8>> = (0..signature.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(signature.get(at..at + 2)?, 16).ok())
            .collect();
        // Compares in constant time.
        self.signed("session", body).verify_slice(&signature?).ok()?;
        let expires: i64 = body.split_once('.')?.0.parse().ok()?;
        (now.0 / 1_000_000 < expires).then(|| FormToken(self.signature("form", session)))
    }
}

/// The value of a cookie.
fn value<'a>(headers: &'a HeaderMap, wanted: &str) -> Option<&'a str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    cookies.flat_map(|value| value.split(';')).find_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == wanted).then_some(value)
    })
}

/// The form token of the session that a request is in.
async fn checked(pages: &Pages, headers: &HeaderMap) -> Result<Option<FormToken>, HttpError> {
    USER.checked(pages.key.as_ref(), pages, headers).await
}

/// Where a request comes from, as far as a browser says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sender {
    /// From a page of ours.
    Ours,
    /// From a page of somebody else.
    Foreign,
    /// It does not say: no browser, or one that follows a link or reads on plain HTTP.
    Unsaid,
}

fn sender(headers: &HeaderMap) -> Sender {
    let text = |name: header::HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(site) = text(header::HeaderName::from_static("sec-fetch-site")) {
        return match site {
            "same-origin" => Sender::Ours,
            // Typed in, or from a bookmark: no page had a hand in it.
            "none" => Sender::Unsaid,
            _ => Sender::Foreign,
        };
    }
    let Some(origin) = headers.get(header::ORIGIN) else { return Sender::Unsaid };
    let origin = origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, host)| host);
    match (origin, text(header::HOST)) {
        (Some(origin), Some(host)) if origin.eq_ignore_ascii_case(host) => Sender::Ours,
        _ => Sender::Foreign,
    }
}

/// Lets a browser with a session use the REST interface, and keeps pages of others from using it through a browser,
/// session or not: on loopback there is none.
pub(super) async fn admit(State(pages): State<Pages>, mut request: Request, next: Next) -> Response {
    let headers = request.headers();
    // Who has the token needs no session, and no page of a stranger has it.
    if headers.contains_key(header::AUTHORIZATION) {
        return next.run(request).await;
    }
    let reads = matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS);
    let sender = sender(headers);
    if sender == Sender::Foreign && !reads {
        let error = HttpError::new(
            StatusCode::FORBIDDEN,
            "forbidden",
            "A page of another site sent this, so it was not done; use the pages of this service.",
        );
        let page = !request.uri().path().starts_with("/v1/");
        return if page { Failed(error).into_response() } else { error.into_response() };
    }
    let trusted = sender == Sender::Ours || (sender == Sender::Unsaid && reads);
    if trusted && request.uri().path().starts_with("/v1/") {
        match checked(&pages, headers).await {
            Ok(Some(_)) => {
                if let Some(bearer) = pages.rest.bearer() {
                    request.headers_mut().insert(header::AUTHORIZATION, bearer);
                }
            }
            Ok(None) => {}
            Err(error) => return error.into_response(),
        }
    }
    next.run(request).await
}

/// Sends who has not signed in to do so.
pub(super) async fn required(State(pages): State<Pages>, mut request: Request, next: Next) -> Response {
    if pages.key.is_none() || pages.app.gates.api.admits_request(request.headers()) {
        return next.run(request).await;
    }
    match checked(&pages, request.headers()).await {
        Ok(Some(token)) => {
            request.extensions_mut().insert(token);
            next.run(request).await
        }
        Ok(None) => {
            let path = request.uri().path_and_query().map_or("/upload", |path| path.as_str());
            let reads = *request.method() == Method::GET;
            let next = if reads { format!("/login?next={}", encoded(path)) } else { "/login".to_owned() };
            let mut answer = Redirect::to(&next).into_response();
            if !reads {
                // Whatever body comes is not read.
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            answer
        }
        Err(error) => Failed(error).into_response(),
    }
}

/// Refuses a form that was not made for this session.
pub(super) fn ours(token: Option<&FormToken>, carried: &str) -> Result<(), HttpError> {
    use subtle::ConstantTimeEq;
    match token {
        Some(FormToken(token)) if !bool::from(token.as_bytes().ct_eq(carried.as_bytes())) => {
            Err(HttpError::new(
                StatusCode::FORBIDDEN,
                "forbidden",
                "This form is from before you signed in; go back, load the page again and send it once more.",
            ))
        }
        _ => Ok(()),
    }
}

/// Where to go after signing in: a path of ours and nothing else.
pub(super) fn local(next: &str) -> String {
    let sound = next.starts_with('/')
        && !next.starts_with("//")
        && !next.contains('\\')
        && next.bytes().all(|byte| byte.is_ascii_graphic());
    if sound { next.to_owned() } else { "/upload".to_owned() }
}

/// `text` as a value in a query.
fn encoded(text: &str) -> String {
    use std::fmt::Write;
    text.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_known_until_it_ends_and_only_under_its_token() {
        let key = SessionKey::new(&Secret::from("open sesame".to_owned()));
        let now = Stamp(1_700_000_000_000_000);
        let session = key.begin(now, USER.kept);
        let token = key.check(&session, now).unwrap();
        assert_eq!(key.check(&session, now), Some(token.clone()));
        assert_ne!(
            key.check(&key.begin(now, USER.kept), now),
            Some(token),
            "another session has another form token"
        );
        assert_eq!(key.check(&session, now.after(USER.kept)), None);
        let other = SessionKey::new(&Secret::from("open barley".to_owned()));
        assert_eq!(other.check(&session, now), None);
        let (body, signature) = session.rsplit_once('.').unwrap();
        let later = format!("9{body}.{signature}");
        for forged in [later.as_str(), body, "", ".", "..", "1.2.zz", "1.2.é", &session[..session.len() - 2]]
        {
            assert_eq!(key.check(forged, now), None, "{forged}");
        }
    }

    #[test]
    fn only_paths_of_ours_are_gone_to() {
        for sound in ["/result", "/result/0123?x=y"] {
            assert_eq!(local(sound), sound);
        }
        for foreign in ["", "//evil.example", "/\\evil.example", "https://evil.example", "/a\r\nb", "result"]
        {
            assert_eq!(local(foreign), "/upload", "{foreign:?}");
        }
    }
}
