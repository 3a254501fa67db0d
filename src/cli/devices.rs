//! `engraft devices`: what is there, what matters of it here, and what a run would choose.

use super::args::DevicesArgs;
use crate::error::Error;
use crate::gpu::{DeviceInfo, GpuError, list_devices};
use serde_json::json;

pub fn run(args: DevicesArgs) -> Result<(), Error> {
    let devices = list_devices();
    let choice = choice(&devices);
    if args.json {
        let (index, reason) = match &choice {
            Ok((device, reason)) => (Some(device.index), reason.clone()),
            Err(error) => (None, error.to_string()),
        };
        let json = json!({ "devices": devices, "chosen": index, "reason": reason });
        super::print(&format!("{json:#}\n"))?;
    } else {
        for device in &devices {
            super::print(&format!("{}\n\n", details(device)))?;
        }
        if let Ok((device, reason)) = &choice {
            super::print(&format!(
                "a run uses {}: {}, {reason}; --gpu NAME|INDEX chooses another\n",
                device.index, device.name
            ))?;
        }
    }
    choice.map(|_| ()).map_err(Error::from)
}

/// A device in one line.
pub(super) fn describe(device: &DeviceInfo) -> String {
    match device.is_software() {
        true => format!("{} (software: a CPU in place of a GPU, slow)", device.name),
        false => device.name.clone(),
    }
}

/// The device that a run takes where none is named, and why. `devices` has the best first.
fn choice(devices: &[DeviceInfo]) -> Result<(&DeviceInfo, String), GpuError> {
    let best = devices.first().ok_or(GpuError::NoDevice)?;
    if let Some(reason) = &best.unusable {
        return Err(GpuError::Open { device: best.name.clone(), reason: reason.clone() });
    }
    let others = devices.len() > 1;
    let reason = match (best.is_software(), others) {
        (true, _) => "a software device, because no GPU with a driver was found".to_owned(),
        (false, false) => "the only device".to_owned(),
        (false, true) => format!(
            "the first {} by {}; discrete GPUs go before integrated, virtual and other ones, more memory before less, software \
             devices come last",
            best.kind, best.backend
        ),
    };
    Ok((best, reason))
}

fn details(device: &DeviceInfo) -> String {
    let (smallest, largest) = device.subgroup_sizes;
    let subgroups = match device.subgroup_size {
        _ if !device.subgroups => "no subgroups".to_owned(),
        Some(size) => format!("subgroups of {size}"),
        None => format!("subgroups of {smallest} to {largest}"),
    };
    let has = |there: bool, what: &str| format!("{}{what}", if there { "" } else { "no " });
    let matrices = device.matrix_shape.as_ref();
    let matrices = matrices.map_or("no matrix units".to_owned(), |shape| format!("matrix units {shape}"));
    let (f16, timestamps) = (has(device.shader_f16, "f16 arithmetic"), has(device.timestamps, "timestamps"));
    let features = [subgroups, f16, matrices, timestamps];
    let mut text = format!("{}: {} ({})", device.index, device.name, device.kind);
    let mut line = |name: &str, value: String| text += &format!("\n   {name:10}{value}");
    line("backend", device.backend.clone());
    line("driver", if device.driver.is_empty() { "unknown".into() } else { device.driver.clone() });
    if let Some(bytes) = device.memory_bytes.filter(|_| !device.unified_memory()) {
        line("memory", size(bytes));
    }
    line(
        "buffers",
        format!("up to {}, {} bound at once", size(device.max_buffer_bytes), size(device.max_binding_bytes)),
    );
    line(
        "kernels",
        format!(
            "{} invocations and {} in a workgroup, {} storage buffers",
            device.max_workgroup_invocations,
            size(u64::from(device.max_workgroup_storage)),
            device.max_storage_buffers
        ),
    );
    line("features", features.join(", "));
    if let Some(reason) = &device.unusable {
        line("unusable", reason.clone());
    }
    text
}

/// Bytes in the largest binary unit that leaves at least one.
fn size(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes >> shift > 0) {
        Some((shift, unit)) => format!("{:.1} {unit}", bytes as f64 / (1u64 << shift) as f64),
        None => format!("{bytes} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(index: usize, kind: &'static str) -> DeviceInfo {
        DeviceInfo {
            index,
            name: format!("device {index}"),
            kind,
            backend: "Vulkan".into(),
            driver: "driver 1.2".into(),
            memory_bytes: Some(8 << 30),
            max_buffer_bytes: 4 << 30,
            max_binding_bytes: 128 << 20,
            max_workgroup_storage: 32 << 10,
            max_workgroup_invocations: 1024,
            max_storage_buffers: 16,
            subgroup_sizes: (32, 32),
            subgroup_size: Some(32),
            shader_f16: false,
            matrix_shape: None,
            subgroups: true,
            timestamps: true,
            unusable: None,
        }
    }

    #[test]
    fn the_choice_has_a_reason() {
        assert_eq!(choice(&[]).unwrap_err(), GpuError::NoDevice);
        assert!(choice(&[device(0, "software")]).unwrap().1.contains("no GPU"));
        assert_eq!(choice(&[device(0, "discrete GPU")]).unwrap().1, "the only device");
        let two = [device(0, "integrated GPU"), device(1, "software")];
        let (chosen, reason) = choice(&two).unwrap();
        assert!(chosen.index == 0 && reason.starts_with("the first integrated GPU by Vulkan"), "{reason}");
        let weak = DeviceInfo { unusable: Some("too small".into()), ..device(0, "other") };
        assert!(matches!(choice(&[weak]), Err(GpuError::Open { reason, .. }) if reason == "too small"));
    }

    #[test]
    fn details_say_what_is_missing() {
        let text = details(&device(2, "discrete GPU"));
        assert!(text.starts_with("2: device 2 (discrete GPU)"), "{text}");
        assert!(text.contains("memory    8.0 GiB"), "{text}");
        assert!(text.contains("up to 4.0 GiB, 128.0 MiB bound at once"), "{text}");
        assert!(text.contains("subgroups of 32, no f16 arithmetic, no matrix units, timestamps"), "{text}");
        let text =
            details(&DeviceInfo { matrix_shape: Some("16x16x16".into()), ..device(0, "discrete GPU") });
        assert!(text.contains("matrix units 16x16x16, timestamps"), "{text}");
    }
}
