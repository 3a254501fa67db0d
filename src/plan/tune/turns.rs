//! Timing variants in turns.

use super::run::{Run, unless_no_room};
use crate::gpu::{Gpu, GpuError};
use std::time::{Duration, Instant};

/// What the default runs for before anything is timed: a GPU that had nothing to do, as while kernels were compiled, has low clocks.
const WARM_UP: Duration = Duration::from_millis(50);
/// Some take longer: until two of its times in a row differ by less than this share, or so much has gone by.
const STEADY: f64 = 0.05;
const LONGEST_WARM_UP: Duration = Duration::from_millis(200);
/// How often each is timed: once by a single launch, then by groups of launches.
const ROUNDS: usize = 6;
/// From this round on only those are timed that could still be the fastest.
const FINAL: usize = 3;
/// A variant whose first launch took so many times as long as the best is not timed again.
const FAR: f64 = 3.0;
/// One that is this many times slower than the best after a few rounds is not either.
const HOPELESS: f64 = 1.5;

/// Times all in alternation, so that a busy moment of the device does not hit one variant alone, and every other time the other
/// way round, so that no variant always follows the same one; within `budget`, but for the default's first time.
pub(super) fn time_in_turns(
    gpu: &Gpu,
    runs: &mut [Option<Run<'_>>],
    budget: Duration,
    about_to: &mut dyn FnMut(&[&str]),
) -> Result<(), GpuError> {
    let software = gpu.profile().cpu;
    let start = Instant::now();
    if let (false, Some(default)) = (software, runs.iter_mut().flatten().next()) {
        about_to(&[&default.variant.name]);
        default.time(gpu)?;
        // single launches of a short kernel would leave it idle between
        unless_no_room(default.lengthen(gpu, software))?;
        let mut last = f64::INFINITY;
        loop {
            default.seconds = f64::INFINITY;
            default.time(gpu)?;
            let steady = (default.seconds / last - 1.0).abs() < STEADY;
            last = default.seconds;
            let spent = start.elapsed();
            if spent >= WARM_UP && (steady || spent >= LONGEST_WARM_UP) {
                break;
            }
        }
        // some of it was at low clocks; the first figures of all are of one launch
        unless_no_room(default.record(gpu, 1))?;
        default.seconds = f64::INFINITY;
    }
    for round in 0..ROUNDS {
        let best = runs.iter().flatten().map(|r| r.seconds).fold(f64::INFINITY, f64::min);
        let worth_timing = |run: &&mut Run<'_>| match round {
            0 => true,
            // without a figure where the driver gave none
            1..FINAL => !run.seconds.is_finite() || run.seconds <= FAR * best,
            _ => run.seconds < HOPELESS * best,
        };
        let mut turns: Vec<&mut Run<'_>> = runs.iter_mut().flatten().filter(worth_timing).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        for (n, run) in turns.into_iter().enumerate() {
            if start.elapsed() > budget && (round, n) > (0, 0) {
                match round {
                    // beside others' groups the figure of a single launch would be no match
                    1 if run.is_short(software) => {}
                    1 => continue,
                    _ => return Ok(()),
                }
            }
            about_to(&[&run.variant.name]);
            let lengthened = if round == 1 { run.lengthen(gpu, software) } else { Ok(()) };
            unless_no_room(lengthened.and_then(|()| run.time(gpu)))?;
        }
    }
    Ok(())
}
