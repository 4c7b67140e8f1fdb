//! Pages by bitmap, as runs.

use crate::memory::PAGE;
use std::ops::Range;

/// Number of pages in a bitmap.
pub(super) fn count(bitmap: &[u64]) -> u64 {
    bitmap.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// A bitmap with every page of `bytes` bytes.
pub(super) fn all(bytes: u64) -> Vec<u64> {
    // Memory is a multiple of 1 MiB, so there is no last word in part.
    vec![u64::MAX; usize::try_from(bytes / PAGE / 64).unwrap_or(usize::MAX)]
}

/// Adds the pages of `more`.
pub(super) fn add(bitmap: &mut [u64], more: &[u64]) {
    for (word, more) in bitmap.iter_mut().zip(more) {
        *word |= more;
    }
}

/// Byte offsets of runs of pages, none longer than `longest` bytes.
pub(super) fn runs(bitmap: &[u64], longest: u64) -> impl Iterator<Item = Range<u64>> + '_ {
    let pages = bitmap.iter().enumerate().flat_map(|(index, word)| {
        let base = index as u64 * 64;
        (0..64).filter(move |bit| word >> bit & 1 != 0).map(move |bit| (base + bit) * PAGE)
    });
    let mut pages = pages.peekable();
    std::iter::from_fn(move || {
        let start = pages.next()?;
        let mut end = start + PAGE;
        while end - start < longest && pages.next_if_eq(&end).is_some() {
            end += PAGE;
        }
        Some(start..end)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_one_run() {
        let bitmap = [1 << 63 | 0b110, 0b1, 0];
        let found: Vec<_> = runs(&bitmap, 1 << 20).map(|run| run.start / PAGE..run.end / PAGE).collect();
        assert_eq!(found, [1..3, 63..65]);
        assert_eq!(count(&bitmap), 4);
        assert_eq!(runs(&all(1 << 20), 1 << 18).count(), 4);
        assert_eq!(runs(&[0, 0], 1 << 20).count(), 0);
        let mut sum = [1, 0];
        add(&mut sum, &[2, 4]);
        assert_eq!(sum, [3, 4]);
    }
}
