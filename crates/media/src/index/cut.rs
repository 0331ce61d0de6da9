//! Cutting a video into segments.

use std::collections::VecDeque;

use super::FrameIndex;

/// Fewest frames of a segment, unless the whole video has fewer.
pub const SHORTEST_SEGMENT: u32 = 64;
/// Most frames of a segment.
pub const LONGEST_SEGMENT: u32 = 128;

/// Said when keyframes are so rare that decoding the segments one by one would decode the video more than
/// twice over: a mezzanine is needed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("keyframes are too far apart: {pre_roll} frames would be decoded for nothing, of {frames}")]
pub struct LongGops {
    /// Frames decoded only to reach a segment's first.
    pub pre_roll: u64,
    /// Frames of the video.
    pub frames: u32,
}

/// What one more segment costs (opening the file, seeking, a further lease), in decoded frames.
const COST_OF_A_SEGMENT: u64 = 8;

impl FrameIndex {
    /// Cuts the video into segments `(first, last)`, both inclusive, of 64 to 128 frames, such that the fewest
    /// frames are decoded only to reach a segment's first: at keyframes where they allow it, else inside a
    /// group of pictures. A video of fewer than 64 frames is one segment.
    ///
    /// # Errors
    /// [`LongGops`] when the frames decoded for nothing would be as many as the video's.
    pub fn cut(&self) -> Result<Vec<(u32, u32)>, LongGops> {
        let frames = u32::try_from(self.frames.len()).unwrap_or(u32::MAX);
        if frames <= LONGEST_SEGMENT {
            return Ok(if frames == 0 { Vec::new() } else { vec![(0, frames - 1)] });
        }
        // cost[i] is the least cost of cutting frames 0..i with a cut at i (only the last few are looked at again,
        // and kept), length[i] the segment's that ends there. The cheapest cut in the window behind i is kept at the
        // front of a queue of rising costs.
        let end = frames as usize;
        let (shortest, longest) = (SHORTEST_SEGMENT as usize, LONGEST_SEGMENT as usize);
        const KEPT: usize = 256;
        const { assert!(KEPT > LONGEST_SEGMENT as usize + 1 && LONGEST_SEGMENT <= u8::MAX as u32) };
        let mut costs = [u64::MAX; KEPT];
        let mut length = vec![0u8; end + 1];
        let mut window: VecDeque<usize> = VecDeque::new();
        let mut keyframe = 0;
        costs[0] = 0;
        for i in 1..=end {
            if i < end && self.frames[i].keyframe {
                keyframe = i;
            }
            let cost = |i: usize| costs[i % KEPT];
            if let Some(j) = i.checked_sub(shortest).filter(|&j| cost(j) < u64::MAX) {
                while window.back().is_some_and(|&b| cost(b) > cost(j)) {
                    window.pop_back();
                }
                window.push_back(j);
            }
            while window.front().is_some_and(|&f| f + longest < i) {
                window.pop_front();
            }
            let mut least = u64::MAX;
            if let Some(&j) = window.front() {
                let pre_roll = if i == end { 0 } else { i - keyframe };
                least = cost(j) + pre_roll as u64 + COST_OF_A_SEGMENT;
                length[i] = (i - j) as u8;
            }
            costs[i % KEPT] = least;
        }
        let mut segments = Vec::new();
        let mut next = frames;
        while next > 0 {
            let first = next - u32::from(length[next as usize]);
            segments.push((first, next - 1));
            next = first;
        }
        segments.reverse();
        let pre_roll = costs[end % KEPT].saturating_sub(COST_OF_A_SEGMENT * segments.len() as u64);
        if pre_roll >= u64::from(frames) { Err(LongGops { pre_roll, frames }) } else { Ok(segments) }
    }
}
