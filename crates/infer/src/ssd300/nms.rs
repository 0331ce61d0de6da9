//! From what the heads said to a frame's detections.

use common::detection::{BoundingBox, Detection};

use super::boxes::{self, DefaultBox};
use super::{BOXES_PER_CELL, CELLS, NetworkError, RawHeads};

/// Scores at or under this are noise: nothing under it leaves the detector.
pub const MIN_SCORE: f32 = 0.05;
/// Candidates a class brings into suppression: its best.
pub const MAX_CANDIDATES: usize = 200;

/// What a job says about suppression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NmsOptions {
    /// Of two boxes of a class that overlap (intersection over union) by this or more, the weaker is dropped.
    pub iou: f32,
    /// The most detections a frame keeps: its best.
    pub max_det: u32,
}

impl Default for NmsOptions {
    /// NVIDIA's published values.
    fn default() -> Self {
        Self { iou: 0.5, max_det: 200 }
    }
}

/// A class found in a default box, before suppression.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// 0-based, background not counted.
    pub class: u16,
    /// Softmax probability.
    pub score: f32,
    /// The default box it comes from.
    pub index: u32,
    /// Where it is; may reach out of the picture.
    pub bbox: BoundingBox,
}

/// The detections of one picture of a batch, best first; ties by class, then by default box.
///
/// # Errors
/// [`NetworkError::NotFinite`] when an output is no number.
pub fn detections(
    raw: &RawHeads,
    picture: usize,
    defaults: &[DefaultBox],
    options: NmsOptions,
) -> Result<Vec<Detection>, NetworkError> {
    let mut candidates = Vec::new();
    for scale in 0..CELLS.len() {
        gather(raw.cells(picture, scale), scale, raw.classes(), defaults, &mut candidates)?;
    }
    Ok(suppress(candidates, options))
}

/// Adds the candidates of one map. `cells` as [`RawHeads::cells`] gives them.
fn gather(
    cells: &[f32],
    scale: usize,
    classes: usize,
    defaults: &[DefaultBox],
    candidates: &mut Vec<Candidate>,
) -> Result<(), NetworkError> {
    let boxes = BOXES_PER_CELL[scale];
    // A probability is at most exp(logit − largest logit): most boxes are decided without a softmax.
    let reach = MIN_SCORE.ln() - 1e-3;
    for (cell, values) in cells.chunks_exact(boxes * (4 + classes)).enumerate() {
        let (offsets, logits) = values.split_at(boxes * 4);
        for (kind, (offset, logit)) in
            offsets.as_chunks::<4>().0.iter().zip(logits.chunks_exact(classes)).enumerate()
        {
            let object = largest(&logit[1..]);
            let top = if logit[0] > object { logit[0] } else { object };
            // Written so that a NaN, which compares as false, does not pass for "nothing here".
            if object < top + reach && top.is_finite() {
                continue;
            }
            let sum: f32 = logit.iter().map(|value| (value - top).exp()).sum();
            if !sum.is_finite() || offset.iter().any(|value| !value.is_finite()) {
                return Err(NetworkError::NotFinite);
            }
            let index = boxes::index(scale, cell, kind);
            for (class, value) in logit[1..].iter().enumerate() {
                if *value < top + reach {
                    continue;
                }
                let score = (value - top).exp() / sum;
                if score > MIN_SCORE {
                    let bbox = defaults[index].moved(*offset);
                    candidates.push(Candidate { class: class as u16, score, index: index as u32, bbox });
                }
            }
        }
    }
    Ok(())
}

/// The largest value; NaN when there is one, so that it is noticed.
fn largest(values: &[f32]) -> f32 {
    // Eight running maxima: one instruction a step, where a single one would wait for itself.
    let mut lanes = [f32::NEG_INFINITY; 8];
    let mut odd = [0.0; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        for ((lane, odd), value) in lanes.iter_mut().zip(&mut odd).zip(chunk) {
            *lane = if *value > *lane { *value } else { *lane };
            // 0 · x is 0 for numbers, NaN for NaN and the infinities.
            *odd += 0.0 * *value;
        }
    }
    for value in rest {
        lanes[0] = if *value > lanes[0] { *value } else { lanes[0] };
        odd[0] += 0.0 * *value;
    }
    lanes.into_iter().fold(f32::NEG_INFINITY, f32::max) + odd.iter().sum::<f32>()
}

/// Per-class non-maximum suppression, then the frame's best.
#[must_use]
pub fn suppress(mut candidates: Vec<Candidate>, options: NmsOptions) -> Vec<Detection> {
    // Class by class, best first, ties by default box.
    candidates.sort_unstable_by(|a, b| {
        a.class.cmp(&b.class).then(b.score.total_cmp(&a.score)).then(a.index.cmp(&b.index))
    });
    let mut kept: Vec<Candidate> = Vec::new();
    for class in candidates.chunk_by(|a, b| a.class == b.class) {
        let first = kept.len();
        for candidate in class.iter().take(MAX_CANDIDATES) {
            // Boxes without area have no defined overlap (NaN, which compares as false): the weaker goes.
            if kept[first..].iter().all(|other| boxes::overlap(&other.bbox, &candidate.bbox) < options.iou) {
                kept.push(*candidate);
            }
        }
    }
    kept.sort_unstable_by(|a, b| {
        b.score.total_cmp(&a.score).then(a.class.cmp(&b.class)).then(a.index.cmp(&b.index))
    });
    kept.truncate(options.max_det as usize);
    kept.iter().map(|c| Detection { bbox: boxes::clamped(c.bbox), score: c.score, class: c.class }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(class: u16, score: f32, index: u32, [min_x, min_y, max_x, max_y]: [f32; 4]) -> Candidate {
        Candidate { class, score, index, bbox: BoundingBox { min_x, min_y, max_x, max_y } }
    }

    const LEFT: [f32; 4] = [0.0, 0.0, 0.2, 0.2];
    /// Overlaps `LEFT` by a third.
    const BESIDE: [f32; 4] = [0.1, 0.0, 0.3, 0.2];
    const FAR: [f32; 4] = [0.7, 0.7, 0.9, 0.9];

    fn kept(candidates: &[Candidate], iou: f32, max_det: u32) -> Vec<(u16, f32)> {
        let found = suppress(candidates.to_vec(), NmsOptions { iou, max_det });
        found.iter().map(|d| (d.class, d.score)).collect()
    }

    #[test]
    fn the_weaker_of_two_that_overlap_goes_within_a_class_only() {
        let candidates = [
            candidate(3, 0.6, 0, LEFT),
            candidate(3, 0.9, 1, BESIDE),
            candidate(5, 0.3, 2, LEFT),
            candidate(3, 0.2, 3, FAR),
        ];
        assert_eq!(kept(&candidates, 0.3, 200), [(3, 0.9), (5, 0.3), (3, 0.2)]);
        assert_eq!(kept(&candidates, 0.5, 200).len(), 4);
    }

    #[test]
    fn what_was_dropped_drops_nothing() {
        // The middle one falls to the first; the third overlaps only the middle one.
        let third = [0.2, 0.0, 0.4, 0.2];
        let candidates =
            [candidate(0, 0.9, 0, LEFT), candidate(0, 0.8, 1, BESIDE), candidate(0, 0.7, 2, third)];
        assert_eq!(kept(&candidates, 0.3, 200), [(0, 0.9), (0, 0.7)]);
    }

    #[test]
    fn ties_go_by_class_then_default_box() {
        let place = |x: f32| [x, 0.0, x + 0.01, 0.01];
        let mut candidates = vec![
            candidate(7, 0.5, 40, place(0.1)),
            candidate(2, 0.5, 50, place(0.2)),
            candidate(7, 0.5, 10, place(0.3)),
            candidate(7, 0.6, 99, place(0.4)),
        ];
        let options = NmsOptions { iou: 0.5, max_det: 3 };
        let order = |candidates: &[Candidate]| {
            let found = suppress(candidates.to_vec(), options);
            found.iter().map(|d| (d.class, (d.bbox.min_x * 10.0).round() as u32)).collect::<Vec<_>>()
        };
        let expected = [(7, 4), (2, 2), (7, 3)];
        assert_eq!(order(&candidates), expected);
        candidates.reverse();
        assert_eq!(order(&candidates), expected);
    }

    #[test]
    fn a_class_brings_its_best_two_hundred_and_a_frame_keeps_its_best() {
        let apart = |n: u32| {
            let (x, y) = ((n % 20) as f32 / 20.0, (n / 20) as f32 / 20.0);
            [x, y, x + 0.04, y + 0.04]
        };
        let candidates: Vec<_> =
            (0..300).map(|n| candidate(0, 0.1 + n as f32 / 1000.0, n, apart(n))).collect();
        let all = kept(&candidates, 0.5, 1000);
        assert_eq!(all.len(), MAX_CANDIDATES);
        assert_eq!((all[0].1, all[199].1), (0.1 + 299.0 / 1000.0, 0.1 + 100.0 / 1000.0));
        assert_eq!(kept(&candidates, 0.5, 7), all[..7]);
        assert_eq!(kept(&candidates, 0.5, 0), []);
    }

    #[test]
    fn boxes_end_at_the_picture_but_are_compared_whole() {
        // Inside the picture these two are the same; as a whole they overlap by a quarter.
        let wide = [-0.6, 0.0, 0.2, 0.2];
        let found = suppress(
            vec![candidate(0, 0.9, 0, LEFT), candidate(0, 0.8, 1, wide)],
            NmsOptions { iou: 0.5, max_det: 200 },
        );
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].bbox, found[1].bbox);
    }

    /// One cell of the last map: four boxes, three outputs.
    fn cell(logits: [[f32; 3]; 4]) -> Vec<f32> {
        let mut values = vec![0.0; 16];
        values.extend(logits.as_flattened());
        values
    }

    #[test]
    fn scores_are_probabilities_over_the_least_score() {
        let nothing = [20.0, 0.0, 0.0];
        // 1/(1 + e^-3 + e^3) = 0.0453 and e^3/… = 0.909; the fourth box has three equal thirds.
        let cells = cell([nothing, [0.0, -3.0, 3.0], nothing, [1.5, 1.5, 1.5]]);
        let mut candidates = Vec::new();
        gather(&cells, 5, 3, &boxes::default_boxes(), &mut candidates).unwrap();
        let found: Vec<_> = candidates.iter().map(|c| (c.class, c.index)).collect();
        assert_eq!(found, [(1, 8729), (0, 8731), (1, 8731)]);
        let sum = 1.0 + (-3f32).exp() + 3f32.exp();
        assert!((candidates[0].score - 3f32.exp() / sum).abs() < 1e-6);
        assert!((candidates[2].score - 1.0 / 3.0).abs() < 1e-6);
    }

    #[test]
    fn what_is_no_number_is_an_error_and_not_an_empty_frame() {
        for (at, value) in [(16, f32::NAN), (17, f32::NAN), (16, f32::INFINITY), (25, f32::NAN)] {
            let mut cells = cell([[20.0, 0.0, 0.0]; 4]);
            cells[at] = value;
            let result = gather(&cells, 5, 3, &boxes::default_boxes(), &mut Vec::new());
            assert!(matches!(result, Err(NetworkError::NotFinite)), "{value} at {at}");
        }
    }
}
