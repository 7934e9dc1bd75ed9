//! Tests of holds: their causes, times and counts, and their end by hand.

use super::removals::{burst, remove};
use super::*;

/// A hold as registry, cause and number of keys, with its times in seconds after a start.
type Summary = (RegistryId, HoldCause, usize, u64, u64);

impl TestCatalog {
    /// Summarizes the holds.
    fn holds(&self, start: Instant) -> Vec<Summary> {
        let holds = self.catalog.holds().into_iter();
        let seconds = |time: Instant| (time - start).as_secs();
        holds
            .map(|Hold { registry, cause, keys, since, until, .. }| {
                (registry, cause, keys, seconds(since), seconds(until))
            })
            .collect()
    }

    /// Returns the number of certain holds of the first registry since startup.
    fn begun(&self, cause: HoldCause) -> u64 {
        *self.catalog.stats().registries[0].holds.get(cause)
    }

    /// Releases the holds of registries; returns their number of keys.
    fn release(&mut self, registries: &[u8]) -> Vec<(RegistryId, HoldCause, usize)> {
        let registries = registries.iter().map(|index| id(*index)).collect();
        self.catalog.apply(Update::Release(Release { ticket: 7, registries }), self.now);
        let released = self.catalog.settle(self.now).released;
        assert_eq!(released.iter().map(|released| released.ticket).collect::<Vec<_>>(), [7]);
        let holds = released.into_iter().flat_map(|released| released.holds);
        holds.map(|hold| (hold.registry, hold.cause, hold.keys)).collect()
    }

    /// Lists keys of registry `index`, which is complete with them.
    fn list_of(&mut self, index: u8, kind: ListKind, keys: &[String]) {
        self.apply(index, Change::list_begin(kind));
        for text in keys {
            self.apply(index, Change::Put(put(text, 0, 0)));
        }
        self.apply(index, Change::ListEnd { revision: 0 });
        self.settle();
    }
}

#[test]
fn each_cause_is_a_hold_with_its_own_times() {
    let (mut test, _) = burst(40, 12);
    let start = test.now;
    assert_eq!(test.holds(start), [(id(0), HoldCause::Expiry, 12, 0, 12)]);
    test.now += SECOND;
    test.reply(1..=12, []);
    test.now += SECOND;
    remove(&mut test, 12..14);
    test.settle();
    assert_eq!(test.holds(start), [(id(0), HoldCause::Expiry, 14, 0, 14)], "those that follow");
    test.now += SECOND;
    test.list(ListKind::Reconnect, &hello_keys(30..40));
    assert_eq!(
        test.holds(start),
        [(id(0), HoldCause::Reconnect, 16, 3, 15), (id(0), HoldCause::Expiry, 14, 0, 14)]
    );
    test.advance(9 * SECOND);
    assert_eq!(
        test.holds(start),
        [(id(0), HoldCause::Reconnect, 16, 3, 15), (id(0), HoldCause::Expiry, 2, 0, 14)]
    );
    test.advance(2 * SECOND);
    assert_eq!(test.holds(start), [(id(0), HoldCause::Reconnect, 16, 3, 15)]);
    test.advance(SECOND);
    assert_eq!(test.holds(start), []);
}

#[test]
fn a_hold_whose_keys_are_back_is_over_and_the_next_begins_anew() {
    let mut test = TestCatalog::new();
    let start = test.now;
    test.list(ListKind::Routine, &hello_keys(0..20));
    test.list(ListKind::Restored, &hello_keys(0..10));
    assert_eq!(test.holds(start), [(id(0), HoldCause::Restored, 10, 0, 12)]);
    for key in &hello_keys(10..20) {
        test.put(key, 1, 0);
    }
    test.settle();
    assert_eq!((test.holds(start), test.held_keys()), (vec![], 0));
    test.now += 2 * SECOND;
    test.list(ListKind::Restored, &hello_keys(0..19));
    assert_eq!(test.holds(start), [(id(0), HoldCause::Restored, 1, 2, 14)]);
    assert_eq!(test.begun(HoldCause::Restored), 2);
}

#[test]
fn a_hold_counts_once_it_is_certain_that_it_is_a_mass_removal() {
    let begun = |test: &TestCatalog| {
        let certain = test.catalog.holds().first().map(|hold| hold.is_certain);
        (test.begun(HoldCause::Expiry), certain)
    };
    // Programs that stop together look like a mass expiry until the registry has replied.
    let (mut test, _) = burst(40, 12);
    assert_eq!((test.held_keys(), begun(&test)), (12, (0, Some(false))));
    test.reply([], 1..=12);
    assert_eq!((test.held_keys(), begun(&test)), (0, (0, None)));
    // Leases that are gone are one.
    let (mut test, _) = burst(40, 12);
    test.reply(1..=12, []);
    assert_eq!((test.held_keys(), begun(&test)), (12, (1, Some(true))));
    test.now += SECOND;
    remove(&mut test, 12..14);
    test.settle();
    assert_eq!((test.held_keys(), begun(&test)), (14, (1, Some(true))), "still the same hold");
    // So are removals about which the registry does not reply.
    let (mut test, _) = burst(40, 12);
    test.advance(5 * SECOND);
    assert_eq!((test.held_keys(), begun(&test)), (12, (1, Some(true))));
}

#[test]
fn a_release_removes_the_held_keys_of_the_named_registries_at_once() {
    let mut test = TestCatalog::with(|_| {}, 3);
    let keys = |index: u8, count: u8| -> Vec<String> {
        let name = ["a", "b", "c"][usize::from(index)];
        (0..count).map(|n| format!("/service/d/n/{name}/latest/10.0.0.{n}:80")).collect()
    };
    for index in 0..3 {
        test.list_of(index, ListKind::Routine, &keys(index, 20));
        test.list_of(index, ListKind::Restored, &keys(index, 5));
    }
    let served = |test: &TestCatalog| ["a", "b", "c"].map(|name| test.served(name));
    assert_eq!((served(&test), test.held_keys()), ([20, 20, 20], 45));
    // A key that is back is not held, and stays.
    test.apply(1, Change::Put(put(&keys(1, 20)[19], 0, 0)));
    assert_eq!(test.release(&[1]), [(id(1), HoldCause::Restored, 14)]);
    assert_eq!((served(&test), test.held_keys()), ([20, 6, 20], 30));
    assert_eq!(test.release(&[1]), [], "nothing is left to release");
    // Unknown registries are ignored.
    let rest = [0, 2].map(|index| (id(index), HoldCause::Restored, 15));
    assert_eq!(test.release(&[0, 1, 2, 9]), rest);
    assert_eq!((served(&test), test.held_keys()), ([5, 6, 5], 0));
    assert_eq!(test.settle(), Settled::default(), "no hold remains to end");
}

#[test]
fn released_keys_are_not_held_again_by_a_late_reply_about_their_leases() {
    let (mut test, outcome) = burst(40, 12);
    assert_eq!(outcome.lease_checks.len(), 1);
    assert_eq!(test.release(&[0]), [(id(0), HoldCause::Expiry, 12)]);
    assert_eq!((test.served("hello"), test.held_keys()), (28, 0));
    test.reply(1..=12, []);
    assert_eq!((test.served("hello"), test.held_keys()), (28, 0));
    test.now += SECOND;
    // The mass expiry is over: a single delete applies at once, and many become a new hold.
    remove(&mut test, 12..13);
    assert_eq!(test.settle().lease_checks, []);
    assert_eq!((test.served("hello"), test.held_keys()), (27, 0));
    remove(&mut test, 13..25);
    assert_eq!(test.settle().lease_checks.len(), 1);
    assert_eq!((test.served("hello"), test.held_keys()), (27, 12));
}

#[test]
fn a_release_makes_published_removals_final() {
    // Nine removals are published, and would come back if more leases turned out to be gone.
    let (mut test, _) = burst(20, 9);
    assert_eq!(test.release(&[0]), []);
    remove(&mut test, 9..12);
    test.settle();
    test.reply(1..=12, []);
    assert_eq!((test.served("hello"), test.held_keys()), (8, 0));
}

#[test]
fn a_release_during_the_lists_after_a_reconnect_ends_the_holds_so_far() {
    let names: Vec<String> = (0..20).map(|n| format!("s{n}")).collect();
    let list = |test: &mut TestCatalog, kind, name: &str, count: u8| {
        let scope = ListScope::Service(name.into());
        test.apply(0, Change::ListBegin { kind, scope });
        for n in 0..count {
            let text = format!("{name}/10.0.0.{n}:80");
            let registration = registration(&format!("/service/d/n/{name}/latest/10.0.0.{n}:80"));
            let (key, content) = (text.into(), Ok(registration));
            test.apply(0, Change::Put(Put { key, revision: 0, lease: 0, content }));
        }
        test.apply(0, Change::ListEnd { revision: 0 });
    };
    let names_change = |kind| Change::ServiceNames {
        kind,
        names: names.iter().map(|name| name.as_str().into()).collect(),
    };
    let mut test = TestCatalog::new();
    test.apply(0, names_change(ListKind::Routine));
    for name in &names {
        list(&mut test, ListKind::Routine, name, 1);
    }
    test.settle();
    test.apply(0, names_change(ListKind::Reconnect));
    for name in &names[..5] {
        list(&mut test, ListKind::Reconnect, name, 0);
    }
    test.settle();
    assert_eq!((test.catalog.services().count(), test.held_keys()), (20, 5));
    assert_eq!(test.begun(HoldCause::Reconnect), 0, "it may turn out to be no mass removal");
    assert_eq!(test.release(&[0]), [(id(0), HoldCause::Reconnect, 5)]);
    assert_eq!((test.catalog.services().count(), test.held_keys()), (15, 0));
    for name in &names[5..] {
        list(&mut test, ListKind::Reconnect, name, 0);
    }
    test.settle();
    assert_eq!((test.catalog.services().count(), test.held_keys()), (15, 15));
    assert_eq!(test.begun(HoldCause::Reconnect), 1);
}
