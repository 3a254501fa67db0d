//! Fine-tuning inside a program: options, a callback, a report.
//!
//! `cargo run --release --example finetune [MODEL_DIR DATA.json]`; without arguments the demo's model and data.

use engraft::train::finetune::Finetune;
use engraft::train::metrics::Event;
use engraft::train::options::FinetuneOptions;
use std::path::PathBuf;

fn main() -> Result<(), engraft::Error> {
    let demo = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("examples/demo");
    let mut arguments = std::env::args().skip(1).map(PathBuf::from);
    let mut options = FinetuneOptions {
        model_dir: arguments.next().unwrap_or(demo.join("model")),
        out_dir: std::env::temp_dir().join("engraft-example"),
        batch_size: 8,
        micro_batch_size: 8,
        learning_rate: 3e-3,
        max_steps: Some(20),
        ..Default::default()
    };
    options.data.json_path = arguments.next().unwrap_or(demo.join("data/new_task_train.json"));
    options.lora.rank = 8;
    options.lora.alpha = 16.0;

    let report = Finetune::new(options)
        .on_event(|event| match event {
            Event::Note(text) => println!("{text}"),
            Event::Step(step) => {
                println!("step {:2}  loss {:.4}  {:.0} tokens/s", step.step, step.loss, step.tokens_per_s)
            }
            Event::Evaluation(evaluation) => println!("validation loss {:.4}", evaluation.val_loss),
            _ => {}
        })
        .run()?;
    println!("{} steps in {:.1} s; {}", report.steps, report.seconds, report.memory);
    println!("the adapter is in {}", report.out_dir.display());
    Ok(())
}
