//! One function over many items on all cores, results in order.

use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Items that a thread takes at a time: below this a thread costs more than it saves.
const BLOCK: usize = 32;

/// `f` of every item, on so many threads, or one per processor. Threads take blocks as they come free, so that long items do not keep the others waiting.
pub(super) fn parallel_map<T: Sync, R: Send>(
    items: &[T],
    threads: Option<usize>,
    f: impl Fn(&T) -> R + Sync,
) -> Vec<R> {
    let blocks: Vec<&[T]> = items.chunks(BLOCK).collect();
    let all = || std::thread::available_parallelism().map_or(1, NonZero::get);
    let cores = threads.unwrap_or_else(all).min(blocks.len());
    if cores <= 1 {
        return items.iter().map(f).collect();
    }
    let next = AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        loop {
            let block = next.fetch_add(1, Ordering::Relaxed);
            let Some(items) = blocks.get(block) else { return done };
            done.push((block, items.iter().map(&f).collect::<Vec<R>>()));
        }
    };
    let mut done: Vec<(usize, Vec<R>)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, Vec<(usize, Vec<R>)>>| {
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        };
        workers.into_iter().flat_map(join).collect()
    });
    done.sort_unstable_by_key(|(block, _)| *block);
    done.into_iter().flat_map(|(_, results)| results).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order() {
        for count in [0, 1, BLOCK, BLOCK + 1, 10 * BLOCK + 3] {
            let items: Vec<usize> = (0..count).collect();
            assert!(parallel_map(&items, None, |i| i * 2).into_iter().eq((0..count).map(|i| i * 2)));
        }
    }
}
