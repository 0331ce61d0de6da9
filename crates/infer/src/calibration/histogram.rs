//! How often an activation has which magnitude, and from where on it is best cut off.

/// Bins of a histogram. A byte has 255 steps: this many tell where in a step a value lies even when most of the range
/// is cut off.
const BINS: usize = 4096;
/// The least power of two that the bins reach to: less is as good as zero.
const MIN_EXPONENT: i32 = -64;

/// Magnitudes from 0 to a power of two, in equal bins. Zeros, which any scale gets right, are not counted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Histogram {
    /// Empty until something was seen.
    counts: Vec<u64>,
    /// Of two: where the last bin ends.
    exponent: i32,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: Vec::new(), exponent: MIN_EXPONENT }
    }
}

impl Histogram {
    /// Counts values, of which only the magnitudes matter.
    pub(super) fn add(&mut self, values: &[f32]) {
        let largest = values.iter().fold(0.0, |largest: f32, value| largest.max(value.abs()));
        if largest == 0.0 {
            return;
        }
        // The least power of two over it.
        let exponent = (largest.log2().floor() as i32 + 1).max(MIN_EXPONENT);
        self.widen(exponent);
        let per_value = BINS as f32 / 2f32.powi(self.exponent);
        for value in values.iter().filter(|value| **value != 0.0) {
            // The logarithm was rounded.
            let bin = ((value.abs() * per_value) as usize).min(BINS - 1);
            self.counts[bin] += 1;
        }
    }

    /// Counts what another has counted.
    pub(super) fn merge(&mut self, mut other: Self) {
        if other.counts.is_empty() {
            return;
        }
        self.widen(other.exponent);
        other.widen(self.exponent);
        self.counts.iter_mut().zip(other.counts).for_each(|(count, more)| *count += more);
    }

    /// Lets the bins reach to 2^`exponent` at least.
    fn widen(&mut self, exponent: i32) {
        if self.counts.is_empty() {
            self.counts.resize(BINS, 0);
            self.exponent = self.exponent.max(exponent);
        }
        while self.exponent < exponent {
            // Twice as wide: pairs become one.
            for bin in 0..BINS {
                let pair = self.counts.get(2 * bin..2 * bin + 2);
                self.counts[bin] = pair.map_or(0, |pair| pair.iter().sum());
            }
            self.exponent += 1;
        }
    }

    /// Where to cut off magnitudes that are held in `steps` steps, so that the mean squared error is least: rounding
    /// costs Δ²/12 for each value that is not cut off (Δ the width of a step, the error being spread evenly over it), and
    /// cutting off costs the square of what is cut off. None when nothing was seen.
    pub(super) fn clip(&self, steps: u8) -> Option<f64> {
        let width = 2f64.powi(self.exponent) / BINS as f64;
        let counts: Vec<(f64, f64)> = self
            .counts
            .iter()
            .enumerate()
            .map(|(bin, count)| ((bin as f64 + 0.5) * width, *count as f64))
            .collect();
        let error = |clip: f64| -> f64 {
            let rounding = (clip / f64::from(steps)).powi(2) / 12.0;
            let cost = |magnitude: f64| if magnitude < clip { rounding } else { (magnitude - clip).powi(2) };
            counts.iter().map(|(magnitude, count)| cost(*magnitude) * count).sum()
        };
        let last = self.counts.iter().rposition(|count| *count > 0)?;
        let clips = (1..=last + 1).map(|bins| bins as f64 * width);
        clips.map(|clip| (clip, error(clip))).min_by(|a, b| a.1.total_cmp(&b.1)).map(|(clip, _)| clip)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[f32]) -> Histogram {
        let mut histogram = Histogram::default();
        histogram.add(values);
        histogram
    }

    #[test]
    fn neither_order_nor_split_matters() {
        let small: Vec<f32> = (0..1000).map(|n| (n * 7 % 501) as f32 / 400.0).collect();
        let large: Vec<f32> = (0..1000).map(|n| (n * 11 % 499) as f32 / -10.0).collect();
        let together = of(&[small.clone(), large.clone()].concat());
        let mut one = of(&small);
        one.add(&large);
        let mut other = of(&large);
        other.merge(of(&small));
        assert_eq!((&one, &other), (&together, &together));
        other.merge(Histogram::default());
        assert_eq!(other, together);
        assert_eq!(together.counts.iter().sum::<u64>(), 1995);
    }

    #[test]
    fn evenly_spread_values_are_kept_whole_and_a_stray_is_cut_off_as_far_as_it_pays() {
        let even: Vec<f32> = (0..=10_000).map(|n| n as f32 / 1000.0).collect();
        let clip = of(&even).clip(255).unwrap();
        assert!((9.9..=10.01).contains(&clip), "{clip}");
        // With n values under the clip c and one stray s, n·(c/255)²/12 + (s − c)² is least at s / (1 + n / (12·255²)).
        let mut stray = even.repeat(20);
        stray.push(40.0);
        let clip = of(&stray).clip(255).unwrap();
        let least = 40.0 / (1.0 + 200_000.0 / (12.0 * 255.0 * 255.0));
        assert!((clip - least).abs() < 0.05, "{clip} instead of {least}");
    }

    #[test]
    fn nothing_but_zeros_is_nothing() {
        assert_eq!(of(&[0.0; 10]).clip(255), None);
        assert_eq!(Histogram::default().clip(255), None);
    }
}
