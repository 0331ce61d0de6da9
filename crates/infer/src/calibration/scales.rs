//! The scales as they travel in a weights file.

use std::collections::BTreeMap;

use crate::ssd300::activations;

/// How much a step of a byte is worth in each activation, by the name of the convolution that makes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Scales(pub(super) BTreeMap<String, f32>);

/// Why a model has no scales. The phrases go on after "int8 needs them, and".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Uncalibrated {
    /// It never had any.
    #[error("the model has none")]
    Never,
    /// They are there, and of no use.
    #[error("those in the model's metadata are of no use ({0})")]
    Damaged(String),
}

impl Scales {
    /// Reads a JSON object, name to number, which must have one for each of the network's activations and no others.
    pub(crate) fn parse(text: &str) -> Result<Self, Uncalibrated> {
        let scales: BTreeMap<String, f32> = serde_json::from_str(text)
            .map_err(|_| Uncalibrated::Damaged("no JSON object of numbers".to_owned()))?;
        let expected: BTreeMap<String, _> = activations().into_iter().collect();
        let list = |names: Vec<&String>| {
            let more = if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
            names.first().map(|first| format!("{first}{more}"))
        };
        let missing = list(expected.keys().filter(|name| !scales.contains_key(*name)).collect());
        let unknown = list(scales.keys().filter(|name| !expected.contains_key(*name)).collect());
        let unusable = list(
            scales
                .iter()
                .filter(|(_, scale)| !scale.is_normal() || **scale < 0.0)
                .map(|(name, _)| name)
                .collect(),
        );
        let parts: Vec<_> = [("missing", missing), ("unknown", unknown), ("not a positive number", unusable)]
            .into_iter()
            .filter_map(|(label, names)| names.map(|names| format!("{label}: {names}")))
            .collect();
        if parts.is_empty() { Ok(Self(scales)) } else { Err(Uncalibrated::Damaged(parts.join("; "))) }
    }

    /// What [`Scales::parse`] reads.
    pub(crate) fn to_json(&self) -> String {
        serde_json::json!(self.0).to_string()
    }

    /// The scale of what the convolution `name` makes.
    pub(crate) fn get(&self, name: &str) -> Option<f32> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> BTreeMap<String, f32> {
        (1u16..).zip(activations()).map(|(n, (name, _))| (name, 1.0 / f32::from(n))).collect()
    }

    fn damage(scales: &BTreeMap<String, f32>) -> String {
        Scales::parse(&Scales(scales.clone()).to_json()).unwrap_err().to_string()
    }

    #[test]
    fn scales_are_read_back_as_they_are_written() {
        let scales = Scales(all());
        assert_eq!(Scales::parse(&scales.to_json()), Ok(scales));
    }

    #[test]
    fn what_is_wrong_with_them_is_said() {
        let first = "additional_blocks.0.0";
        for text in ["", "[1, 2]", r#"{"additional_blocks.0.0": "wide"}"#] {
            let error = Scales::parse(text).unwrap_err().to_string();
            assert!(error.contains("no JSON object of numbers"), "{text}: {error}");
        }
        let mut scales = all();
        scales.remove(first).unwrap();
        assert!(damage(&scales).contains("(missing: additional_blocks.0.0)"), "{}", damage(&scales));
        scales.insert("loc.0".to_owned(), 1.0);
        assert!(damage(&scales).contains("missing: additional_blocks.0.0; unknown: loc.0"));
        assert!(
            damage(&BTreeMap::new()).contains("missing: additional_blocks.0.0 and 52 more"),
            "{}",
            damage(&BTreeMap::new())
        );
        for scale in [0.0, -1.0, f32::MIN_POSITIVE / 2.0] {
            let mut scales = all();
            scales.insert(first.to_owned(), scale);
            assert!(damage(&scales).contains("not a positive number: additional_blocks.0.0"), "{scale}");
        }
    }
}
