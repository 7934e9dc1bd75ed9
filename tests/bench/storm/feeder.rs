//! Publishes changes at a steady rate.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use svcdns::service::Change;

use super::content::{Shape, Store, VALUE};
use super::figures::Spread;

/// Figures of the publications.
#[derive(Default)]
pub(crate) struct Publications {
    /// Duration of each publication.
    took: Vec<Duration>,
    /// Number of changes in each.
    sizes: Vec<usize>,
    /// Time from when the first change was due to the end of the publication.
    late: Vec<Duration>,
    /// Duration of all storms.
    period: Duration,
}

impl Publications {
    pub(crate) fn print(&self, load: &str, rate: u32) {
        let changes: usize = self.sizes.iter().sum();
        let sizes = Spread::new(self.sizes.iter().map(|size| *size as f64).collect());
        println!(
            "\nThe storm with {load}: {changes} changes in {} publications, \
             {:.0} changes per second ({rate} were due)",
            self.sizes.len(),
            changes as f64 / self.period.as_secs_f64()
        );
        println!("per publication                      mean     p50     p99     max");
        let mean = changes as f64 / self.sizes.len() as f64;
        println!(
            "changes                          {mean:>8.2} {:>7.0} {:>7.0} {:>7.0}",
            sizes.median(),
            sizes.percentile(0.99),
            sizes.percentile(1.0)
        );
        for (name, times) in
            [("duration, µs", &self.took), ("delay of its first change, µs", &self.late)]
        {
            let mean = times.iter().sum::<Duration>().as_secs_f64() * 1e6 / times.len() as f64;
            let spread = Spread::of(times.iter().copied());
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| spread.percentile(share) * 1e3);
            println!("{name:<36} {mean:>4.0} {p50:>7.0} {p99:>7.0} {max:>7.0}");
        }
    }
}

/// Publishes `rate` changes per second until it is stopped.
///
/// All changes that are due become one publication, so that a late publisher catches up with
/// larger ones, as the server does.
pub(crate) fn feed(
    store: &mut Store,
    shape: Shape,
    rate: u32,
    stop: &AtomicBool,
    publications: &mut Publications,
) {
    // With the default timer slack, the kernel may wake us 50 µs late.
    prctl::set_timerslack(1).unwrap();
    let (begun, every, mut storm) =
        (Instant::now(), Duration::from_secs(1) / rate, Storm::default());
    let mut done = 0;
    while !stop.load(Ordering::Relaxed) {
        let due = u32::try_from(begun.elapsed().as_nanos() / every.as_nanos()).unwrap();
        if due == done {
            thread::sleep((begun + every * (done + 1)).saturating_duration_since(Instant::now()));
            continue;
        }
        let began = Instant::now();
        let changes: Vec<_> = (done..due).map(|_| storm.next(store, shape)).collect();
        let read = Instant::now();
        store.apply(changes);
        let out = Instant::now();
        publications.took.push(out - read);
        publications.sizes.push((due - done) as usize);
        publications.late.push(began - (begun + every * (done + 1)) + (out - began));
        done = due;
    }
    publications.period += begun.elapsed();
    let last = storm.undo(store, shape);
    store.apply(last);
}

/// A sequence of changes of one instance after another.
///
/// Each instance changes its weight, disappears, and returns.
#[derive(Default)]
struct Storm {
    step: u32,
    service: usize,
    instance: usize,
}

impl Storm {
    fn next(&mut self, store: &mut Store, shape: Shape) -> Change {
        let step = self.step % 3;
        self.step += 1;
        if step == 0 {
            (self.service, self.instance) =
                (fastrand::usize(..shape.services), fastrand::usize(..shape.instances));
        }
        let key = shape.key(self.service, self.instance);
        match step {
            0 => store.put(
                &key,
                &format!(
                    r#"{{"insecure":true,"protocol":"http","weight":{}}}"#,
                    fastrand::u16(2..10)
                ),
            ),
            1 => store.delete(&key),
            _ => store.put(&key, VALUE),
        }
    }

    /// Returns the change that restores the current instance.
    fn undo(&self, store: &mut Store, shape: Shape) -> Option<Change> {
        (self.step > 0).then(|| store.put(&shape.key(self.service, self.instance), VALUE))
    }
}
