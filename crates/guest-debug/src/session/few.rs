//! A sorted set that seldom has more than one element.

/// Needs no memory of its own for one element: a breakpoint is asked for by one address, and planted at one place, as a
/// rule, and there can be thousands.
#[derive(Debug)]
pub(super) enum Few<T> {
    One(T),
    /// Ascending. Empty in an empty set.
    More(Vec<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::More(Vec::new())
    }
}

impl<T: Copy + Ord> Few<T> {
    /// Of a list that ascends.
    pub(super) fn from_ascending(list: impl ExactSizeIterator<Item = T>) -> Self {
        let mut list = list;
        match (list.len(), list.next()) {
            (1, Some(one)) => Self::One(one),
            (_, first) => Self::More(first.into_iter().chain(list).collect()),
        }
    }

    pub(super) fn as_slice(&self) -> &[T] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::More(list) => list,
        }
    }

    pub(super) fn insert(&mut self, new: T) {
        match self {
            Self::One(one) if *one == new => {}
            Self::One(one) => *self = Self::More(vec![new.min(*one), new.max(*one)]),
            Self::More(list) if list.is_empty() => *self = Self::One(new),
            Self::More(list) => {
                if let Err(at) = list.binary_search(&new) {
                    list.insert(at, new);
                }
            }
        }
    }

    pub(super) fn remove(&mut self, old: T) {
        match self {
            Self::One(one) if *one == old => *self = Self::default(),
            Self::One(_) => {}
            Self::More(list) => {
                if let Ok(at) = list.binary_search(&old) {
                    list.remove(at);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_is_a_sorted_set(first: BTreeSet<u8>, changes: Vec<(bool, u8)>) {
            let mut set = first.clone();
            let mut few = Few::from_ascending(first.into_iter());
            for (insert, value) in changes {
                if insert {
                    set.insert(value);
                    few.insert(value);
                } else {
                    set.remove(&value);
                    few.remove(value);
                }
                prop_assert_eq!(few.as_slice(), set.iter().copied().collect::<Vec<_>>());
            }
        }
    }
}
