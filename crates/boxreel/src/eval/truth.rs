//! What is in the pictures: a COCO instances file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use hotcoco::COCO;
use image::RgbImage;

/// The annotations, and the pictures to detect in.
pub struct Truth {
    /// The file.
    pub coco: COCO,
    /// Pictures to detect in, by id.
    pub pictures: Vec<Picture>,
}

/// One picture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// Its id in the annotations.
    pub id: u64,
    /// Where it lies.
    pub path: PathBuf,
    /// Its width in the annotations' pixels.
    pub width: u32,
    /// Its height in the annotations' pixels.
    pub height: u32,
}

impl Picture {
    /// Whether `image`, which lies in its place, is it: a resized copy will do, one of another shape is another picture.
    ///
    /// # Errors
    /// When it is another; the sentence names it.
    pub fn check(&self, image: &RgbImage) -> Result<()> {
        let (width, height) = image.dimensions();
        let off = f64::from(width) * f64::from(self.height) / (f64::from(height) * f64::from(self.width));
        if !(0.98..1.02).contains(&off) {
            bail!(
                "The picture {} has {width}×{height} pixels, and the annotations are of one of {}×{}.",
                self.path.display(),
                self.width,
                self.height
            );
        }
        Ok(())
    }
}

/// Which category each of a model's classes is.
#[derive(Debug, PartialEq, Eq)]
pub struct Categories {
    /// For each class its category's id, if the annotations have it.
    pub ids: Vec<Option<u64>>,
    /// What does not fit, for people.
    pub notes: Vec<String>,
}

impl Truth {
    /// Reads the annotations, and looks whether all their pictures (the first `limit` of them) are in `folder`.
    ///
    /// # Errors
    /// When the file is no COCO instances file, or pictures are missing.
    pub fn read(annotations: &Path, folder: &Path, limit: Option<u32>) -> Result<Self> {
        if !folder.is_dir() {
            bail!("{} is no folder; name the folder of the pictures with --images.", folder.display());
        }
        let coco = COCO::new(annotations).with_context(|| {
            format!("{} is no COCO instances file that can be read", annotations.display())
        })?;
        for (list, empty) in [
            ("images", coco.dataset.images.is_empty()),
            ("categories", coco.dataset.categories.is_empty()),
            ("annotations", coco.dataset.annotations.is_empty()),
        ] {
            if empty {
                bail!(
                    "{} lists no {list}; give a COCO instances file, with images, categories and annotations.",
                    annotations.display()
                );
            }
        }
        let data = &coco.dataset;
        if let Some(one) = data.annotations.iter().find(|one| one.bbox.is_none()) {
            bail!("{} gives annotation {} no bbox.", annotations.display(), one.id);
        }
        if let Some(one) = data.images.iter().find(|one| one.file_name.is_empty()) {
            bail!("{} gives image {} no file_name.", annotations.display(), one.id);
        }
        if let Some(one) = data.images.iter().find(|one| one.width == 0 || one.height == 0) {
            bail!("{} gives image {} no width and height.", annotations.display(), one.id);
        }
        let truth = Self::of(coco, folder, limit);
        if let Some(pair) = truth.pictures.windows(2).find(|pair| pair[0].id == pair[1].id) {
            bail!("{} gives two images the id {}.", annotations.display(), pair[0].id);
        }
        let missing: Vec<_> = truth.pictures.iter().filter(|picture| !picture.path.is_file()).collect();
        if let Some(first) = missing.first() {
            bail!(
                "{} of {} pictures are not in {}, the first is {}; name their folder with --images.",
                missing.len(),
                truth.pictures.len(),
                folder.display(),
                first.path.strip_prefix(folder).unwrap_or(&first.path).display()
            );
        }
        Ok(truth)
    }

    /// As [`Truth::read`], of annotations in memory, and without looking.
    pub fn of(coco: COCO, folder: &Path, limit: Option<u32>) -> Self {
        let picture = |image: &hotcoco::Image| Picture {
            id: image.id,
            path: folder.join(&image.file_name),
            width: image.width,
            height: image.height,
        };
        let mut pictures: Vec<_> = coco.dataset.images.iter().map(picture).collect();
        pictures.sort_by_key(|picture| picture.id);
        pictures.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
        Self { coco, pictures }
    }

    /// Finds the categories of a model's classes by their names.
    ///
    /// # Errors
    /// When none of them is in the annotations.
    pub fn categories_of(&self, names: &[String]) -> Result<Categories> {
        let categories = &self.coco.dataset.categories;
        let same = |a: &str, b: &str| a.trim().eq_ignore_ascii_case(b.trim());
        let id_of = |name: &String| {
            categories.iter().find(|category| same(&category.name, name)).map(|category| category.id)
        };
        let ids: Vec<_> = names.iter().map(id_of).collect();
        let list = |names: Vec<&str>| {
            if names.len() > 5 { format!("{}, …", names[..4].join(", ")) } else { names.join(", ") }
        };
        let strangers: Vec<_> =
            names.iter().zip(&ids).filter(|(_, id)| id.is_none()).map(|(name, _)| name.as_str()).collect();
        let unknown: Vec<_> = categories
            .iter()
            .filter(|category| !names.iter().any(|name| same(&category.name, name)))
            .map(|category| category.name.as_str())
            .collect();
        if strangers.len() == names.len() {
            bail!(
                "The annotations have none of the model's classes: the model knows {}, the annotations {}.",
                list(strangers),
                list(unknown)
            );
        }
        let mut notes = Vec::new();
        if !strangers.is_empty() {
            notes.push(format!(
                "{} of the model's classes are not in the annotations and are left out: {}",
                strangers.len(),
                list(strangers)
            ));
        }
        if !unknown.is_empty() {
            notes.push(format!(
                "{} of the annotations' classes are unknown to the model and are not measured: {}",
                unknown.len(),
                list(unknown)
            ));
        }
        Ok(Categories { ids, notes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn truth(names: &[&str]) -> Truth {
        let categories: Vec<_> = names
            .iter()
            .zip([1, 18, 90])
            .map(|(name, id)| serde_json::json!({"id": id, "name": name}))
            .collect();
        let images: Vec<_> = [7, 3, 5]
            .iter()
            .map(
                |id| serde_json::json!({"id": id, "file_name": format!("{id}.png"), "width": 4, "height": 3}),
            )
            .collect();
        let dataset = serde_json::json!({"images": images, "categories": categories, "annotations": []});
        Truth::of(COCO::from_dataset(serde_json::from_value(dataset).unwrap()), Path::new("all"), Some(2))
    }

    #[test]
    fn the_first_pictures_are_those_of_the_smallest_ids() {
        let pictures = truth(&["cat"]).pictures;
        assert_eq!(pictures.iter().map(|picture| picture.id).collect::<Vec<_>>(), [3, 5]);
        assert_eq!(pictures[0].path, Path::new("all/3.png"));
    }

    #[test]
    fn a_copy_of_another_size_is_the_same_picture_and_one_of_another_shape_is_not() {
        let picture = |width, height| Picture { id: 1, path: "wide.png".into(), width, height };
        let image = RgbImage::new(40, 30);
        assert!(picture(400, 300).check(&image).is_ok());
        let refusal = picture(300, 400).check(&image).unwrap_err().to_string();
        assert!(
            refusal.contains("wide.png has 40×30 pixels, and the annotations are of one of 300×400"),
            "{refusal}"
        );
    }

    #[test]
    fn classes_are_matched_by_name_and_what_does_not_fit_is_said() {
        let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let truth = truth(&["person", "Dog", "toothbrush"]);
        let found = truth.categories_of(&names(&["toothbrush", "unicorn", "dog"])).unwrap();
        assert_eq!(found.ids, [Some(90), None, Some(18)]);
        assert_eq!(found.notes.len(), 2);
        assert!(found.notes[0].contains("left out: unicorn"), "{:?}", found.notes);
        assert!(found.notes[1].contains("not measured: person"), "{:?}", found.notes);
        assert_eq!(truth.categories_of(&names(&["person", "dog", "toothbrush"])).unwrap().notes.len(), 0);
        let refusal = truth.categories_of(&names(&["a", "b", "c", "d", "e", "f"])).unwrap_err().to_string();
        assert!(
            refusal.contains("knows a, b, c, d, …, the annotations person, Dog, toothbrush"),
            "{refusal}"
        );
    }
}
