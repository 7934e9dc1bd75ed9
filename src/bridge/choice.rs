//! The choice of an instance for a connection.

use std::net::SocketAddr;
use std::sync::Arc;

use super::instance::{InstanceState, Millis};

/// An instance with its weight for one name.
#[derive(Clone, Debug)]
pub(super) struct WeightedInstance {
    /// The state of the instance.
    pub(super) state: Arc<InstanceState>,
    /// The weight; an instance of weight 0 is used only if there is no other.
    pub(super) weight: u32,
}

/// Chooses the instance with the fewest open connections for its weight; ties by weight.
///
/// Instances that are set aside are chosen only if all others were tried; instances in `tried`
/// never. Of connections at the same time, one probes an instance whose pause has ended; a
/// connection that was refused, `is_refused`, leaves that to others. `draw` returns a random number
/// below its argument.
pub(super) fn choose<'i>(
    instances: &'i [WeightedInstance],
    tried: &[SocketAddr],
    is_refused: bool,
    now: Millis,
    mut draw: impl FnMut(u64) -> u64,
) -> Option<&'i Arc<InstanceState>> {
    let is_new = |instance: &&WeightedInstance| !tried.contains(&instance.state.address);
    let untried = || instances.iter().filter(is_new);
    let usable = || untried().filter(|instance| !instance.state.is_set_aside(now));
    let has_weight = |instance: &&WeightedInstance| instance.weight > 0;
    let has_not_failed = |instance: &&WeightedInstance| !is_refused || !instance.state.has_failed();
    loop {
        let chosen = least_loaded(usable().filter(has_weight).filter(has_not_failed), &mut draw)
            .or_else(|| least_loaded(usable().filter(has_weight), &mut draw))
            .or_else(|| least_loaded(usable(), &mut draw));
        match chosen {
            // Otherwise another connection was faster to probe it: it is set aside by now.
            Some(chosen) if !chosen.state.admit(now) => {}
            Some(chosen) => return Some(&chosen.state),
            None => return least_loaded(untried(), &mut draw).map(|last| &last.state),
        }
    }
}

/// Returns the instance with the lowest ratio of open connections to weight.
fn least_loaded<'i>(
    instances: impl Iterator<Item = &'i WeightedInstance>,
    draw: &mut impl FnMut(u64) -> u64,
) -> Option<&'i WeightedInstance> {
    let mut best: Option<(&WeightedInstance, u64)> = None;
    // The weights of all instances that are tied with the best one.
    let mut tied = 0;
    for instance in instances {
        let (open, weight) = (u64::from(instance.state.open()), u64::from(instance.weight.max(1)));
        let Some((chosen, chosen_open)) = best else {
            (best, tied) = (Some((instance, open)), weight);
            continue;
        };
        let chosen_weight = u64::from(chosen.weight.max(1));
        match (open * chosen_weight).cmp(&(chosen_open * weight)) {
            std::cmp::Ordering::Less => (best, tied) = (Some((instance, open)), weight),
            std::cmp::Ordering::Equal => {
                tied += weight;
                if draw(tied) < weight {
                    best = Some((instance, open));
                }
            }
            std::cmp::Ordering::Greater => {}
        }
    }
    best.map(|(instance, _)| instance)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::instance::OpenCount;
    use super::*;

    const NOW: Millis = Millis(1000);

    fn instances(weights: &[u32]) -> Vec<WeightedInstance> {
        let instance = |(number, weight): (u8, &u32)| WeightedInstance {
            state: Arc::new(InstanceState::new(([192, 0, 2, number], 80).into())),
            weight: *weight,
        };
        (0..).zip(weights).map(instance).collect()
    }

    /// Chooses an instance; returns its number.
    fn number(instances: &[WeightedInstance], tried: &[u8]) -> Option<u8> {
        let mut random = fastrand::Rng::new();
        let tried: Vec<_> = tried.iter().map(|n| ([192, 0, 2, *n], 80).into()).collect();
        let draw = |below| random.u64(..below);
        let chosen = choose(instances, &tried, !tried.is_empty(), NOW, draw)?;
        match chosen.address {
            SocketAddr::V4(address) => Some(address.ip().octets()[3]),
            SocketAddr::V6(_) => None,
        }
    }

    #[test]
    fn connections_are_spread_in_proportion_to_the_weights() {
        let instances = instances(&[1, 2, 5, 0]);
        let mut open = Vec::new();
        for _ in 0..800 {
            let chosen = number(&instances, &[]).unwrap();
            open.push(OpenCount::new(Arc::clone(&instances[usize::from(chosen)].state)));
        }
        let counts: Vec<_> = instances.iter().map(|one| one.state.open()).collect();
        assert_eq!(counts, [100, 200, 500, 0]);
    }

    #[test]
    fn ties_are_broken_by_weight() {
        let instances = instances(&[1, 3]);
        let mut counts: HashMap<u8, u32> = HashMap::new();
        for _ in 0..4000 {
            *counts.entry(number(&instances, &[]).unwrap()).or_default() += 1;
        }
        assert!((2800..3200).contains(&counts[&1]), "{counts:?}");
    }

    #[test]
    fn one_connection_probes_an_instance_whose_pause_has_ended() {
        let instances = instances(&[u32::MAX, 1]);
        instances[0].state.record_failure(Millis(0));
        assert_eq!([(); 3].map(|()| number(&instances, &[])), [Some(0), Some(1), Some(1)]);
        instances[0].state.record_success();
        assert_eq!(number(&instances, &[]), Some(0));
    }

    #[test]
    fn a_connection_that_was_refused_leaves_probes_to_others() {
        let instances = instances(&[u32::MAX, u32::MAX, 1]);
        for instance in &instances[..2] {
            instance.state.record_failure(Millis(0));
        }
        assert_ne!(number(&instances, &[]), Some(2), "their pauses have ended");
        assert_eq!(number(&instances, &[0]), Some(2));
        assert_eq!(number(&instances, &[0, 2]), Some(1), "rather than none");
    }

    #[test]
    fn instances_set_aside_are_the_last_resort_and_tried_ones_none() {
        let instances = instances(&[1, 1, 0]);
        instances[0].state.record_failure(NOW);
        assert_eq!(number(&instances, &[]), Some(1));
        assert_eq!(number(&instances, &[1]), Some(2), "weight 0 before one that is set aside");
        assert_eq!(number(&instances, &[1, 2]), Some(0));
        assert_eq!(number(&instances, &[0, 1, 2]), None);
        assert_eq!(number(&[], &[]), None);
    }
}
