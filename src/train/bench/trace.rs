//! A timeline of dispatches in the trace event format (chrome://tracing, https://ui.perfetto.dev).
//!
//! Format: "Trace Event Format", complete events (`ph` "X") with times in microseconds.

use crate::gpu::DispatchTime;
use serde_json::{Value, json};

/// The trace of one pass: one row of the timeline, a span per dispatch with its estimated work.
pub fn trace(device: &str, dispatches: &[DispatchTime]) -> Value {
    let name =
        |name: &str, what: &str| json!({"name": name, "ph": "M", "pid": 1, "tid": 1, "args": {"name": what}});
    let mut events = vec![name("process_name", device), name("thread_name", "forward, reverse, update")];
    events.extend(dispatches.iter().map(|d| {
        json!({
            "name": format!("{} {}", d.kernel, d.detail).trim_end(),
            "cat": d.kernel,
            "ph": "X",
            "pid": 1,
            "tid": 1,
            "ts": d.start * 1e6,
            "dur": d.seconds * 1e6,
            "args": {
                "variant": d.variant,
                "GFLOP": d.cost.flops / 1e9,
                "MB": d.cost.bytes / 1e6,
                "GFLOP/s": d.cost.flops / d.seconds.max(1e-9) / 1e9,
                "GB/s": d.cost.bytes / d.seconds.max(1e-9) / 1e9,
            },
        })
    }));
    json!({ "traceEvents": events, "displayTimeUnit": "ms" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Cost;

    #[test]
    fn spans_are_in_microseconds() {
        let dispatch = DispatchTime {
            kernel: "matmul",
            detail: "NT 4x4x4".into(),
            variant: "rows".into(),
            on_host: false,
            start: 0.5,
            seconds: 0.25,
            cost: Cost { flops: 5e8, bytes: 2e6 },
        };
        let trace = trace("a device", &[dispatch]);
        let span = &trace["traceEvents"][2];
        assert_eq!((span["ts"].as_f64(), span["dur"].as_f64()), (Some(5e5), Some(2.5e5)));
        assert_eq!(
            (span["name"].as_str(), span["args"]["GFLOP/s"].as_f64()),
            (Some("matmul NT 4x4x4"), Some(2.0))
        );
    }
}
