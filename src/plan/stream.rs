//! Frozen weights that stay in host memory and come to the device block by block, while a recording runs.
//!
//! Two slots take turns: even blocks lie in one, odd ones in the other. A block is uploaded before the dispatches of the block
//! before it, in their submission, forward and in reverse. They share no buffer with the copy, so nothing orders the two: whether
//! they overlap is the driver's choice, since wgpu has one queue.
//!
//! In host memory a block is one buffer, with its weights where they are in the slot: a single copy moves it.

use crate::gpu::{Gpu, GpuError, Recording, Upload, allocation};
use crate::graph::{Graph, LeafKind, OFFSET_ALIGNMENT};
use std::collections::{BTreeMap, HashMap};

/// What a weight is streamed with: its block, and the copy that brings all of it.
#[derive(Clone)]
pub struct Streamed {
    pub block: usize,
    pub upload: Upload,
}

/// Where the streamed weights of a graph lie in the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamLayout {
    /// Leaf to its block and its offset in the block's slot.
    places: HashMap<String, (usize, u64)>,
    /// Bytes of each block in host memory.
    blocks: BTreeMap<usize, u64>,
    /// Bytes of a slot, and how many there are.
    pub slot_bytes: u64,
    pub slots: usize,
}

impl StreamLayout {
    /// Streams the frozen leaves for which `block` names one.
    pub fn new(graph: &Graph, block: impl Fn(&str) -> Option<usize>) -> Self {
        let mut blocks: BTreeMap<usize, u64> = BTreeMap::new();
        let mut places = HashMap::new();
        for leaf in graph.leaves().iter().filter(|l| l.kind == LeafKind::Frozen) {
            let ty = graph.type_of(leaf.value);
            let Some(block) = block(&leaf.name).filter(|_| ty.shape.dims().len() > 1) else { continue };
            let size = blocks.entry(block).or_default();
            places.insert(leaf.name.clone(), (block, *size));
            *size += ty.bytes().next_multiple_of(OFFSET_ALIGNMENT);
        }
        let slot_bytes = blocks.values().copied().max().unwrap_or(0);
        StreamLayout { places, slot_bytes, slots: blocks.len().min(2), blocks }
    }

    /// Bytes that the blocks take in host memory.
    pub fn host_bytes(&self) -> u64 {
        self.blocks.values().map(|&bytes| allocation(bytes)).sum()
    }

    /// Bytes that the slots take on the device.
    pub fn device_bytes(&self) -> u64 {
        self.slots as u64 * allocation(self.slot_bytes)
    }

    /// The memory of the blocks, still without content, and of the slots: the copy of each block from one to the other.
    ///
    /// # Errors
    /// Failed allocations.
    pub fn allocate(&self, gpu: &Gpu) -> Result<BTreeMap<usize, Upload>, GpuError> {
        let what = "weights of a block in host memory";
        let slots =
            (0..self.slots).map(|_| gpu.allocate(what, self.slot_bytes)).collect::<Result<Vec<_>, _>>()?;
        let upload = |(&block, &bytes): (&usize, &u64)| {
            let from = gpu.allocate_on_host(what, bytes)?.slice(0, bytes);
            Ok((block, Upload { from, to: slots[block % slots.len()].slice(0, bytes) }))
        };
        self.blocks.iter().map(upload).collect()
    }

    /// The block of a leaf and its offset in the block's slot; `None` for a leaf that lies on the device.
    pub fn place(&self, leaf: &str) -> Option<(usize, u64)> {
        self.places.get(leaf).copied()
    }
}

/// The stretches of a recording that read streamed blocks: from which step on, and which block.
#[derive(Debug, Default)]
pub(super) struct Stretches(Vec<(usize, usize)>);

impl Stretches {
    /// Notes that the step at this index reads a block.
    pub fn reads(&mut self, step: usize, block: usize) {
        if self.0.last().is_none_or(|(_, last)| *last != block) {
            self.0.push((step, block));
        }
    }

    /// When to upload which block: before the step at the index given, in order.
    fn schedule(&self) -> Vec<(usize, usize)> {
        let mut resident = [None, None];
        let mut uploads = Vec::new();
        for (i, &(start, block)) in self.0.iter().enumerate() {
            if resident[block % 2] == Some(block) {
                continue;
            }
            // one stretch ahead, where that one does not itself read this slot
            let ahead = i.checked_sub(1).map(|before| self.0[before]).filter(|(_, b)| b % 2 != block % 2);
            uploads.push((ahead.map_or(start, |(start, _)| start), block));
            resident[block % 2] = Some(block);
        }
        uploads
    }

    /// Puts the uploads into the recording.
    pub fn upload(&self, recording: &mut Recording, blocks: &HashMap<usize, Upload>) {
        for (before, block) in self.schedule() {
            if let Some(upload) = blocks.get(&block) {
                recording.upload(before, upload.clone());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{DType, Shape};

    #[test]
    fn blocks_share_two_slots() {
        let mut graph = Graph::new();
        for block in 0..3 {
            for (name, dims) in [("a", vec![8, 4]), ("b", vec![100, 4]), ("norm", vec![4])] {
                graph.frozen(format!("{block}.{name}"), Shape::new(&dims), DType::F32).unwrap();
            }
        }
        graph.frozen("head", Shape::matrix(8, 4), DType::F32).unwrap();
        let layout = StreamLayout::new(&graph, |name| name.split_once('.')?.0.parse().ok());
        assert_eq!((layout.slots, layout.slot_bytes), (2, 256 + 1792));
        assert_eq!((layout.device_bytes(), layout.host_bytes()), (2 * 2048, 3 * 2048));
        assert_eq!(layout.place("2.b"), Some((2, 256)));
        assert_eq!((layout.place("1.norm"), layout.place("head")), (None, None));
    }

    #[test]
    fn a_block_comes_one_stretch_ahead_and_never_over_one_in_use() {
        let schedule = |blocks: &[usize]| {
            let mut stretches = Stretches::default();
            for (step, &block) in blocks.iter().enumerate() {
                stretches.reads(10 * step, block);
            }
            stretches.schedule()
        };
        // forward and reverse of three blocks
        assert_eq!(schedule(&[0, 1, 2, 2, 1, 0]), [(0, 0), (0, 1), (10, 2), (40, 0)]);
        // a group of blocks made again: 2 gives way to 0 only when its turn has come
        assert_eq!(schedule(&[2, 0, 1, 1, 0]), [(0, 2), (10, 0), (10, 1)]);
    }
}
