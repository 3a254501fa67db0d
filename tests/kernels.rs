//! Measuring kernels and the commands that show speed: what they write and print, not how fast anything is.

mod common;

use engraft::gpu::{Gpu, GpuOptions, Recording};
use engraft::graph::layout::pack;
use engraft::graph::{DType, DeviceProfile, Graph, Shape, TensorType};
use engraft::ops::attention;
use engraft::ops::matmul::{Layout, Variant, matmul};
use engraft::plan::tune::{measure, unmeasured};
use engraft::plan::{Bindings, Program};
use engraft::stop::StopFlag;
use engraft::train::bench::kernels::{Heads, causal_attention};
use engraft::train::options::TuneMode;
use engraft::train::tuning::{TuneProgress, Tuner};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// Large enough to be measured, small enough for a software device.
fn product(k: usize) -> Graph {
    let mut graph = Graph::new();
    let a = graph.input("a", Shape::matrix(128, k), DType::F32).unwrap();
    let b = graph.input("b", Shape::matrix(256, k), DType::BF16).unwrap();
    let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F32).unwrap();
    graph.output("c", c);
    graph
}

fn tuner(mode: TuneMode, file: &Path) -> Tuner {
    Tuner { file: Some(file.to_owned()), budget: Duration::from_secs(60), ..Tuner::new(mode) }
}

#[test]
fn what_was_measured_is_kept_and_used() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("cache/kernels.json");
    let prepare = |mode, graph: &Graph| {
        let mut seen = Vec::new();
        let report =
            tuner(mode, &file).prepare(&gpu, graph, &mut |p| seen.push(p.measurement.clone())).unwrap();
        assert_eq!(report.measured, seen.len());
        assert_eq!(report.trouble, None);
        seen
    };

    let measured = prepare(TuneMode::Cached, &product(256));
    assert_eq!(measured.len(), 1);
    let tried = &measured[0].tried;
    assert!(
        tried.len() > 1 && tried.iter().all(|(_, seconds)| seconds.is_some()),
        "a kernel is wrong: {tried:?}"
    );
    assert!(measured[0].seconds <= measured[0].default_seconds && measured[0].gflops > 0.0);
    assert!(Variant::parse(&measured[0].variant).is_some());
    let choices = gpu.profile().choices.clone();
    assert_eq!(choices.iter().map(|(_, v)| v).collect::<Vec<_>>(), [&measured[0].variant]);

    // one count over several graphs, and no class twice
    let all = folder.path().join("all.json");
    let mut counts = Vec::new();
    let graphs = [product(256), product(1024), product(256)];
    let mut count = |p: &TuneProgress| counts.push((p.done, p.total));
    let report =
        tuner(TuneMode::Full, &all).prepare_all(&gpu, &graphs, &mut count, &StopFlag::default()).unwrap();
    assert_eq!((report.measured, report.left, counts), (2, 0, vec![(1, 2), (2, 2)]));

    let text = fs::read_to_string(&file).unwrap();
    assert!(text.contains(&gpu.info().driver) && text.contains(&measured[0].variant), "{text}");
    assert!(prepare(TuneMode::Cached, &product(256)).is_empty(), "it is in the file");
    assert_eq!(prepare(TuneMode::Cached, &product(1024)).len(), 1, "another class");
    assert_eq!(prepare(TuneMode::Full, &product(256)).len(), 1, "all is measured again");
    let kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(kept["devices"].as_object().unwrap().values().next().unwrap().as_object().unwrap().len(), 2);
    assert!(prepare(TuneMode::Off, &product(4096)).is_empty());
    assert_eq!(gpu.profile().choices.iter().count(), 0);
}

/// As groups of launches are on GPUs.
#[test]
fn a_recording_is_timed_in_one_pass() {
    let Some(gpu) = common::gpu() else { return };
    let graph = product(256);
    let mut bindings = Bindings::new();
    bindings.allocate_inputs(&gpu, &graph).unwrap();
    let ones = vec![1.0; 256 * 256];
    for (name, rows, dtype) in [("a", 128, DType::F32), ("b", 256, DType::BF16)] {
        let ty = TensorType::new(Shape::matrix(rows, 256), dtype);
        bindings.leaf(name).unwrap().write(&pack(ty, &ones[..rows * 256]));
    }
    let program = Program::compile(&gpu, &graph, &bindings).unwrap();
    let start = Instant::now();
    let seconds = gpu.time_together(program.recording()).unwrap();
    assert_eq!(seconds.is_some(), gpu.has_timestamps());
    assert!(seconds.is_none_or(|seconds| seconds > 0.0 && seconds <= start.elapsed().as_secs_f64()));
    if seconds.is_some() {
        let bytes = &gpu.read(&[program.output("c").unwrap().clone()]).unwrap()[0];
        let values: &[f32] = bytemuck::cast_slice(bytes);
        assert_eq!(values, vec![256.0; 128 * 256]);
    }
    assert_eq!(gpu.time_together(&Recording::default()).unwrap(), None);
}

/// What a process leaves behind that a driver ends in the middle of a measurement.
#[test]
fn a_kernel_that_ended_an_earlier_start_is_not_tried_again() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernels.json");
    let prepare = || {
        let mut seen = Vec::new();
        let mut progress = |p: &TuneProgress| seen.push(p.measurement.clone());
        let report = tuner(TuneMode::Full, &file).prepare(&gpu, &product(256), &mut progress).unwrap();
        assert_eq!(report.trouble, None);
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["kernels.json"], "nothing is left of what was tried");
        (seen.swap_remove(0), report.left_out)
    };
    let (measured, left_out) = prepare();
    assert!(left_out.is_empty());
    let kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let device = kept["devices"].as_object().unwrap().keys().next().unwrap();
    let class = measured.class.to_string();
    let variants: Vec<String> = measured.tried.iter().map(|(variant, _)| variant.clone()).collect();
    let tries = |variant: &String| prepare().0.tried.iter().any(|(tried, _)| tried == variant);
    let crash = |variants: &[String]| {
        let trying = serde_json::json!({ "device": device, "class": class, "variants": variants });
        fs::write(folder.path().join("trying-1.json"), trying.to_string()).unwrap();
    };

    crash(&variants[1..3]);
    let (measured, left_out) = prepare();
    assert!(left_out.is_empty(), "it is not known which of them it was");
    assert!(measured.tried.iter().any(|(tried, _)| *tried == variants[2]));

    crash(&variants[2..3]);
    let (measured, left_out) = prepare();
    assert!(left_out.len() == 1 && left_out[0].contains(&variants[2]), "{left_out:?}");
    assert!(measured.tried.iter().all(|(tried, _)| *tried != variants[2]));
    let kept: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    assert_eq!(kept["refused"][device][&class], serde_json::json!([variants[2]]));
    assert!(tries(&variants[1]) && !tries(&variants[2]), "from the file alone");
}

/// A driver that refuses a kernel takes the device with it: another one goes on without that kernel, and the run's own never knew it.
#[test]
fn a_kernel_that_costs_the_device_is_left_out_in_the_same_start() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernels.json");
    let prepare = |gpu: &Gpu| {
        let mut seen = Vec::new();
        let mut progress = |p: &TuneProgress| seen.push(p.measurement.clone());
        let graphs = [product(256), product(1024)];
        let report = tuner(TuneMode::Full, &file)
            .prepare_all(gpu, &graphs, &mut progress, &StopFlag::default())
            .unwrap();
        assert_eq!((report.trouble, report.untried), (None, 0));
        let names = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name());
        assert_eq!(names.collect::<Vec<_>>(), ["kernels.json"], "nothing is left of what was tried");
        (seen, report.left_out)
    };
    let (measured, left_out) = prepare(&gpu);
    assert!(measured.len() == 2 && left_out.is_empty());
    let bad = measured[0].tried[2].0.clone();
    drop(gpu);

    let Some(gpu) = common::gpu_of(|options| GpuOptions { lost_over: Some(bad.clone()), ..options }) else {
        return;
    };
    let (without, left_out) = prepare(&gpu);
    assert!(left_out.len() == 1 && left_out[0].contains(&bad), "{left_out:?}");
    for (before, after) in measured.iter().zip(&without) {
        let others = before.tried.iter().filter(|(variant, _)| *variant != bad);
        let tried: Vec<&String> = after.tried.iter().map(|(variant, _)| variant).collect();
        assert_eq!(tried, others.map(|(variant, _)| variant).collect::<Vec<_>>());
        assert!(after.tried.iter().all(|(_, seconds)| seconds.is_some()));
    }
    gpu.is_alive().unwrap();
    let (_, left_out) = prepare(&gpu);
    assert!(left_out.is_empty(), "the file knows it");
}

/// What a class was not tried with for want of time is for who takes all the time.
#[test]
fn a_thorough_search_ends_what_a_hurried_one_began() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernels.json");
    let prepare = |tuner: Tuner| {
        let tuner = Tuner { file: Some(file.clone()), ..tuner };
        tuner.prepare(&gpu, &product(256), &mut |_| {}).unwrap()
    };
    assert_eq!(prepare(Tuner::new(TuneMode::Cached)).measured, 1);
    let hurried = fs::read_to_string(&file).unwrap().replace("\"gain\"", "\"untried\": 3, \"gain\"");
    fs::write(&file, hurried).unwrap();
    assert_eq!(prepare(Tuner::new(TuneMode::Cached)).measured, 0, "a run has other things to do");
    let thorough = prepare(Tuner::thorough(TuneMode::Cached));
    assert_eq!((thorough.measured, thorough.untried), (1, 0));
    assert!(!fs::read_to_string(&file).unwrap().contains("untried"));
    assert_eq!(prepare(Tuner::thorough(TuneMode::Cached)).measured, 0);
}

#[test]
fn a_cache_that_cannot_be_used_is_said_and_does_not_end_the_run() {
    let Some(gpu) = common::gpu() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("kernels.json");
    fs::write(&file, "not json").unwrap();
    let report = tuner(TuneMode::Cached, &file).prepare(&gpu, &product(256), &mut |_| {}).unwrap();
    assert_eq!(report.measured, 1);
    assert!(report.trouble.unwrap().contains("kernels.json"));
    assert_eq!(fs::read_to_string(&file).unwrap(), "not json", "somebody may want it back");

    // no time at all: everything is left for later
    let hurried =
        Tuner { budget: Duration::ZERO, ..tuner(TuneMode::Cached, &folder.path().join("new.json")) };
    let report = hurried.prepare(&gpu, &product(256), &mut |_| {}).unwrap();
    assert_eq!((report.measured, report.left), (0, 1));
}

/// What is measured first is what takes long, as on a GPU: a thin product has fewer FLOPs, but columns for an eighth of a tile.
#[test]
fn classes_that_take_long_come_first() {
    let Some(gpu) = common::gpu() else { return };
    let device = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let mut graph = Graph::new();
    for (name, rows, cols, k) in [("square", 192, 192, 192), ("thin", 256, 8, 2048)] {
        let a = graph.input(format!("a {name}"), Shape::matrix(rows, k), DType::F32).unwrap();
        let b = graph.input(format!("b {name}"), Shape::matrix(cols, k), DType::F32).unwrap();
        let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F32).unwrap();
        graph.output(name, c);
    }
    let folder = tempfile::tempdir().unwrap();
    let tuner = tuner(TuneMode::Cached, &folder.path().join("kernels.json"));
    let order = |ends: bool| {
        let mut candidates = unmeasured(&graph, &device);
        tuner.longest_first(&gpu, &mut candidates, &|| ends).unwrap();
        candidates.iter().map(|candidate| candidate.flops as u64).collect::<Vec<_>>()
    };
    let [square, thin] = [2 * 192 * 192 * 192, 2 * 256 * 8 * 2048];
    assert_eq!(order(true), [square, thin], "by FLOPs where no time is left");
    assert_eq!(order(false), [thin, square]);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left of what was tried");
}

/// Each pass of attention is a class of its own; a CPU device measures the variants of GPUs too, and all must give what the
/// default gives.
#[test]
fn every_variant_of_attention_is_measured() {
    let Some(gpu) = common::gpu() else { return };
    let device = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    let heads = Heads { heads: 4, kv_heads: 2, head_dim: 64 };
    let mut classes = Vec::new();
    for gradient in [false, true] {
        let graph = causal_attention(112, heads, DType::F16, gradient).unwrap();
        for candidate in unmeasured(&graph, &device) {
            let measured = measure(&gpu, &candidate, Duration::from_secs(60)).unwrap();
            let right = measured.tried.iter().all(|(_, seconds)| seconds.is_some());
            assert!(measured.tried.len() > 8 && right, "a kernel is wrong: {:?}", measured.tried);
            assert!(attention::Kernel::parse(&measured.variant).is_some());
            classes.push(measured.class.to_string());
        }
    }
    let expected = ["attention", "attention gradient kv", "attention gradient q"];
    // what matrix units can take is a class of its own
    let whole = if device.shared_matrices.is_some() { " by 16" } else { "" };
    assert_eq!(classes, expected.map(|pass| format!("{pass} f16{whole} head_dim=64 128x1x4x2")));
}

/// As for attention: products in f16 and on a weight in blocks, which matrix units take from tiles.
#[test]
fn every_variant_of_a_product_in_f16_is_measured() {
    let Some(gpu) = common::gpu() else { return };
    let device = DeviceProfile { cpu: false, ..DeviceProfile::clone(&gpu.profile()) };
    for weight in [DType::F16, DType::Nf4] {
        let mut graph = Graph::new();
        let a = graph.input("a", Shape::matrix(128, 128), DType::F16).unwrap();
        let b = graph.input("b", Shape::matrix(160, 128), weight).unwrap();
        let c = matmul(&mut graph, Layout::NT, a, b, 1.0, DType::F16).unwrap();
        graph.output("c", c);
        let candidate = unmeasured(&graph, &device).swap_remove(0);
        let measured = measure(&gpu, &candidate, Duration::from_secs(60)).unwrap();
        let right = measured.tried.iter().all(|(_, seconds)| seconds.is_some());
        assert!(measured.tried.len() > 8 && right, "a kernel is wrong: {:?}", measured.tried);
    }
}

fn engraft(cache: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_engraft"));
    command.env("ENGRAFT_CACHE", cache).env_remove("ENGRAFT_TUNE").args(arguments.split(' '));
    if let Ok(gpu) = std::env::var("ENGRAFT_TEST_GPU") {
        command.args(["--gpu", &gpu]);
    }
    command.output().unwrap()
}

fn succeed(cache: &Path, arguments: &str) -> String {
    let output = engraft(cache, arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const STEP: &str =
    "--hidden 64 --layers 1 --heads 2 --ffn 96 --vocab 64 --seq 16 --batch 2 --rank 4 --steps 2";

#[test]
fn bench_prints_tables_and_objects_that_compare() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path();
    let text = succeed(cache, "bench matmul --size 64x32x48 --tune off --json");
    let report: Value = serde_json::from_str(&text).unwrap();
    let names: Vec<&str> =
        report["kernels"].as_array().unwrap().iter().map(|k| k["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["NT 64x32x48", "NN 64x32x48", "TN 64x32x48"]);
    assert!(report["peak"]["gflops"].as_f64().unwrap() > 0.0);
    let earlier = folder.path().join("earlier.json");
    fs::write(&earlier, text).unwrap();
    let table =
        succeed(cache, &format!("bench matmul --size 64x32x48 --tune off --compare {}", earlier.display()));
    assert!(table.contains("before/now") && table.contains("TN 64x32x48"), "{table}");

    let table = succeed(cache, "bench attention --tokens 32 --tune off");
    assert_eq!(table.matches("gradient,").count(), 2, "{table}");
    let table = succeed(cache, "bench lora --size 32x48 --tokens 16 --rank 2 --tune off");
    for case in ["no adapter", "forward", "forward, dA, dB", "forward, dA, dB, dx"] {
        assert!(table.lines().any(|line| line.starts_with(&format!("32x48 {case}  "))), "{case}: {table}");
    }

    for storage in ["nf4", "nf4-dq", "int8"] {
        let sizes = format!("--tune off --storage {storage}");
        let text = succeed(cache, &format!("bench matmul --size 64x32x48 --json {sizes}"));
        let report: Value = serde_json::from_str(&text).unwrap();
        assert_eq!((&report["storage"], &report["activations"]), (&storage.into(), &"bf16".into()));
        let kernels = report["kernels"].as_array().unwrap();
        assert_eq!(kernels.len(), 2, "the gradient of a quantised weight is not made: {text}");
        assert!(kernels.iter().all(|k| k["gflops"].as_f64().unwrap() > 0.0), "{text}");
        let table = succeed(cache, &format!("bench lora --size 32x48 --tokens 16 --rank 2 {sizes}"));
        assert!(table.contains(&format!("{storage} weights, bf16 activations")), "{table}");
    }
    let refused = engraft(cache, "bench matmul --size 64x32x46 --storage nf4");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("multiples of 4"));

    let table = succeed(cache, "bench attention --tokens 32 --variant rows");
    assert_eq!(table.matches("  rows\n").count(), 4, "{table}");
    let refused = engraft(cache, "bench attention --variant columns");
    assert_eq!(refused.status.code(), Some(2));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("tiled 64x32 per=4x4 depth=16") && said.contains("split=1"), "{said}");

    let refused = engraft(cache, "bench attention --tokens 100000000");
    assert_eq!(refused.status.code(), Some(3));
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("fewer --tokens") && !said.contains("--micro_batch_size"), "{said}");

    let refused = engraft(cache, "bench matmul --shape llama-9");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("llama-3.2-1b"));
}

#[test]
fn a_steps_kernels_are_listed_and_traced() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    let command = format!("bench step {STEP} --tune off --json --trace {}", trace.display());
    let report: Value = serde_json::from_str(&succeed(folder.path(), &command)).unwrap();
    let kernels = report["kernels"].as_array().unwrap();
    let sum: f64 = kernels.iter().map(|k| k["ms"].as_f64().unwrap()).sum();
    assert!((sum / report["kernels_ms"].as_f64().unwrap() - 1.0).abs() < 1e-9);
    let dispatches: u64 = kernels.iter().map(|k| k["dispatches"].as_u64().unwrap()).sum();
    for part in ["attention", "adamw", "rms_norm", "cross_entropy"] {
        assert!(kernels.iter().any(|k| k["kernel"].as_str().unwrap().starts_with(part)), "no {part}");
    }
    let trace: Value = serde_json::from_slice(&fs::read(trace).unwrap()).unwrap();
    let spans: Vec<&Value> =
        trace["traceEvents"].as_array().unwrap().iter().filter(|e| e["ph"] == "X").collect();
    assert_eq!(spans.len() as u64, dispatches);
    let starts: Vec<f64> = spans.iter().map(|s| s["ts"].as_f64().unwrap()).collect();
    assert!(starts.is_sorted(), "dispatches in their order");
}

/// Every fusion changes the list of kernels and not the losses.
#[test]
fn fusions_give_the_same_losses() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    // more rows of logits than a chunk has
    let many = STEP.replace("--vocab 64 --seq 16", "--vocab 200000 --seq 64");
    assert_ne!(many, STEP);
    let run = |step: &str, options: &str| -> Value {
        let command = format!("bench train {step} --tune off --precision 32-true --json{options}");
        serde_json::from_str(&succeed(folder.path(), &command)).unwrap()
    };
    let (plain, dropping) = (run(STEP, ""), run(STEP, " --lora_dropout 0.1"));
    assert!(plain["share_of_peak"].as_f64().is_some_and(|share| share > 0.0), "{plain}");
    for name in engraft::fuse::Fusions::NAMES {
        let (all, step, options) = match name {
            "dropout" => (&dropping, STEP, " --lora_dropout 0.1"),
            "head" => (&run(&many, ""), &*many, ""),
            "bias" => (&run(STEP, " --qkv_bias"), STEP, " --qkv_bias"),
            _ => (&plain, STEP, ""),
        };
        let without = run(step, &format!("{options} --no_fuse {name}"));
        for loss in ["loss_first", "loss_last"] {
            let (a, b) = (all[loss].as_f64().unwrap(), without[loss].as_f64().unwrap());
            assert!((a - b).abs() < 1e-5 * a, "{name}: {loss} {a} and {b}");
        }
        assert_ne!(all["peak_device_bytes"], without["peak_device_bytes"], "{name} changes nothing");
    }
}

/// A measurement that its user ends is no crash of the kernel that ran.
#[cfg(unix)]
#[test]
fn who_interrupts_a_measurement_loses_no_kernel() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let files = || fs::read_dir(folder.path()).unwrap().flatten().map(|file| file.file_name());
    let trying = || files().any(|name| name.to_str().is_some_and(|name| name.starts_with("trying-")));
    let mut child = Command::new(env!("CARGO_BIN_EXE_engraft"))
        .args(["tune", "--shape", "qwen2.5-0.5b", "--tokens", "2048", "--quiet"])
        .env("ENGRAFT_CACHE", folder.path())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(120);
    while !trying() {
        assert!(Instant::now() < deadline && child.try_wait().unwrap().is_none(), "nothing is measured");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(!trying(), "{:?}", files().collect::<Vec<_>>());
}

#[test]
fn tune_measures_ahead() {
    if common::gpu().is_none() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let model = common::fixtures().join("models/llama");
    let command = format!("tune {} --tokens 512 --precision 32-true", model.display());
    let first = succeed(folder.path(), &command);
    assert!(first.contains("kernels.json") && !first.contains(": 0 classes"), "{first}");
    assert!(folder.path().join("kernels.json").is_file());
    let second = succeed(folder.path(), &command);
    assert!(second.contains(": 0 classes"), "{second}");
    // what the run with dropout needs and the one without has not
    let dropping = succeed(folder.path(), &format!("{command} --lora_dropout 0.1"));
    assert!(!dropping.contains(": 0 classes"), "{dropping}");
    let refused = engraft(folder.path(), "tune");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--shape"));
}
