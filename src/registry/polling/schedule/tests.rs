//! Tests of the schedule.

use super::*;

/// Removal grace of the tests.
const PATIENCE: Duration = Duration::from_secs(12);

fn names(count: usize) -> BTreeSet<Box<str>> {
    (0..count).map(|number| format!("service-{number}").into()).collect()
}

/// Reads all lists that are due; each has an instance and the revision `1`.
fn read_all(schedule: &mut PollSchedule, now: Instant) -> usize {
    let mut count = 0;
    while let Some((name, known)) = schedule.next(now) {
        match known {
            Some(_) => schedule.unchanged(&name, now),
            None => schedule.read(&name, Some("1".into()), 1, now),
        }
        count += 1;
    }
    count
}

fn after_round(max_requests: usize, count: usize, now: Instant) -> PollSchedule {
    let tuning = PollingTuning { max_requests, ..PollingTuning::default() };
    let mut schedule = PollSchedule::new(&tuning, &ConnectionTuning::default(), PATIENCE);
    schedule.begin_round(&names(count), now);
    assert_eq!(read_all(&mut schedule, now), count);
    assert!(schedule.is_round_complete());
    schedule.end_round(now);
    schedule
}

fn milliseconds(count: u64) -> impl Iterator<Item = Duration> {
    (1..=count).map(Duration::from_millis)
}

#[test]
fn queries_are_spread_evenly_over_a_second() {
    let start = Instant::now();
    let mut schedule = after_round(200, 100, start);
    let reads: Vec<usize> =
        milliseconds(5_000).map(|time| read_all(&mut schedule, start + time)).collect();
    assert_eq!(reads.iter().sum::<usize>(), 500, "each list once a second");
    let busiest = reads.chunks(100).map(|chunk| chunk.iter().sum::<usize>()).max();
    assert!(busiest.is_some_and(|reads| reads <= 12), "{busiest:?} in 100 ms");
}

#[test]
fn many_lists_are_polled_less_often() {
    let start = Instant::now();
    let mut schedule = after_round(200, 1_000, start);
    let reads: usize = milliseconds(12_500).map(|time| read_all(&mut schedule, start + time)).sum();
    assert!((1_980..=2_020).contains(&reads), "{reads} in two passes of 6.25 s");
}

#[test]
fn a_list_that_has_changed_is_polled_every_second_for_a_while() {
    let start = Instant::now();
    let mut schedule = after_round(10, 80, start);
    let changing: Arc<str> = "service-7".into();
    let mut times = Vec::new();
    for time in milliseconds(100_000) {
        let now = start + time;
        while let Some((name, _)) = schedule.next(now) {
            let changes = name == changing && times.is_empty();
            if name == changing {
                times.push(now);
            }
            if changes {
                schedule.read(&name, Some("2".into()), 2, now);
            } else {
                schedule.unchanged(&name, now);
            }
        }
    }
    let changed = times[0];
    let within = |from: u64, to: u64| {
        let since = |time: &&Instant| time.duration_since(changed).as_secs();
        times.iter().filter(|time| (from..to).contains(&since(time))).count()
    };
    assert!(within(0, 30) >= 25, "{} in the first 30 s", within(0, 30));
    assert!(within(31, 61) <= 5, "{} in the next 30 s", within(31, 61));
}

#[test]
fn an_empty_list_is_no_change_of_an_empty_one() {
    let start = Instant::now();
    let mut schedule = after_round(200, 1, start);
    let name: Arc<str> = "service-0".into();
    assert!(!schedule.is_still_empty(&name, 0), "it had an instance");
    schedule.read(&name, Some("2".into()), 0, start);
    assert!(schedule.is_still_empty(&name, 0) && !schedule.is_still_empty(&name, 1));
    schedule.begin_round(&names(1), start);
    assert!(!schedule.is_still_empty(&name, 0), "a round needs each list");
}

#[test]
fn a_missing_list_is_known_to_be_empty_until_the_next_round() {
    let start = Instant::now();
    let mut schedule = after_round(200, 1, start);
    let name: Arc<str> = "service-0".into();
    assert!(!schedule.is_known_empty(&name), "it had an instance");
    schedule.read(&name, None, 0, start);
    assert!(schedule.is_known_empty(&name));
    schedule.begin_round(&names(1), start);
    assert!(!schedule.is_known_empty(&name), "a round needs each list");
}

#[test]
fn lists_that_a_round_finds_emptied_are_watched() {
    let start = Instant::now();
    let mut schedule = after_round(10, 80, start);
    schedule.begin_round(&names(80), start);
    while let Some((name, _)) = schedule.next(start) {
        let instances = usize::from(&*name != "service-7");
        schedule.read(&name, None, instances, start);
    }
    schedule.end_round(start);
    let mut times = Vec::new();
    for time in milliseconds(3_000) {
        while let Some((name, _)) = schedule.next(start + time) {
            if &*name == "service-7" {
                times.push(time);
            }
            schedule.unchanged(&name, start + time);
        }
    }
    assert!(times.len() >= 2, "{times:?}, for an interval of 10 s");
}

#[test]
fn a_list_with_instances_outlives_its_name() {
    let start = Instant::now();
    let mut schedule = after_round(200, 3, start);
    let outcome = schedule.set_names(&names(1), start);
    assert_eq!(outcome, NamesOutcome { changed: false, vanished: 2 });
    assert_eq!(schedule.set_names(&names(1), start), NamesOutcome::default());
    assert_eq!(schedule.names().len(), 3);
    schedule.read(&"service-2".into(), None, 0, start);
    let outcome = schedule.set_names(&names(1), start);
    assert_eq!(outcome, NamesOutcome { changed: true, vanished: 0 });
    assert_eq!((schedule.names().len(), schedule.due.len()), (2, 2));
    assert!(schedule.set_names(&names(4), start).changed);
    assert_eq!(schedule.names().len(), 4);
}

#[test]
fn a_failed_query_is_tried_again_and_completes_a_round() {
    let start = Instant::now();
    let connection = ConnectionTuning::default();
    let mut schedule = PollSchedule::new(&PollingTuning::default(), &connection, PATIENCE);
    schedule.begin_round(&names(1), start);
    let (name, known) = schedule.next(start).unwrap();
    assert_eq!(known, None);
    assert!(!schedule.failed(&name, start), "the first failure");
    assert!(schedule.is_round_complete());
    schedule.end_round(start);
    let later = start + connection.backoff_max;
    let (name, known) = schedule.next(later).unwrap();
    assert_eq!(known, None, "it has not been read yet");
    assert!(!schedule.is_unread(&name) && schedule.failed(&name, later));
    let (name, _) = schedule.next(later + connection.backoff_max).unwrap();
    schedule.read(&name, Some("1".into()), 1, later);
    assert!(!schedule.is_unread(&name) && !schedule.failed(&name, later));
}

#[test]
fn concurrent_queries_are_limited_and_names_are_forgotten_after_theirs() {
    let start = Instant::now();
    let connection = ConnectionTuning::default();
    let tuning = PollingTuning { max_reads: 2, ..PollingTuning::default() };
    let mut schedule = PollSchedule::new(&tuning, &connection, PATIENCE);
    schedule.begin_round(&names(4), start);
    let reading = [schedule.next(start).unwrap().0, schedule.next(start).unwrap().0];
    assert_eq!((schedule.next(start), schedule.wake()), (None, None));
    schedule.set_names(&BTreeSet::new(), start);
    assert_eq!((schedule.names().len(), schedule.wake()), (2, None));
    for name in &reading {
        schedule.read(name, None, 0, start);
    }
    assert!(schedule.is_round_complete() && schedule.forget_unnamed());
    assert!(schedule.names().is_empty());
    assert!(schedule.set_names(&names(1), start).changed);
    assert_eq!(read_all(&mut schedule, start), 1);
}

#[test]
fn queries_stay_below_the_limit_while_all_lists_change_or_fail() {
    let start = Instant::now();
    for share_of_failures in [0, 3] {
        let mut schedule = after_round(200, 1_000, start);
        let mut number = 0;
        let reads: Vec<usize> = milliseconds(10_000)
            .map(|time| {
                let (now, mut count) = (start + time, 0);
                if time.subsec_millis() == 0 {
                    schedule.count_queries(20, now);
                    count += 20;
                }
                while let Some((name, _)) = schedule.next(now) {
                    (number, count) = (number + 1, count + 1);
                    if share_of_failures > 0 && number % share_of_failures == 0 {
                        schedule.failed(&name, now);
                    } else {
                        schedule.read(&name, Some(number.to_string().into()), 1, now);
                    }
                }
                count
            })
            .collect();
        let busiest = reads.windows(1_000).map(|second| second.iter().sum::<usize>()).max();
        // A second may begin with the queries for the names, and end with the next ones.
        assert!(busiest.is_some_and(|reads| reads <= 220), "{busiest:?} in a second");
        let all: usize = reads.iter().sum();
        assert!((1_900..=2_020).contains(&all), "{all} in 10 s");
    }
}

#[test]
fn lists_that_are_never_answered_leave_room_for_others() {
    /// Time after which a query fails.
    const LIMIT: Duration = Duration::from_secs(10);
    let start = Instant::now();
    let (tuning, connection) = (PollingTuning::default(), ConnectionTuning::default());
    let mut schedule = PollSchedule::new(&tuning, &connection, PATIENCE);
    schedule.begin_round(&names(17), start);
    let mut hanging = Vec::new();
    let (mut reads, mut round_end) = (Vec::new(), None);
    for time in milliseconds(90_000) {
        let now = start + time;
        hanging.retain(|(began, name)| {
            let is_over = now.duration_since(*began) >= LIMIT;
            if is_over {
                schedule.failed(name, now);
            }
            !is_over
        });
        while let Some((name, known)) = schedule.next(now) {
            // The last one in the order of the names.
            if &*name != "service-9" {
                hanging.push((now, name));
                continue;
            }
            reads.push(time);
            match known {
                Some(_) => schedule.unchanged(&name, now),
                None => schedule.read(&name, Some("1".into()), 1, now),
            }
        }
        if schedule.is_round_complete() {
            schedule.end_round(now);
            round_end = Some(time);
        }
    }
    assert!(round_end.is_some_and(|end| end <= 3 * LIMIT), "{round_end:?}");
    let later = reads.iter().filter(|time| **time >= Duration::from_secs(60)).count();
    assert!(later >= 25, "{later} reads in the last 30 s");
}

#[test]
fn new_names_do_not_keep_known_ones_waiting() {
    let start = Instant::now();
    let mut schedule = after_round(200, 200, start);
    schedule.set_names(&names(1_200), start);
    let mut known = BTreeSet::new();
    for time in milliseconds(3_000) {
        let now = start + time;
        while let Some((name, revision)) = schedule.next(now) {
            if revision.is_some() {
                schedule.unchanged(&name, now);
                known.insert(name);
            } else {
                schedule.read(&name, Some("1".into()), 1, now);
            }
        }
    }
    let count = names(200).iter().filter(|name| known.contains(&***name)).count();
    assert_eq!(count, 200, "known lists that were read in 3 s");
}

#[test]
fn a_list_that_lacks_instances_is_doubted_if_others_were_emptied() {
    let start = Instant::now();
    let mut schedule = after_round(200, 4, start);
    let [one, two, three]: [Arc<str>; 3] =
        ["service-0".into(), "service-1".into(), "service-2".into()];
    schedule.read(&three, None, 3, start);
    let empty = |schedule: &mut PollSchedule, name: &Arc<str>| {
        schedule.note_missing(name, start);
        schedule.read(name, None, 0, start);
    };
    empty(&mut schedule, &one);
    empty(&mut schedule, &one);
    assert!(!schedule.is_doubted(&three, 1, start), "one may have been stopped");
    empty(&mut schedule, &two);
    assert!(schedule.is_doubted(&three, 1, start), "two were emptied");
    assert!(!schedule.is_doubted(&three, 3, start), "it is complete");
    let later = start + PATIENCE;
    assert!(!schedule.is_doubted(&three, 1, later));
    schedule.set_names(&names(2), later);
    assert!(schedule.is_doubted(&three, 1, later), "a name has vanished");
}

#[test]
fn among_many_lists_some_may_be_emptied_without_doubt() {
    let start = Instant::now();
    let mut schedule = after_round(200, 1_000, start);
    schedule.read(&"service-999".into(), None, 3, start);
    for number in 0..10 {
        assert!(!schedule.is_doubted("service-999", 2, start), "{number} were emptied");
        schedule.note_missing(&format!("service-{number}"), start);
    }
    assert!(schedule.is_doubted("service-999", 2, start));
}
