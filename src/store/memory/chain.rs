//! The entries whose slots have the same hash.

use super::entry::Entry;
use crate::request::Slot;

/// The entries of all slots with the same hash, in insertion order. A chain is never empty.
///
/// A chain usually has one entry: among a million slots, only about a hundred pairs have the same
/// hash. A chain is only one pointer wide, so the map's table stays small even though part of it is
/// unused.
pub(super) struct Chain(Box<Link>);

struct Link {
    entry: Entry,
    next: Option<Box<Link>>,
}

/// The outcome of [`Chain::take_if`].
pub(super) enum Taken {
    /// The entry, which was removed from the chain.
    Entry(Entry),
    /// The chain contains only the selected entry, which was not removed. The caller must remove
    /// the chain.
    Last,
    Nothing,
}

impl Chain {
    pub(super) fn new(entry: Entry) -> Self {
        Self(Box::new(Link { entry, next: None }))
    }

    pub(super) fn find(&self, slot: &Slot) -> Option<&Entry> {
        self.iter().find(|entry| entry.slot == *slot)
    }

    pub(super) fn find_mut(&mut self, slot: &Slot) -> Option<&mut Entry> {
        let mut link = Some(&mut *self.0);
        while let Some(Link { entry, next }) = link {
            if entry.slot == *slot {
                return Some(entry);
            }
            link = next.as_deref_mut();
        }
        None
    }

    /// Adds another slot's entry.
    pub(super) fn push(&mut self, entry: Entry) {
        let mut end = &mut self.0.next;
        while let Some(link) = end {
            end = &mut link.next;
        }
        *end = Some(Box::new(Link { entry, next: None }));
    }

    /// Removes and returns the first entry for which the condition is true.
    pub(super) fn take_if(&mut self, mut condition: impl FnMut(&mut Entry) -> bool) -> Taken {
        if condition(&mut self.0.entry) {
            let Some(next) = self.0.next.take() else {
                return Taken::Last;
            };
            return Taken::Entry(std::mem::replace(&mut self.0, next).entry);
        }
        let mut place = &mut self.0.next;
        while place.as_mut().is_some_and(|link| !condition(&mut link.entry)) {
            let Some(link) = place else { break };
            place = &mut link.next;
        }
        match place.take() {
            Some(link) => {
                *place = link.next;
                Taken::Entry(link.entry)
            }
            None => Taken::Nothing,
        }
    }

    /// Returns the entry in a chain that has exactly one entry.
    pub(super) fn into_entry(self) -> Entry {
        self.0.entry
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Entry> {
        std::iter::successors(Some(&*self.0), |link| link.next.as_deref()).map(|link| &link.entry)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(n: u8) -> Slot {
        Slot::from_bytes([n; Slot::LEN])
    }

    fn chain(slots: &[u8]) -> Chain {
        let mut chain = Chain::new(Entry::of_test(slot(slots[0]), 0));
        for &n in &slots[1..] {
            chain.push(Entry::of_test(slot(n), 0));
        }
        chain
    }

    fn slots(chain: &Chain) -> Vec<u8> {
        chain.iter().map(|entry| entry.slot.as_bytes()[0]).collect()
    }

    #[test]
    fn a_map_entry_is_one_pointer_to_a_small_allocation() {
        assert_eq!((size_of::<Chain>(), size_of::<Entry>(), size_of::<Link>()), (8, 80, 88));
    }

    #[test]
    fn each_slot_of_a_chain_is_found_and_no_other() {
        let mut chain = chain(&[1, 2, 3]);
        assert_eq!(slots(&chain), [1, 2, 3]);
        for n in 0..5 {
            let expected = (1..=3).contains(&n).then(|| slot(n));
            assert_eq!(chain.find(&slot(n)).map(|entry| entry.slot), expected);
            assert_eq!(chain.find_mut(&slot(n)).map(|entry| entry.slot), expected);
        }
    }

    #[test]
    fn whichever_entry_is_taken_the_others_stay() {
        for (taken, left) in [(1, [2, 3]), (2, [1, 3]), (3, [1, 2])] {
            let mut chain = chain(&[1, 2, 3]);
            match chain.take_if(|entry| entry.slot == slot(taken)) {
                Taken::Entry(entry) => assert_eq!(entry.slot, slot(taken)),
                Taken::Last | Taken::Nothing => panic!("{taken} was not taken"),
            }
            assert_eq!(slots(&chain), left);
            assert!(matches!(
                chain.take_if(|entry| entry.slot == slot(taken)),
                Taken::Nothing
            ));
            assert_eq!(slots(&chain), left);
        }
    }

    #[test]
    fn the_last_entry_leaves_with_its_chain() {
        let mut chain = chain(&[1, 2]);
        assert!(matches!(chain.take_if(|_| true), Taken::Entry(_)));
        assert!(matches!(chain.take_if(|_| false), Taken::Nothing));
        assert!(matches!(chain.take_if(|_| true), Taken::Last));
        assert_eq!(chain.into_entry().slot, slot(2));
    }
}
