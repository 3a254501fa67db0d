//! Text from a model: sampling, generation with a KV cache, conversations.

mod chat;
mod generator;
mod history;
pub mod sampling;
mod score;
mod stop;

pub use chat::{Answer, AnswerOptions, Chat, ChatOptions, Finish, ScoredToken};
pub use generator::{CacheSize, End, GenerateError, GenerateOptions, Generated, Generator};
pub use history::History;
pub use score::TokenScore;
pub use stop::StopTexts;
