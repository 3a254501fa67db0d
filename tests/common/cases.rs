//! What a case's operation would do on a device.

use engraft::graph::{Case, DeviceProfile, Launch, LaunchPlan, TensorType};

/// Types of a case's inputs and outputs.
pub fn types(case: &Case) -> (Vec<TensorType>, Vec<TensorType>) {
    let inputs: Vec<TensorType> = case.inputs.iter().map(|i| i.ty).collect();
    let outputs = case.op.infer(&inputs).unwrap_or_else(|e| panic!("{} {}: {e}", case.op.name(), case.label));
    (inputs, outputs)
}

/// `accumulate`: outputs that can add to what is there do. `replace`: those that may take an input's place do.
pub fn plan(case: &Case, device: &DeviceProfile, accumulate: bool, replace: bool) -> LaunchPlan {
    plan_of(case, device, accumulate, replace, |_| true)
}

/// [`plan`], where somebody needs only the outputs that are `live`.
pub fn plan_of(
    case: &Case,
    device: &DeviceProfile,
    accumulate: bool,
    replace: bool,
    live: impl Fn(usize) -> bool,
) -> LaunchPlan {
    let (inputs, outputs) = types(case);
    let accumulate: Vec<bool> = (0..outputs.len()).map(|o| accumulate && case.op.accumulates(o)).collect();
    let live: Vec<bool> = (0..outputs.len()).map(live).collect();
    let launch = Launch {
        replaces: &vec![replace; outputs.len()],
        device,
        inputs: &inputs,
        outputs: &outputs,
        accumulate: &accumulate,
        live: &live,
    };
    launch.plan(&*case.op)
}
