//! Changes at a steady rate, each published as it comes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::prctl;
use svcdns::service::Change;

use super::content::{Shape, Store, VALUE};
use super::figures::Spread;

/// What was published.
#[derive(Default)]
pub(crate) struct Fed {
    /// How long each publication took.
    took: Vec<Duration>,
    /// How many changes each held.
    sizes: Vec<usize>,
    /// How late its first change was out.
    late: Vec<Duration>,
    /// How long changes came.
    period: Duration,
}

impl Fed {
    pub(crate) fn print(&self, load: &str, rate: u32) {
        let changes: usize = self.sizes.iter().sum();
        let sizes = Spread::new(self.sizes.iter().map(|size| *size as f64).collect());
        println!(
            "\nThe storm beside {load}: {changes} changes in {} publications, {:.0} changes a second ({rate} were due)",
            self.sizes.len(),
            changes as f64 / self.period.as_secs_f64()
        );
        println!("a publication                        mean     p50     p99     max");
        let mean = changes as f64 / self.sizes.len() as f64;
        println!(
            "changes                          {mean:>8.2} {:>7.0} {:>7.0} {:>7.0}",
            sizes.median(),
            sizes.percentile(0.99),
            sizes.percentile(1.0)
        );
        for (name, times) in
            [("time it takes, µs", &self.took), ("its first change is out late by, µs", &self.late)]
        {
            let mean = times.iter().sum::<Duration>().as_secs_f64() * 1e6 / times.len() as f64;
            let spread = Spread::of(times.iter().copied());
            let [p50, p99, max] = [0.5, 0.99, 1.0].map(|share| spread.percentile(share) * 1e3);
            println!("{name:<36} {mean:>4.0} {p50:>7.0} {p99:>7.0} {max:>7.0}");
        }
    }
}

/// Publishes so many changes a second until it is stopped. One is due every `1 / rate` s; whatever is due is one publication,
/// so that who is late catches up with larger ones, as the server itself does.
pub(crate) fn feed(store: &mut Store, shape: Shape, rate: u32, stop: &AtomicBool, fed: &mut Fed) {
    // The kernel may be late by 50 µs else.
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
        fed.took.push(out - read);
        fed.sizes.push((due - done) as usize);
        fed.late.push(began - (begun + every * (done + 1)) + (out - began));
        done = due;
    }
    fed.period += begun.elapsed();
    let last = storm.end(store, shape);
    store.apply(last);
}

/// An instance gets another weight, goes, and comes back; then another one.
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

    /// What makes all as it was.
    fn end(&self, store: &mut Store, shape: Shape) -> Option<Change> {
        (self.step > 0).then(|| store.put(&shape.key(self.service, self.instance), VALUE))
    }
}
