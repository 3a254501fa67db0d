//! Which values live, for how long, and in which slot.
//!
//! A slot is a buffer of its own: wgpu orders any two dispatches that share a writable buffer, so one arena would
//! serialise everything. A slot is reused by values whose lifetimes do not meet.

use super::ParameterSpace;
use crate::gpu::{GpuError, PARAM_ALIGNMENT, allocation, param_space};
use crate::graph::{
    Choices, DeviceProfile, Dispatch, Graph, Launch, LaunchPlan, LeafKind, TensorType, Value,
};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

/// Where a node's output goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// A slot of its own or shared over time.
    Slot(usize),
    /// The gradient of this trainable leaf, or this state: added to it.
    Accumulator(Value),
    /// The buffer of this leaf, overwritten in place.
    Leaf(Value),
}

/// The live part of a graph with a home for each value.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Live nodes in order, with what each launches.
    pub(super) nodes: Vec<(usize, LaunchPlan)>,
    pub(super) homes: HashMap<Value, Home>,
    /// Slots of each live node's workspaces.
    pub(super) workspaces: Vec<Vec<usize>>,
    /// Bytes of each slot.
    pub sizes: Vec<u64>,
    /// From and to which live node, both included, values lie in each slot.
    stays: Vec<Vec<(usize, usize)>>,
}

/// Peak bytes on the device, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct MemoryReport {
    /// Frozen weights and constant tables.
    pub weights: u64,
    /// Trainable parameters and their gradients.
    pub trainables: u64,
    /// Both moments of AdamW.
    pub optimiser: u64,
    /// Inputs of a micro-batch, results, state between runs.
    pub inputs: u64,
    /// Slots: activations, their gradients and scratch space.
    pub activations: u64,
    /// Parameters of dispatches, in the plans made so far: a plan is made when its size first occurs.
    pub parameters: u64,
}

impl MemoryReport {
    pub fn total(&self) -> u64 {
        let state = self.weights + self.trainables + self.optimiser;
        state + self.inputs + self.activations + self.parameters
    }
}

impl std::fmt::Display for MemoryReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "device memory {:.1} MiB: weights {:.1}, trainables {:.1}, optimiser {:.1}, inputs {:.1}, activations {:.1}, \
             kernel parameters {:.1}",
            mib(self.total()),
            mib(self.weights),
            mib(self.trainables),
            mib(self.optimiser),
            mib(self.inputs),
            mib(self.activations),
            mib(self.parameters)
        )
    }
}

impl Layout {
    /// Plans a graph for a device.
    pub fn new(graph: &Graph, device: &DeviceProfile) -> Self {
        let replaced = replacements(graph);
        let launches = live_launches(graph, device);
        let live: Vec<usize> = launches.iter().map(|(n, _)| *n).collect();
        let read = read_values(graph, &live);
        let accumulators = accumulators(graph);
        let mut homes = HashMap::new();
        let mut nodes = Vec::new();
        for (n, launch) in launches {
            let node = &graph.nodes()[n];
            for (o, &value) in node.outputs.iter().enumerate() {
                if let Some(&parameter) = accumulators.get(&value) {
                    homes.insert(value, Home::Accumulator(parameter));
                } else if let Some(input) = node.op.in_place(o) {
                    let source = node.inputs[input];
                    let home = match homes.get(&source) {
                        Some(&home) => home,
                        None => Home::Leaf(source),
                    };
                    homes.insert(value, home);
                }
            }
            nodes.push((n, launch));
        }
        let mut layout = Layout { nodes, homes, ..Layout::default() };
        layout.assign(graph, &read, &replaced);
        layout
    }

    /// Plans a smaller size of the same network onto the slots of this one, with no more memory of any kind, and no more of
    /// dispatches' parameters than [`Layout::most_parameter_bytes`]. Scratch space may lie in any slot that no value is in.
    ///
    /// `None` where the two graphs are not of one network.
    pub fn shrink(&self, graph: &Graph, device: &DeviceProfile) -> Option<Self> {
        let mut small = Layout::new(graph, device);
        let same = small.nodes.len() == self.nodes.len()
            && small.nodes.iter().zip(&self.nodes).all(|(a, b)| a.0 == b.0);
        if !same {
            return None;
        }
        let scratch = |launch: &LaunchPlan, i: usize| {
            let few = parameter_bytes(launch) <= most_parameter_bytes(&self.nodes[i].1);
            self.scratch(launch, i).filter(|_| few)
        };
        // a kernel that was measured for the small size may want more than the large one's, and so may the built-in one where the
        // large one's was measured: weights in blocks, expanded into scratch space or as they are read
        // in other tiles it may even have more parts
        let fallbacks = [
            device.choices.whole(),
            device.choices.direct(),
            Choices::default(),
            Choices::without_scratch(),
            Choices::without_scratch().uncut(),
        ];
        for choices in fallbacks {
            let over = (0..self.nodes.len()).filter(|&i| scratch(&small.nodes[i].1, i).is_none());
            let over: Vec<usize> = over.collect();
            if over.is_empty() {
                break;
            }
            // in as many parts at most as the large one's
            let choices = Arc::new(choices.as_fast_as(&device.choices));
            let mut launches = live_launches(graph, &DeviceProfile { choices, ..device.clone() });
            over.into_iter().for_each(|i| small.nodes[i].1 = std::mem::take(&mut launches[i].1));
        }
        let fits = |value: &Value| match self.homes.get(value) {
            Some(Home::Slot(slot)) => graph.type_of(*value).bytes() <= self.sizes[*slot],
            _ => true,
        };
        let workspaces: Option<Vec<_>> =
            small.nodes.iter().enumerate().map(|(i, (_, launch))| scratch(launch, i)).collect();
        if small.homes.len() != self.homes.len() || !self.homes.keys().all(fits) {
            return None;
        }
        small.workspaces = workspaces?;
        small.homes.clone_from(&self.homes);
        small.sizes.clone_from(&self.sizes);
        small.stays.clone_from(&self.stays);
        Some(small)
    }

    /// Slots for the workspaces of what the live node at this position may launch: those that it was planned with first, then the
    /// smallest in which no value lies; `None` where there are too few.
    fn scratch(&self, launch: &LaunchPlan, at: usize) -> Option<Vec<usize>> {
        let (own, needed) = (&self.workspaces[at], &launch.workspaces);
        if needed.len() <= own.len()
            && needed.iter().zip(own).all(|(bytes, slot)| *bytes <= self.sizes[*slot])
        {
            return Some(own[..needed.len()].to_vec());
        }
        let lies = |slot: usize| {
            let stays = self.stays.get(slot).map_or(&[][..], Vec::as_slice);
            stays.iter().any(|&(first, last)| first <= at && at <= last)
        };
        let mut idle: Vec<usize> = (0..self.sizes.len()).filter(|&slot| !lies(slot)).collect();
        idle.sort_by_key(|slot| (!own.contains(slot), self.sizes[*slot]));
        let mut largest: Vec<usize> = (0..needed.len()).collect();
        largest.sort_by_key(|&w| std::cmp::Reverse(needed[w]));
        let mut slots = vec![0; largest.len()];
        for w in largest {
            let found = idle.iter().position(|&slot| needed[w] <= self.sizes[slot])?;
            slots[w] = idle.remove(found);
        }
        Some(slots)
    }

    /// Puts layouts that never run at the same time on one set of slots: those of the one with most memory serve the
    /// others, which gain slots where theirs are larger.
    pub fn share<const N: usize>(mut layouts: [Layout; N]) -> [Layout; N] {
        let mut sizes: Vec<u64> = Vec::new();
        let mut order: Vec<usize> = (0..N).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(layouts[i].sizes.iter().sum::<u64>()));
        for i in order {
            layouts[i].place_on(&mut sizes);
        }
        for layout in &mut layouts {
            layout.sizes.clone_from(&sizes);
        }
        layouts
    }

    /// Bytes that the slots take on a device.
    pub fn slot_bytes(&self) -> u64 {
        self.sizes.iter().copied().map(allocation).sum()
    }

    /// Whether a device has the buffers that the graph and its slots need and binds what the dispatches bind, however much memory
    /// it has.
    ///
    /// # Errors
    /// [`GpuError::OverLimit`].
    pub fn check(&self, graph: &Graph, device: &DeviceProfile) -> Result<(), GpuError> {
        let leaves = graph.leaves().iter().filter(|leaf| leaf.kind != LeafKind::Trainable);
        let leaves = leaves.map(|leaf| (leaf.name.as_str(), graph.type_of(leaf.value).bytes()));
        let slots = self.sizes.iter().map(|&bytes| ("activations", bytes));
        let trained = ("the buffer of all trainable parameters", ParameterSpace::of(graph).bytes());
        let mut buffers = leaves.chain(slots).chain([trained]);
        let refused = buffers.find_map(|(what, bytes)| GpuError::of_buffer(what, bytes, device));
        let refused = refused.or_else(|| self.dispatches().find_map(|d| GpuError::of_bindings(d, device)));
        refused.map_or(Ok(()), Err)
    }

    /// Bytes that the dispatches' parameters take on a device.
    pub fn parameter_bytes(&self) -> u64 {
        self.nodes.iter().map(|(_, launch)| parameter_bytes(launch)).sum()
    }

    /// The same of a smaller size at most.
    pub fn most_parameter_bytes(&self) -> u64 {
        self.nodes.iter().map(|(_, launch)| most_parameter_bytes(launch)).sum()
    }

    /// Whether a value lies in memory of the host.
    pub(super) fn is_on_host(&self, graph: &Graph, value: Value) -> bool {
        let leaf = match self.homes.get(&value) {
            Some(Home::Leaf(leaf)) => *leaf,
            _ => value,
        };
        graph.leaf_of(leaf).is_some_and(|leaf| leaf.kind == LeafKind::Host)
    }

    /// What a run dispatches, in order.
    pub fn dispatches(&self) -> impl Iterator<Item = &Dispatch> {
        self.nodes.iter().flat_map(|(_, launch)| &launch.dispatches)
    }

    /// Renumbers the slots onto existing buffers of these sizes, best fit first, and appends what does not fit.
    pub(super) fn place_on(&mut self, sizes: &mut Vec<u64>) {
        let mut order: Vec<usize> = (0..self.sizes.len()).collect();
        order.sort_by_key(|&s| std::cmp::Reverse(self.sizes[s]));
        let mut free: Vec<usize> = (0..sizes.len()).collect();
        let mut places = vec![0; self.sizes.len()];
        for slot in order {
            let fit = (0..free.len())
                .filter(|&i| sizes[free[i]] >= self.sizes[slot])
                .min_by_key(|&i| sizes[free[i]]);
            places[slot] = match fit {
                Some(i) => free.swap_remove(i),
                None => {
                    sizes.push(self.sizes[slot]);
                    sizes.len() - 1
                }
            };
        }
        for home in self.homes.values_mut() {
            if let Home::Slot(slot) = home {
                *slot = places[*slot];
            }
        }
        self.workspaces.iter_mut().flatten().for_each(|slot| *slot = places[*slot]);
        let mut stays = vec![Vec::new(); sizes.len()];
        for (slot, all) in std::mem::take(&mut self.stays).into_iter().enumerate() {
            stays[places[slot]] = all;
        }
        self.stays = stays;
    }

    /// Gives every value and every workspace a slot, the largest first: into the smallest slot that is free as long as they
    /// live, or a new one (greedy by size for shared objects: Pisarchyk & Lee 2020, arXiv:2001.03288). In order of
    /// execution, small values that live long would take the large slots that happen to be free.
    fn assign(&mut self, graph: &Graph, read: &HashSet<Value>, replaced: &HashMap<Value, Value>) {
        let end = self.nodes.len();
        let mut last_use: HashMap<Value, usize> = HashMap::new();
        for (at, (n, _)) in self.nodes.iter().enumerate() {
            last_use.extend(graph.nodes()[*n].inputs.iter().map(|&v| (v, at)));
        }
        last_use.extend(graph.outputs().iter().map(|(_, v)| (*v, end)));
        // what is replaced lives on in what takes its place
        let mut chain: Vec<(Value, Value)> = replaced.iter().map(|(&new, &old)| (new, old)).collect();
        chain.sort_unstable_by(|a, b| b.cmp(a));
        for (new, old) in &chain {
            let last = last_use.get(new).copied().unwrap_or(0).max(last_use[old]);
            last_use.insert(*old, last);
        }
        let mut tenants = Vec::new();
        for (at, (n, launch)) in self.nodes.iter().enumerate() {
            for (o, &value) in graph.nodes()[*n].outputs.iter().enumerate() {
                // a kernel may leave out what nobody reads
                let elsewhere = self.homes.contains_key(&value) || replaced.contains_key(&value);
                if elsewhere || !(launch.writes(o) || read.contains(&value)) {
                    continue;
                }
                let last = last_use.get(&value).copied().unwrap_or(at);
                let bytes = allocation(graph.type_of(value).bytes());
                tenants.push(Tenant { bytes, first: at, last, what: Housed::Value(value) });
            }
            for (w, &bytes) in launch.workspaces.iter().enumerate() {
                let bytes = allocation(bytes);
                tenants.push(Tenant { bytes, first: at, last: at, what: Housed::Workspace(at, w) });
            }
        }
        tenants.sort_by_key(|tenant| std::cmp::Reverse(tenant.bytes));
        self.workspaces = self.nodes.iter().map(|(_, launch)| vec![0; launch.workspaces.len()]).collect();
        let mut stays: Vec<BTreeMap<usize, usize>> = Vec::new();
        for Tenant { bytes, first, last, what } in tenants {
            // slots stand from large to small, since the largest tenants came first
            let free = (0..stays.len())
                .rev()
                .find(|&slot| stays[slot].range(..=last).next_back().is_none_or(|(_, &until)| until < first));
            let slot = free.unwrap_or_else(|| {
                self.sizes.push(bytes);
                stays.push(BTreeMap::new());
                stays.len() - 1
            });
            stays[slot].insert(first, last);
            self.stays.resize(stays.len(), Vec::new());
            match what {
                Housed::Value(value) => {
                    self.stays[slot].push((first, last));
                    self.homes.insert(value, Home::Slot(slot));
                }
                Housed::Workspace(at, w) => self.workspaces[at][w] = slot,
            }
        }
        for (new, old) in chain.into_iter().rev() {
            if let Some(&home) = self.homes.get(&old) {
                self.homes.insert(new, home);
            }
        }
    }
}

/// Something that needs a slot from one live node to another, both included.
struct Tenant {
    bytes: u64,
    first: usize,
    last: usize,
    what: Housed,
}

enum Housed {
    Value(Value),
    /// Of the live node at this position, the workspace of this index.
    Workspace(usize, usize),
}

/// Bytes that the parameters of a node's dispatches take on a device.
fn parameter_bytes(launch: &LaunchPlan) -> u64 {
    launch.dispatches.iter().map(param_space).sum()
}

/// The same of a smaller size at most: a kernel of a family may have a dispatch more there, as a product in sections has one that
/// adds them up.
fn most_parameter_bytes(launch: &LaunchPlan) -> u64 {
    let of_families = launch.dispatches.iter().filter(|dispatch| !dispatch.variant.is_empty());
    parameter_bytes(launch) + PARAM_ALIGNMENT * of_families.count() as u64
}

/// What each live node launches, in order.
pub(super) fn live_launches(graph: &Graph, device: &DeviceProfile) -> Vec<(usize, LaunchPlan)> {
    let live = live_nodes(graph);
    let read = read_values(graph, &live);
    let accumulators = accumulators(graph);
    let replaced = replacements(graph);
    let launch = |n: usize| {
        let node = &graph.nodes()[n];
        let replaces: Vec<bool> = node.outputs.iter().map(|v| replaced.contains_key(v)).collect();
        let types = |values: &[Value]| values.iter().map(|&v| graph.type_of(v)).collect::<Vec<TensorType>>();
        let accumulate: Vec<bool> = node.outputs.iter().map(|v| accumulators.contains_key(v)).collect();
        let alive: Vec<bool> = node.outputs.iter().map(|v| read.contains(v)).collect();
        let launch = Launch {
            device,
            inputs: &types(&node.inputs),
            outputs: &types(&node.outputs),
            accumulate: &accumulate,
            live: &alive,
            replaces: &replaces,
        };
        launch.plan(&*node.op)
    };
    live.into_iter().map(|n| (n, launch(n))).collect()
}

/// Outputs that take the memory of an input: the input is an activation that nobody reads afterwards.
fn replacements(graph: &Graph) -> HashMap<Value, Value> {
    let live = live_nodes(graph);
    let mut last_use: HashMap<Value, usize> = HashMap::new();
    for &n in &live {
        last_use.extend(graph.nodes()[n].inputs.iter().map(|&v| (v, n)));
    }
    let kept: HashSet<Value> = graph.outputs().iter().map(|(_, v)| *v).collect();
    let accumulators = accumulators(graph);
    let in_place = |v: Value| {
        let (n, output) = graph.producer(v)?;
        graph.nodes()[n].op.in_place(output)
    };
    let mut replaced = HashMap::new();
    for n in live {
        let node = &graph.nodes()[n];
        for (o, &output) in node.outputs.iter().enumerate() {
            let Some(input) = node.op.may_replace(o).map(|i| node.inputs[i]) else { continue };
            let free = last_use[&input] == n
                && graph.producer(input).is_some()
                && in_place(input).is_none()
                && !kept.contains(&input)
                && ![input, output].iter().any(|v| accumulators.contains_key(v))
                && node.inputs.iter().filter(|&&v| v == input).count() == 1;
            if free {
                replaced.insert(output, input);
            }
        }
    }
    replaced
}

/// Values that a live node, the host or a gradient's sum reads.
fn read_values(graph: &Graph, live: &[usize]) -> HashSet<Value> {
    live.iter()
        .flat_map(|&n| graph.nodes()[n].inputs.iter().copied())
        .chain(graph.outputs().iter().map(|(_, v)| *v))
        .chain(graph.accumulations().iter().map(|a| a.gradient))
        .collect()
}

/// Gradient to the parameter it is added to.
fn accumulators(graph: &Graph) -> HashMap<Value, Value> {
    graph.accumulations().iter().map(|a| (a.gradient, a.parameter)).collect()
}

/// Nodes that an output, an accumulation or an in-place change of a leaf depends on.
fn live_nodes(graph: &Graph) -> Vec<usize> {
    let mut wanted: HashSet<Value> = graph.outputs().iter().map(|(_, v)| *v).collect();
    wanted.extend(graph.accumulations().iter().map(|a| a.gradient));
    let mut live = Vec::new();
    for (n, node) in graph.nodes().iter().enumerate().rev() {
        let changes_state = (0..node.outputs.len()).any(|o| {
            node.op
                .in_place(o)
                .is_some_and(|i| graph.leaf_of(node.inputs[i]).is_some_and(|l| l.kind == LeafKind::State))
        });
        if changes_state || node.outputs.iter().any(|v| wanted.contains(v)) {
            wanted.extend(&node.inputs);
            live.push(n);
        }
    }
    live.reverse();
    live
}
