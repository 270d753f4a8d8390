//! Marks: what becomes true once something has got as far as they say.
//!
//! Owns their order, and which of them are kept. It must not know what they mean; asks no clock.
//! Invariants: a mark is returned only when what it waits for has been reached; the last mark is
//! always kept; there are never more than [`MARKS_MAX`], whatever waits. Marks that are left out
//! only make the answer coarser.

use std::collections::VecDeque;

/// The most marks that wait.
const MARKS_MAX: usize = 64;

/// Marks in the order in which they were set, each with what it waits for.
#[derive(Clone, Debug)]
pub struct Marks<K, V> {
    waiting: VecDeque<(K, V)>,
    /// One of so many marks is kept, and the last.
    stride: usize,
    /// How many marks the last one stands for.
    merged: usize,
}

impl<K, V> Default for Marks<K, V> {
    fn default() -> Self {
        Self { waiting: VecDeque::new(), stride: 1, merged: 0 }
    }
}

impl<K: Ord, V> Marks<K, V> {
    /// Sets a mark that says more than all before it. A mark that waits for as much, or more, is
    /// of no further use.
    pub fn set(&mut self, reach: K, value: V) {
        while self.waiting.back().is_some_and(|(waiting, _)| *waiting >= reach) {
            self.waiting.pop_back();
        }
        if self.merged < self.stride && self.waiting.pop_back().is_some() {
            self.merged += 1;
        } else {
            self.merged = 1;
        }
        self.waiting.push_back((reach, value));
        if self.waiting.len() > MARKS_MAX {
            let last = self.waiting.len() - 1;
            let mut at = 0..;
            self.waiting.retain(|_| at.next().is_none_or(|at| (last - at).is_multiple_of(2)));
            self.stride *= 2;
        }
    }

    /// Takes out the last mark that has been reached, and those before it.
    pub fn take(&mut self, reached: &K) -> Option<V> {
        let mut last = None;
        while let Some((reach, value)) = self.waiting.pop_front() {
            if reach > *reached {
                self.waiting.push_front((reach, value));
                break;
            }
            last = Some(value);
        }
        if self.waiting.len() < MARKS_MAX / 4 {
            self.stride = (self.stride / 2).max(1);
        }
        if self.waiting.is_empty() {
            self.merged = self.stride;
        }
        last
    }

    /// Whether no mark waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn marks(reaches: impl IntoIterator<Item = u64>) -> Marks<u64, u64> {
        let mut marks = Marks::default();
        reaches.into_iter().enumerate().for_each(|(value, reach)| marks.set(reach, value as u64));
        marks
    }

    #[test]
    fn the_last_mark_that_is_reached_counts() {
        let mut marks = marks([10, 20, 30]);
        assert_eq!(marks.take(&9), None);
        assert_eq!(marks.take(&29), Some(1));
        assert_eq!(marks.take(&29), None, "it is returned once");
        assert_eq!((marks.take(&30), marks.is_empty()), (Some(2), true));
    }

    #[test]
    fn a_later_mark_that_waits_for_less_takes_the_place_of_those_before() {
        let mut marks = marks([10, 40, 30, 30]);
        assert_eq!(marks.take(&30), Some(3));
        assert!(marks.is_empty());
    }

    /// With any lag, the mark that is returned is behind by not much more than the lag.
    #[test]
    fn a_steady_lag_lets_marks_through() {
        for lag in [1_u64, 3, 60, 500, 5000] {
            let mut marks = Marks::default();
            let mut last = None;
            for now in 0..lag * 10 {
                marks.set(now, now);
                last = marks.take(&now.saturating_sub(lag)).or(last);
                if now > lag * 3 {
                    let behind = now - last.unwrap();
                    assert!(behind <= lag + lag / 8 + 1, "{behind} behind at {now} with a lag of {lag}");
                }
            }
            assert!(marks.waiting.len() <= MARKS_MAX);
        }
    }

    #[test]
    fn the_last_mark_is_kept_however_many_there_are() {
        let mut marks = marks(0..100_000);
        assert!(marks.waiting.len() <= MARKS_MAX);
        assert_eq!(marks.take(&100_000), Some(99_999));
    }
}
