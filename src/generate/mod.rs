//! Text from a model: sampling, generation with a KV cache, conversations.

mod chat;
mod generator;
mod history;
pub mod sampling;
mod stop;

pub use chat::{Answer, AnswerOptions, Chat, ChatOptions, Finish};
pub use generator::{CacheSize, End, GenerateError, GenerateOptions, Generated, Generator};
pub use history::History;
pub use stop::StopTexts;
