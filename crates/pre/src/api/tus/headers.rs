//! What tus says in headers.

use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use common::http_error::HttpError;
use sha1::Sha1;
use sha2::digest::DynDigest;
use sha2::{Sha256, Sha512};

use crate::api::options::UploadOptions;

/// The content type of bytes of an upload.
pub(super) const BYTES: &str = "application/offset+octet-stream";
/// What checksums may be of.
pub(super) const ALGORITHMS: &str = "sha1,sha256,sha512";
/// Bytes that `Upload-Metadata` may have.
const METADATA: usize = 8192;
/// What clients say of a file beside its name, and nobody here asks for.
const DESCRIPTIVE: [&str; 4] = ["filetype", "name", "relativePath", "type"];

/// A header that must be a number of bytes; none when it is absent.
pub(super) fn number(headers: &HeaderMap, name: &str) -> Result<Option<u64>, HttpError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    let digits = value.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let number = digits.and_then(|text| text.parse().ok());
    number.map(Some).ok_or_else(|| HttpError::bad_request(format!("{name} must be a number of bytes.")))
}

/// The same of a header that must be there.
pub(super) fn required(headers: &HeaderMap, name: &str) -> Result<u64, HttpError> {
    number(headers, name)?.ok_or_else(|| HttpError::bad_request(format!("The header {name} is missing.")))
}

/// Whether the body is bytes of an upload.
pub(super) fn carries_bytes(headers: &HeaderMap) -> bool {
    headers
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().eq_ignore_ascii_case(BYTES.as_bytes()))
}

/// The options in `Upload-Metadata`, and the header as it came.
pub(super) fn metadata(headers: &HeaderMap) -> Result<(UploadOptions, String), HttpError> {
    let malformed = || {
        HttpError::bad_request(
            "Upload-Metadata must be pairs of a key and its value in base64, separated by commas.",
        )
    };
    let mut options = UploadOptions::default();
    let Some(value) = headers.get("upload-metadata") else { return Ok((options, String::new())) };
    let text = value.to_str().map_err(|_| malformed())?;
    if text.len() > METADATA {
        return Err(HttpError::bad_request(format!("Upload-Metadata is longer than {METADATA} bytes.")));
    }
    for pair in text.split(',').map(str::trim).filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once(' ').unwrap_or((pair, ""));
        let value = STANDARD.decode(value.trim()).map_err(|_| malformed())?;
        let value = String::from_utf8(value).map_err(|_| malformed())?;
        if !value.is_empty() && !DESCRIPTIVE.contains(&key) {
            options.set(key, &value)?;
        }
    }
    Ok((options, text.to_owned()))
}

/// What the bytes of a request must add up to.
pub(super) struct Checksum {
    digest: Box<dyn DynDigest + Send>,
    wanted: Vec<u8>,
}

impl Checksum {
    /// That of `Upload-Checksum`, if it is there.
    pub(super) fn of(headers: &HeaderMap) -> Result<Option<Self>, HttpError> {
        let Some(value) = headers.get("upload-checksum") else { return Ok(None) };
        let malformed = || {
            HttpError::bad_request(format!(
                "Upload-Checksum must be the name of an algorithm ({ALGORITHMS}) and the checksum in base64."
            ))
        };
        let (name, sum) =
            value.to_str().ok().and_then(|text| text.trim().split_once(' ')).ok_or_else(malformed)?;
        let digest: Box<dyn DynDigest + Send> = match name {
            "sha1" => Box::new(Sha1::default()),
            "sha256" => Box::new(Sha256::default()),
            "sha512" => Box::new(Sha512::default()),
            _ => return Err(malformed()),
        };
        let wanted = STANDARD.decode(sum.trim()).map_err(|_| malformed())?;
        if wanted.len() != digest.output_size() {
            return Err(malformed());
        }
        Ok(Some(Self { digest, wanted }))
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        self.digest.update(bytes);
    }

    /// Compares.
    ///
    /// # Errors
    /// 460 when the bytes came changed.
    pub(super) fn check(self) -> Result<(), HttpError> {
        if *self.digest.finalize() == *self.wanted {
            return Ok(());
        }
        // A status of the protocol's own. It lies in the range of valid ones.
        let status = StatusCode::from_u16(460).unwrap_or(StatusCode::BAD_REQUEST);
        Err(HttpError::new(
            status,
            "checksum_mismatch",
            "The bytes are not those of the checksum; they came changed and do not count: send them again.",
        ))
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            axum::http::HeaderName::from_static(name),
            HeaderValue::from_str(value).unwrap(),
        )])
    }

    #[test]
    fn options_come_in_base64_and_what_is_none_of_ours_is_let_be() {
        let text = "filename UsOkZGVyLm1wNA==,filetype dmlkZW8vbXA0, every Mw==,relativePath,callback_url ";
        let (options, kept) = metadata(&headers("upload-metadata", text)).unwrap();
        assert_eq!((options.filename.as_deref(), options.callback_url.as_deref()), (Some("Räder.mp4"), None));
        assert_eq!(kept, text);
        assert_eq!(metadata(&HeaderMap::new()).unwrap(), (UploadOptions::default(), String::new()));
        for wrong in ["filename Räder", "filename R$", "filename /w==", "every MA==", "evry Mw=="] {
            assert_eq!(metadata(&headers("upload-metadata", wrong)).unwrap_err().status(), 400, "{wrong}");
        }
    }

    #[test]
    fn checksums_are_those_of_other_programs() {
        let sha1 = "Kq5sNclPz7QV2+lfQIuc6R7oRu0=";
        let sha256 = "uU0nuZNNPgilLlLX2n2r+sSE7+N6U4DukIj3rOLvzek=";
        for (value, right) in [
            (format!("sha1 {sha1}"), true),
            (format!("sha256 {sha256}"), true),
            ("sha1 Kq5sNclPz7QV2+lfQIuc6R7oRuw=".to_owned(), false),
        ] {
            let mut sum = Checksum::of(&headers("upload-checksum", &value)).unwrap().unwrap();
            sum.update(b"hello");
            sum.update(b" world");
            let found = sum.check();
            assert_eq!(found.is_ok(), right, "{value}");
            assert!(right || found.unwrap_err().status() == 460);
        }
        for wrong in ["sha1", "md5 XrY7u+Ae7tCTyyK7j1rNww==", "sha1 abc", &format!("sha256 {sha1}"), "sha1 !"]
        {
            let refused = Checksum::of(&headers("upload-checksum", wrong)).err().unwrap();
            assert!(refused.message().contains("sha256"), "{wrong}");
        }
        assert!(Checksum::of(&HeaderMap::new()).unwrap().is_none());
    }
}
