//! From a graph to something that can be replayed: dead code out, a slot for each value, kernels bound to buffers.
//!
//! A [`Layout`] assigns values to slots for the largest size of a network; smaller sizes of the same network reuse the
//! assignment, so the plans of all sizes share one set of buffers.

mod bindings;
mod program;
mod slots;
mod stream;
pub mod tune;

pub use bindings::{Bindings, ParameterSpace, leaf_bytes};
pub use program::{PlanError, Program, Slots};
pub use slots::{Layout, MemoryReport};
pub use stream::{StreamLayout, Streamed};
