//! What may be asked for with an upload, however its bytes come.

use common::http_error::HttpError;
use common::job::Settings;
use common::store::Offer;
use utoipa::{IntoParams, ToSchema};

use crate::app::App;
use crate::callbacks::names_private_address;

/// What may be asked for with an upload: in the query, or as fields of a form.
#[derive(Debug, Clone, Default, PartialEq, ToSchema, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct UploadOptions {
    /// Keep every frame as a picture, as it came and with boxes. Default: true.
    #[schema(nullable = false)]
    #[param(nullable = false)]
    keep_frames: Option<bool>,
    /// Draw, count and write to txt only detections of at least this score. Default: 0.3.
    #[schema(nullable = false, minimum = 0, maximum = 1)]
    #[param(nullable = false, minimum = 0, maximum = 1)]
    conf: Option<f32>,
    /// Of two boxes of one class that overlap more than this, the weaker is dropped. Default: 0.5.
    #[schema(nullable = false, minimum = 0, maximum = 1)]
    #[param(nullable = false, minimum = 0, maximum = 1)]
    iou: Option<f32>,
    /// Only these classes, by name or number, separated by commas. Default: all.
    #[schema(nullable = false, example = "person,car")]
    #[param(nullable = false, example = "person,car")]
    classes: Option<String>,
    /// Detect each Nth frame and hold the boxes between. Default: 1.
    #[schema(nullable = false, minimum = 1, maximum = 100_000)]
    #[param(nullable = false, minimum = 1, maximum = 100_000)]
    every: Option<u32>,
    /// Where to send word when the job has ended.
    #[schema(nullable = false, format = "uri")]
    #[param(nullable = false, format = "uri")]
    pub(super) callback_url: Option<String>,
    /// The file's name, where a header does not tell.
    #[schema(nullable = false)]
    #[param(nullable = false)]
    pub(super) filename: Option<String>,
}

impl UploadOptions {
    /// Takes in one option.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<(), HttpError> {
        let wrong = |what: &str| {
            let shown: String = value.chars().take(60).collect();
            HttpError::bad_request(format!("{name} must be {what}, not {shown:?}."))
        };
        let fraction = || {
            let number = value.parse::<f32>().ok().filter(|number| (0.0..=1.0).contains(number));
            number.ok_or_else(|| wrong("a number from 0 to 1"))
        };
        match name {
            "keep_frames" => {
                self.keep_frames = Some(match value {
                    "true" | "1" | "on" | "yes" => true,
                    "false" | "0" | "off" | "no" => false,
                    _ => return Err(wrong("true or false")),
                });
            }
            "conf" => self.conf = Some(fraction()?),
            "iou" => self.iou = Some(fraction()?),
            "classes" => {
                // A form may repeat the field for each class.
                let before = self.classes.take().map(|before| before + ",").unwrap_or_default();
                self.classes = Some(before + value);
            }
            "every" => {
                let number = value.parse().ok().filter(|number| (1..=100_000).contains(number));
                self.every = Some(number.ok_or_else(|| wrong("a whole number from 1 to 100000"))?);
            }
            "callback_url" => {
                let sound = reqwest::Url::parse(value)
                    .is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
                if !sound || value.len() > 2048 {
                    return Err(wrong("an address of the kind https://host/path"));
                }
                self.callback_url = Some(value.to_owned());
            }
            "filename" => self.filename = Some(value.to_owned()),
            other => {
                let shown: String = other.chars().take(60).collect();
                return Err(HttpError::bad_request(format!(
                    "There is no option {shown:?}; there are keep_frames, conf, iou, classes, every, callback_url \
                     and filename."
                )));
            }
        }
        Ok(())
    }

    /// What the job will be done with.
    pub(super) fn settings(&self, offer: Offer) -> Result<Settings, HttpError> {
        Ok(Settings {
            conf: self.conf.unwrap_or(0.3),
            iou: self.iou.unwrap_or(0.5),
            max_det: 200,
            classes: classes(self.classes.as_deref().unwrap_or_default(), &offer.names)?,
            every: self.every.unwrap_or(1),
            keep_frames: self.keep_frames.unwrap_or(true),
            save_txt: true,
            mp4: true,
            avi: true,
            names: offer.names,
            model: offer.key,
        })
    }
}

/// The classes named in `text`, in rising order.
pub(super) fn classes(text: &str, names: &[String]) -> Result<Vec<u16>, HttpError> {
    let mut classes = Vec::new();
    for wanted in text.split(',').map(str::trim).filter(|wanted| !wanted.is_empty()) {
        let named = names.iter().position(|name| name.eq_ignore_ascii_case(wanted));
        let numbered = || wanted.parse().ok().filter(|number| *number < names.len());
        let class = named.or_else(numbered).and_then(|class| u16::try_from(class).ok());
        classes.push(class.ok_or_else(|| {
            let shown: String = wanted.chars().take(60).collect();
            HttpError::bad_request(format!(
                "The model knows no class {shown:?}; it knows: {}.",
                names.join(", ")
            ))
        })?);
    }
    classes.sort_unstable();
    classes.dedup();
    Ok(classes)
}

/// Refuses an address that no callback would be sent to.
pub(super) fn check_callback(app: &App, url: Option<&str>) -> Result<(), HttpError> {
    let url = url.and_then(|url| reqwest::Url::parse(url).ok());
    if !app.settings.allow_private_callbacks && url.is_some_and(|url| names_private_address(&url)) {
        return Err(HttpError::bad_request("callback_url must be a public address."));
    }
    Ok(())
}

/// A file's name as it is shown: without folders and control characters, and not endless.
pub(super) fn shown_name(name: &str) -> String {
    let base = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let clean: String = base.chars().filter(|c| !c.is_control()).take(200).collect();
    let clean = clean.trim();
    if clean.is_empty() { "video".to_owned() } else { clean.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_shown_without_the_folders_it_came_from() {
        for (name, shown) in [
            ("bikes.mp4", "bikes.mp4"),
            ("../../etc/passwd", "passwd"),
            ("C:\\videos\\Räder 1.mp4", "Räder 1.mp4"),
            ("a\r\nSet-Cookie: x", "aSet-Cookie: x"),
            ("..", ".."),
            ("", "video"),
            ("folder/", "video"),
        ] {
            assert_eq!(shown_name(name), shown, "{name:?}");
        }
        assert_eq!(shown_name(&"x".repeat(1000)).len(), 200);
    }

    #[test]
    fn options_are_read_or_refused_with_a_sentence() {
        let mut options = UploadOptions::default();
        for (name, value) in [
            ("keep_frames", "false"),
            ("conf", "0.5"),
            ("every", "3"),
            ("classes", "person"),
            ("classes", "2"),
            ("callback_url", "https://example.org/done"),
        ] {
            options.set(name, value).unwrap();
        }
        assert_eq!(options.keep_frames, Some(false));
        assert_eq!((options.conf, options.every), (Some(0.5), Some(3)));
        let names = ["person", "bicycle", "car"].map(str::to_owned);
        assert_eq!(classes(options.classes.as_deref().unwrap(), &names).unwrap(), [0, 2]);
        for (name, value, said) in [
            ("conf", "1.5", "from 0 to 1"),
            ("conf", "NaN", "from 0 to 1"),
            ("every", "0", "from 1"),
            ("keep_frames", "maybe", "true or false"),
            ("callback_url", "ftp://x", "https://host/path"),
            ("keep_frame", "true", "keep_frames"),
        ] {
            let error = UploadOptions::default().set(name, value).unwrap_err();
            assert!(error.message().contains(said), "{}", error.message());
        }
        assert!(classes("unicorn", &names).unwrap_err().message().contains("person, bicycle, car"));
    }
}
