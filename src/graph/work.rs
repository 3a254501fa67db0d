//! How much work the device is given at a time: what runs for seconds without a pause ends in a reset of the device, on Windows after
//! two of them.
//!
//! Bounds are in estimated FLOPs, from the fastest kernel that was measured here, where that is on matrix units from the default of
//! its class, of which others are no small part; until one is, from the kind of device. The slowest kernels reach a tenth of that: the
//! FLOPs of those that were measured slower count as many times as the fastest would do in their time.

use super::{Cost, DeviceProfile, Dispatch, LaunchPlan};

/// What a submission, and a dispatch by itself, takes at the speed of the fastest kernel.
const SECONDS: f64 = 0.1;

/// FLOP/s of devices that nothing is known of: integrated ones and those in software, and discrete ones.
const SLOWEST: f64 = 400e9;
const DISCRETE: f64 = 2e12;

/// Beyond this a measurement is not believed.
const FASTEST: f64 = 100e12;

/// Bytes that a submission moves at most, on the same two kinds of device.
const SLOWEST_BYTES: f64 = 8e9;
const DISCRETE_BYTES: f64 = 40e9;

/// The name of the parameter that says where a part of a dispatch begins.
pub const FIRST_GROUP: &str = "first_group";

impl DeviceProfile {
    fn is_discrete(&self) -> bool {
        !self.cpu && !self.unified_memory
    }

    fn flops_per_second(&self) -> f64 {
        let guess = if self.is_discrete() { DISCRETE } else { SLOWEST };
        self.choices.fastest().map_or(guess, |fastest| fastest.min(FASTEST))
    }

    /// What a submission holds at most, unless one dispatch is more by itself.
    pub fn submission(&self) -> Cost {
        let bytes = if self.is_discrete() { DISCRETE_BYTES } else { SLOWEST_BYTES };
        Cost { flops: SECONDS * self.flops_per_second(), bytes }
    }
}

impl LaunchPlan {
    /// Makes several dispatches of each that has more work than a dispatch should: each takes a range of its workgroups.
    pub(super) fn split_work(&mut self, device: &DeviceProfile) {
        // nobody resets a device in software
        if device.cpu || device.choices.is_uncut() {
            return;
        }
        let most = SECONDS * device.flops_per_second();
        let split = |dispatches: &mut Vec<Dispatch>| {
            let whole = std::mem::take(dispatches);
            let parts = |dispatch: Dispatch| {
                let most = most / dispatch.slowness(device);
                dispatch.split(most)
            };
            dispatches.extend(whole.into_iter().flat_map(parts));
        };
        split(&mut self.dispatches);
        let alternatives = self.dispatches.iter_mut().flat_map(|d| &mut d.alternatives);
        alternatives.flat_map(|a| &mut a.variants).for_each(|variant| split(&mut variant.dispatches));
    }
}

/// Workgroups of one dimension of a grid that every device takes.
const MOST_GROUPS: u64 = 65_535;

impl Dispatch {
    /// How many times as long it takes as the fastest kernel would for as many FLOPs; 1 where nobody knows.
    fn slowness(&self, device: &DeviceProfile) -> f64 {
        self.speed.map_or(1.0, |speed| device.flops_per_second() / speed).max(1.0)
    }

    /// What it counts for in a submission, against [`DeviceProfile::submission`].
    pub fn load(&self, device: &DeviceProfile) -> Cost {
        Cost { flops: self.cost.flops * self.slowness(device), ..self.cost }
    }

    /// The dispatch in parts of at most so many FLOPs, where its kernel can begin anywhere; the first keeps the alternatives.
    fn split(mut self, most: f64) -> Vec<Dispatch> {
        let heavy = self.cost.flops > most && self.groups > 1 && self.shader.source.contains("group_index(");
        if !heavy {
            return vec![self];
        }
        // parts are not folded to two dimensions, where they would have surplus groups: those of the next part
        let each = ((most / self.cost.flops * self.groups as f64) as u64).clamp(1, MOST_GROUPS);
        let mut alternatives = self.alternatives.take();
        let part = |first: u64| {
            let groups = each.min(self.groups - first);
            let share = groups as f64 / self.groups as f64;
            let cost = Cost { flops: self.cost.flops * share, bytes: self.cost.bytes * share };
            let alternatives = alternatives.take();
            let part = Dispatch { groups, cost, alternatives, ..self.clone() };
            part.param(FIRST_GROUP, first as usize)
        };
        (0..self.groups).step_by(each as usize).map(part).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Choices, Param, Shader};
    use std::sync::Arc;

    fn heavy(groups: usize) -> Dispatch {
        let shader = Shader { name: "heavy", source: "group_index(" };
        Dispatch::new(shader, groups).cost(10e12, 1e9)
    }

    fn parts(dispatch: Dispatch, device: &DeviceProfile) -> Vec<(u64, Option<Param>)> {
        let mut plan = LaunchPlan::from(dispatch);
        plan.split_work(device);
        let total: f64 = plan.dispatches.iter().map(|d| d.cost.flops).sum();
        assert!((total - 10e12).abs() < 1.0, "{total}");
        plan.dispatches.iter().map(|d| (d.groups, d.params.first().map(|(_, first)| *first))).collect()
    }

    #[test]
    fn heavy_dispatches_are_cut_into_ranges_of_their_groups() {
        let choices = |gflops| {
            let mut choices = Choices::default();
            choices.reached(gflops);
            Arc::new(choices)
        };
        let fast = DeviceProfile { choices: choices(50_000.0), ..DeviceProfile::typical_gpu() };
        let first = |n| Some(Param::U32(n));
        assert_eq!(parts(heavy(100), &fast), [(50, first(0)), (50, first(50))]);
        let uncut = DeviceProfile { choices: Arc::new(Choices::default().uncut()), ..fast.clone() };
        assert_eq!(parts(heavy(100), &uncut), [(100, None)]);
        assert_eq!(parts(heavy(1), &fast), [(1, None)], "one workgroup cannot be cut");
        let beyond_belief = DeviceProfile { choices: choices(5e6), ..fast.clone() };
        assert_eq!(parts(heavy(100), &beyond_belief), [(100, None)]);
        assert_eq!(beyond_belief.submission().flops, 10e12);
        let many = parts(heavy(1_000_000), &fast);
        assert!(many.iter().all(|(groups, _)| *groups <= MOST_GROUPS) && many.len() == 16, "{many:?}");
        let software = DeviceProfile { cpu: true, ..fast.clone() };
        assert_eq!(parts(heavy(100), &software), [(100, None)]);
    }

    #[test]
    fn what_was_measured_slower_is_cut_shorter() {
        let mut choices = Choices::default();
        choices.reached(50_000.0);
        let device = DeviceProfile { choices: Arc::new(choices), ..DeviceProfile::typical_gpu() };
        let at = |speed: Option<f64>| Dispatch { speed, ..heavy(1_000) };
        // 10 TFLOP, a tenth of a second at a time
        for (speed, expected) in
            [(None, 2), (Some(50e12), 2), (Some(200e12), 2), (Some(5e12), 20), (Some(1e12), 100)]
        {
            assert_eq!(parts(at(speed), &device).len(), expected, "{speed:?}");
        }
        assert_eq!(at(Some(5e12)).load(&device), Cost { flops: 100e12, bytes: 1e9 });
        assert_eq!(at(None).load(&device), at(None).cost);
    }

    #[test]
    fn bounds_follow_what_was_measured() {
        let discrete = DeviceProfile::typical_gpu();
        let integrated = DeviceProfile { unified_memory: true, ..discrete.clone() };
        assert_eq!(discrete.submission().flops, 200e9);
        assert_eq!(integrated.submission(), Cost { flops: 40e9, bytes: 8e9 });
        let mut choices = Choices::default();
        choices.reached(300.0);
        choices.reached(1_500.0);
        choices.reached(20.0);
        let measured = DeviceProfile { choices: Arc::new(choices), ..integrated };
        assert_eq!(measured.submission().flops, 150e9);
    }
}
