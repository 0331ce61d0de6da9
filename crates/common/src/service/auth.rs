//! Bearer tokens.

use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use crate::config::Secret;

/// A token that requests are held against. Kept as its hash, and compared in constant time, so that an answer's
/// timing tells nothing about it, not even its length.
#[derive(Debug, Clone)]
pub struct Gate(Option<[u8; 32]>);

impl Gate {
    /// Lets requests with `token` pass; without a token, all.
    #[must_use]
    pub fn new(token: Option<&Secret>) -> Self {
        Self(token.map(|token| hash(token.reveal())))
    }

    /// Whether a token is asked for at all.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.is_some()
    }

    /// Whether `token` is the one.
    #[must_use]
    pub fn admits(&self, token: &str) -> bool {
        self.0.is_none_or(|wanted| bool::from(hash(token).ct_eq(&wanted)))
    }

    /// Whether the bearer token of a request with `headers` is the one.
    #[must_use]
    pub fn admits_request(&self, headers: &HeaderMap) -> bool {
        self.0.is_none() || bearer(headers).is_some_and(|token| self.admits(token))
    }
}

fn hash(token: &str) -> [u8; 32] {
    Sha256::digest(token.as_bytes()).into()
}

/// The token of `Authorization: Bearer …`.
#[must_use]
pub fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(header::AUTHORIZATION, HeaderValue::from_static(value))])
    }

    #[test]
    fn only_the_token_itself_opens_the_gate() {
        let gate = Gate::new(Some(&Secret::from("abc".to_owned())));
        assert!(gate.is_closed());
        assert!(gate.admits_request(&headers("Bearer abc")));
        assert!(gate.admits_request(&headers("bearer abc")));
        for wrong in ["Bearer abcd", "Bearer ab", "Bearer ", "Basic abc", "abc"] {
            assert!(!gate.admits_request(&headers(wrong)), "{wrong}");
        }
        assert!(!gate.admits_request(&HeaderMap::new()));
    }

    #[test]
    fn without_a_token_all_pass() {
        let gate = Gate::new(None);
        assert!(!gate.is_closed() && gate.admits_request(&HeaderMap::new()));
    }
}
