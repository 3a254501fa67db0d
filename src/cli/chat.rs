//! `engraft chat`: answers on standard output as they come, everything else on standard error.

use super::args::{ChatArgs, Exit};
use super::chat_input::{Input, Reader};
use super::devices::describe;
use super::download::model_and_adapter;
use super::generate::write_out;
use crate::data::Tokenizer;
use crate::error::Error;
use crate::generate::{Answer, AnswerOptions, Chat, Finish, History};
use crate::gpu::Gpu;
use crate::models::ModelConfig;
use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};

const HELP: &str = "/clear forgets the conversation, /exit or Ctrl-D ends it, Ctrl-C ends an answer; a line that ends \
                    in \\ goes on in the next one, and so does a message that begins with \"\"\" up to \"\"\"";

/// Talks until the input ends.
///
/// # Errors
/// Options out of range, files that do not fit each other, no device, and what the device reports.
pub fn run(args: ChatArgs, quiet: bool) -> Result<(), Error> {
    let note = |text: &str| {
        if !quiet {
            eprintln!("{text}");
        }
    };
    let mut options = args.talk.resolve()?;
    let found = model_and_adapter(&options.model_dir, options.adapter.as_deref(), quiet)?;
    (options.model_dir, options.adapter) = (found.model_dir, found.adapter);
    // what is wrong with a folder is said without a device
    ModelConfig::read(&options.model_dir)?;
    let tokenizer = Tokenizer::open(&options.model_dir)?;
    let gpu = Gpu::open(&args.talk.device.options())?;
    note(&format!("device {}", describe(gpu.info())));
    let mut chat = Chat::open(&gpu, &tokenizer, &options)?;
    chat.notes().for_each(|text| note(&text));
    note(&format!("{}, context of {} tokens; /help for help", chat.prompts(), chat.context()));
    catch_interrupts();

    let mut talk = Talk {
        history: History::new(args.system.clone()),
        options: args.talk.answer(),
        turns: 0,
        note: &note,
    };
    let mut reader = Reader::open()?;
    while let Some(input) = reader.next()? {
        match input {
            Input::Exit => break,
            Input::Clear => {
                talk.history.clear();
                note("the conversation is forgotten");
            }
            Input::Help => note(HELP),
            Input::Interrupted => note("/exit or Ctrl-D ends the conversation"),
            Input::Unknown(word) => note(&format!(
                "not sent: {word} is no command, /help lists them; put a blank before a message that begins with /"
            )),
            Input::Message(text) => {
                if talk.turn(&mut chat, &text)?.is_break() {
                    break;
                }
            }
        }
    }
    Ok(())
}

struct Talk<'n> {
    history: History,
    options: AnswerOptions,
    /// Messages so far: each is answered with a seed of its own.
    turns: u64,
    note: &'n dyn Fn(&str),
}

impl Talk<'_> {
    /// Answers one message. A reader of standard output that has had enough breaks the conversation.
    fn turn(&mut self, chat: &mut Chat<'_>, text: &str) -> Result<ControlFlow<()>, Error> {
        self.history.push_user(text);
        let (prompt, dropped) = match chat.fit(&mut self.history, self.options.max_new_tokens) {
            Ok(fitted) => fitted,
            Err(error) => {
                // the conversation can go on without this message
                self.history.pop();
                eprintln!("{error}");
                return Ok(ControlFlow::Continue(()));
            }
        };
        if dropped > 0 {
            (self.note)(&format!("the oldest {dropped} messages are dropped: the context is full"));
        }
        let mut options = self.options.clone();
        options.sampling.seed = options.sampling.seed.wrapping_add(self.turns);
        self.turns += 1;

        let mut failed = None;
        INTERRUPTED.store(false, Ordering::Relaxed);
        ANSWERING.store(true, Ordering::Relaxed);
        let answer = chat.answer(&prompt, &options, &mut |piece| {
            failed = write_out(piece).err();
            match failed.is_some() || INTERRUPTED.load(Ordering::Relaxed) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        ANSWERING.store(false, Ordering::Relaxed);
        let answer = answer?;
        match failed.or_else(|| write_out("\n").err()) {
            Some(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(ControlFlow::Break(())),
            Some(source) => return Err(Error::Write { path: "standard output".into(), source }),
            None => {}
        }
        self.history.push_assistant(&answer.text);
        (self.note)(&summary(&answer, chat.context(), self.options.max_new_tokens));
        Ok(ControlFlow::Continue(()))
    }
}

fn summary(answer: &Answer, context: usize, most: usize) -> String {
    let rate = if answer.seconds > 0.0 { answer.tokens as f64 / answer.seconds } else { 0.0 };
    let end = match answer.finish {
        Finish::Stop => "",
        Finish::Length if answer.tokens == most => "; cut by --max_new_tokens",
        Finish::Length => "; cut by the end of the context",
        Finish::Caller => "; cut by Ctrl-C",
    };
    format!(
        "[{} tokens, {rate:.1} tokens/s; prompt {} tokens, {} of them new, {:.2}s; context {} of {context}{end}]",
        answer.tokens,
        answer.prompt_tokens,
        answer.prompt_tokens - answer.reused,
        answer.prompt_seconds,
        answer.prompt_tokens + answer.tokens,
    )
}

static ANSWERING: AtomicBool = AtomicBool::new(false);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Ctrl-C ends an answer; where none is being made, or at the second time, the program.
fn catch_interrupts() {
    // where a handler cannot be set, the signal ends the program as before
    let _ = ctrlc::set_handler(|| {
        if !ANSWERING.load(Ordering::Relaxed) || INTERRUPTED.swap(true, Ordering::Relaxed) {
            std::process::exit(i32::from(Exit::Stopped as u8));
        }
    });
}
