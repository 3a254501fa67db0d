//! Tensors that are larger than one binding: their buffer is one, and kernels bind it in pieces under one name.
//!
//! Operations know nothing of it. A binding of groups of four that is over [`DeviceProfile::max_binding`] becomes several, and
//! the shader's `load_x` and `store_x` find the piece of an index: the same kernel, the same order, the same bits. What is bound
//! one element at a time, or for matrix units, cannot be in pieces.

use super::{
    Binding, DType, DeviceProfile, Dispatch, Launch, LaunchPlan, Operation, Place, TensorType, View,
};
use std::ops::Range;

/// The largest offset alignment that WebGPU lets a device ask for, in bytes.
pub const OFFSET_ALIGNMENT: u64 = 256;

impl DeviceProfile {
    /// Bytes of the pieces that so many bytes are bound in; `None` where one binding holds them.
    pub fn piece(&self, bytes: u64) -> Option<u64> {
        let over = self.max_binding > 0 && bytes > self.max_binding;
        over.then(|| (self.max_binding / OFFSET_ALIGNMENT).max(1) * OFFSET_ALIGNMENT)
    }

    /// Bindings that so many bytes take.
    pub fn bindings(&self, bytes: u64) -> usize {
        self.piece(bytes).map_or(1, |piece| bytes.div_ceil(piece) as usize)
    }

    /// Whether one kernel can bind so many buffers.
    pub fn binds(&self, buffers: usize) -> bool {
        self.max_storage_buffers == 0 || buffers <= self.max_storage_buffers as usize
    }

    /// The groups of four of a tensor in ranges that one binding holds, each a multiple of `step` groups but the last: for
    /// kernels whose invocations touch a group of every tensor and no other.
    pub fn ranges(&self, ty: TensorType, step: usize) -> impl Iterator<Item = Range<usize>> {
        let (count, size) = (ty.rows() * ty.cols4(), group_bytes(ty.dtype));
        let each = self.piece(ty.bytes()).map_or(count, |piece| (piece / size) as usize / step * step);
        let each = each.max(step);
        (0..count).step_by(each).map(move |first| first..(first + each).min(count))
    }
}

impl Launch<'_> {
    /// What an operation runs here, with pieces of what is larger than one binding, and parts of what is long.
    pub fn plan(&self, operation: &dyn Operation) -> LaunchPlan {
        let mut plan = operation.launch(self);
        if self.device.max_binding > 0 {
            self.bind_all_in_pieces(&mut plan);
        }
        plan.split_work(self.device);
        plan
    }

    fn bind_all_in_pieces(&self, plan: &mut LaunchPlan) {
        let workspaces = plan.workspaces.clone();
        for dispatch in &mut plan.dispatches {
            self.bind_in_pieces(dispatch, &workspaces);
            for variant in dispatch.alternatives.iter_mut().flat_map(|a| &mut a.variants) {
                let mut own = workspaces.clone();
                for &(place, bytes) in &variant.workspaces {
                    if let Place::Workspace(w) = place {
                        own.resize(own.len().max(w + 1), 0);
                        own[w] = bytes;
                    }
                }
                variant.dispatches.iter_mut().for_each(|d| self.bind_in_pieces(d, &own));
            }
        }
    }

    fn bind_in_pieces(&self, dispatch: &mut Dispatch, workspaces: &[u64]) {
        let whole = std::mem::take(&mut dispatch.bindings);
        for binding in &whole {
            let bytes = match binding.place {
                Place::Input(i) => self.inputs[i].bytes(),
                Place::Output(o) => self.outputs[o].bytes(),
                Place::Workspace(w) => workspaces[w],
            };
            let size = binding.size.unwrap_or(bytes - binding.offset);
            // a tensor in parts of its own has its name for them
            let alone = whole.iter().filter(|b| b.name == binding.name).count() == 1;
            let splits =
                alone && matches!(binding.view, View::Vec4 | View::Octet) && binding.dtype != DType::U32;
            match self.device.piece(size).filter(|_| splits) {
                None => dispatch.bindings.push(Binding { size: Some(size), ..*binding }),
                Some(piece) => {
                    let elements = (piece / array_element_bytes(binding)) as u32;
                    dispatch.bindings.extend((0..size).step_by(piece as usize).map(|start| Binding {
                        offset: binding.offset + start,
                        size: Some(piece.min(size - start)),
                        piece: Some(elements),
                        ..*binding
                    }));
                }
            }
        }
    }
}

impl Dispatch {
    /// Binds only these groups of four of every tensor that is bound in such groups.
    pub fn within(mut self, groups: &Range<usize>) -> Self {
        for binding in self.bindings.iter_mut().filter(|b| b.view == View::Vec4) {
            let size = group_bytes(binding.dtype);
            binding.offset = groups.start as u64 * size;
            binding.size = Some(groups.len() as u64 * size);
        }
        self
    }
}

/// Bytes of four elements.
fn group_bytes(dtype: DType) -> u64 {
    4 * dtype.size() as u64
}

/// Bytes of what the shader's array of a binding holds: groups of four or eight, or words of blocks.
fn array_element_bytes(binding: &Binding) -> u64 {
    match binding.view {
        _ if binding.dtype.is_quantised() => 4,
        View::Octet => 2 * group_bytes(binding.dtype),
        _ => group_bytes(binding.dtype),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::Shape;

    #[test]
    fn pieces_begin_where_bindings_may() {
        let device = DeviceProfile { max_binding: 1000, ..DeviceProfile::default() };
        assert_eq!((device.piece(1000), device.piece(1001)), (None, Some(768)));
        assert_eq!((device.bindings(1000), device.bindings(1537)), (1, 3));
        assert_eq!(DeviceProfile::default().piece(u64::MAX), None);
    }

    #[test]
    fn ranges_are_whole_steps_and_cover_all() {
        let device = DeviceProfile { max_binding: 1024, ..DeviceProfile::default() };
        let ranges = |n: usize, step| {
            device.ranges(TensorType::new(Shape::vector(n), DType::F32), step).collect::<Vec<_>>()
        };
        assert!(ranges(256, 1).into_iter().eq(std::iter::once(0..64)));
        assert_eq!(ranges(600, 1), [0..64, 64..128, 128..150]);
        assert_eq!(ranges(600, 48), [0..48, 48..96, 96..144, 144..150]);
        // a step that no binding holds is a range all the same, which is bound in pieces
        assert_eq!(ranges(600, 100), [0..100, 100..150]);
    }
}
