//! COCO's metric, by hotcoco.

use anyhow::{Context, Result};
use hotcoco::params::IouType;
use hotcoco::{Annotation, COCOeval};

use super::truth::Truth;

/// The figures; none where the annotations hold nothing to measure them on.
#[derive(Debug, Clone, PartialEq)]
pub struct Score {
    /// Average precision over IoU 0.50 to 0.95, classes averaged.
    pub ap: Option<f64>,
    /// The same at IoU 0.50.
    pub ap50: Option<f64>,
    /// The same at IoU 0.75.
    pub ap75: Option<f64>,
    /// Average recall over IoU 0.50 to 0.95 with at most 100 detections a picture.
    pub ar: Option<f64>,
    /// Each class that has objects, best first.
    pub classes: Vec<ClassScore>,
}

/// The figures of one class.
#[derive(Debug, Clone, PartialEq)]
pub struct ClassScore {
    /// Its name in the annotations.
    pub name: String,
    /// Its category id.
    pub id: u64,
    /// Objects of it in the pictures; crowds, which count neither way, left out.
    pub objects: usize,
    /// Average precision over IoU 0.50 to 0.95.
    pub ap: Option<f64>,
    /// The same at IoU 0.50.
    pub ap50: Option<f64>,
}

/// Measures `results` against what is there.
///
/// # Errors
/// When hotcoco refuses its input.
pub fn score(truth: Truth, results: Vec<Annotation>) -> Result<Score> {
    let ids: Vec<u64> = truth.pictures.iter().map(|picture| picture.id).collect();
    let found = truth.coco.load_res_anns(results).context("The detections cannot be measured")?;
    let mut eval = COCOeval::new(truth.coco, found, IouType::Bbox);
    eval.params.img_ids = ids;
    eval.evaluate().context("The annotations cannot be used to measure")?;
    eval.accumulate();
    // Computes the summary; the lines themselves are for printing.
    let _ = eval.summarize_lines();
    // The order is pycocotools': AP, AP50, AP75, AP by size (3), AR at 1, 10 and 100 detections, AR by size (3).
    let stat = |at: usize| eval.stats().and_then(|stats| stats.get(at)).copied().and_then(measured);
    Ok(Score { ap: stat(0), ap50: stat(1), ap75: stat(2), ar: stat(8), classes: classes(&eval) })
}

/// -1 stands for "nothing to measure".
fn measured(value: f64) -> Option<f64> {
    (value > -1.0).then_some(value)
}

fn classes(eval: &COCOeval) -> Vec<ClassScore> {
    let Some(all) = eval.accumulated() else { return Vec::new() };
    let shape = &all.shape;
    let area = eval.params.all_area_idx();
    let mean = |thresholds: std::ops::Range<usize>, class: usize| {
        let places = thresholds.flat_map(|t| (0..shape.r).map(move |r| (t, r)));
        let values: Vec<f64> = places
            .filter_map(|(t, r)| measured(all.precision[all.precision_idx(t, r, class, area, shape.m - 1)]))
            .collect();
        (!values.is_empty()).then(|| values.iter().sum::<f64>() / values.len() as f64)
    };
    let objects = |id: u64| {
        let wanted = |image: &u64| eval.params.img_ids.binary_search(image).is_ok();
        let all = eval.coco_gt().dataset.annotations.iter();
        all.filter(|one| one.category_id == id && !one.iscrowd && wanted(&one.image_id)).count()
    };
    let scored = all.cat_ids.iter().enumerate().map(|(class, id)| ClassScore {
        name: eval.coco_gt().cat_name(*id),
        id: *id,
        objects: objects(*id),
        // The thresholds start at 0.50.
        ap50: mean(0..1, class),
        ap: mean(0..shape.t, class),
    });
    let mut classes: Vec<_> = scored.filter(|class| class.objects > 0).collect();
    classes.sort_by(|a, b| {
        let by_score = b.ap50.unwrap_or(-1.0).total_cmp(&a.ap50.unwrap_or(-1.0));
        by_score.then(b.objects.cmp(&a.objects)).then(a.id.cmp(&b.id))
    });
    classes
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use hotcoco::{COCO, Dataset};
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Case {
        annotations: Dataset,
        results: Vec<Annotation>,
        expected: Expected,
    }

    #[derive(Deserialize)]
    struct Expected {
        ap: f64,
        ap50: f64,
        ap75: f64,
        ar: f64,
        classes: Vec<(u64, f64, f64)>,
    }

    /// `scripts/compare_metric.py` made the case, and pycocotools its figures.
    #[test]
    fn the_figures_are_pycocotools() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/metric/case.json");
        let case: Case = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let truth = Truth::of(COCO::from_dataset(case.annotations), Path::new("nowhere"), None);
        let score = score(truth, case.results).unwrap();
        let close = |ours: Option<f64>, theirs: f64| assert!((ours.unwrap() - theirs).abs() < 1e-4);
        let Expected { ap, ap50, ap75, ar, classes } = case.expected;
        for (ours, theirs) in [(score.ap, ap), (score.ap50, ap50), (score.ap75, ap75), (score.ar, ar)] {
            close(ours, theirs);
        }
        assert_eq!(score.classes.len(), classes.len());
        assert!(score.classes.is_sorted_by(|a, b| a.ap50 >= b.ap50));
        for (id, ap, ap50) in classes {
            let ours = score.classes.iter().find(|class| class.id == id).unwrap();
            close(ours.ap, ap);
            close(ours.ap50, ap50);
        }
    }

    #[test]
    fn without_objects_there_is_no_figure_instead_of_a_bad_one() {
        let dataset = serde_json::json!({
            "images": [{"id": 1, "file_name": "a.png", "width": 10, "height": 10}],
            "categories": [{"id": 1, "name": "cat"}],
            "annotations": [],
        });
        let coco = COCO::from_dataset(serde_json::from_value(dataset).unwrap());
        let score = score(Truth::of(coco, Path::new("nowhere"), None), Vec::new()).unwrap();
        assert_eq!(score, Score { ap: None, ap50: None, ap75: None, ar: None, classes: Vec::new() });
    }
}
