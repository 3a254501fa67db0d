//! What was said in a conversation so far, and how it is made to fit.

use crate::data::Conversation;
use serde_json::{Map, Value};

/// A conversation that grows turn by turn: a system text, then messages.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct History {
    system: Option<String>,
    messages: Vec<Map<String, Value>>,
}

impl History {
    /// Nothing said yet. An empty system text counts as none.
    pub fn new(system: Option<String>) -> Self {
        History { system: system.filter(|text| !text.is_empty()), messages: Vec::new() }
    }

    /// Messages without the system text.
    pub fn len(&self) -> usize {
        self.messages.len()
    }

    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    pub fn push_user(&mut self, text: &str) {
        self.messages.push(Conversation::message("user", text));
    }

    pub fn push_assistant(&mut self, text: &str) {
        self.messages.push(Conversation::message("assistant", text));
    }

    /// Takes the last message back.
    pub fn pop(&mut self) {
        self.messages.pop();
    }

    /// Forgets all but the system text.
    pub fn clear(&mut self) {
        self.messages.clear();
    }

    /// Drops the oldest turn: a user's message and what follows up to the next one, because templates want a user to
    /// speak first. The last user's message stays: `false` where there is no other.
    pub fn drop_oldest(&mut self) -> bool {
        let user = |message: &Map<String, Value>| message.get("role").is_some_and(|role| role == "user");
        match self.messages.iter().skip(1).position(user) {
            Some(next) => {
                self.messages.drain(..=next);
                true
            }
            None => false,
        }
    }

    /// As a chat template reads it.
    pub fn conversation(&self) -> Conversation {
        let system = self.system.as_ref().map(|text| Conversation::message("system", text));
        Conversation::of_messages(system.into_iter().chain(self.messages.iter().cloned()).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(history: &History) -> Vec<String> {
        let messages = history.conversation().messages;
        messages.iter().map(|message| message["content"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn the_oldest_turn_goes_first_and_system_and_last_question_stay() {
        let mut history = History::new(Some("kind".into()));
        for (question, answer) in [("1?", "1!"), ("2?", "2!")] {
            history.push_user(question);
            history.push_assistant(answer);
        }
        history.push_user("3?");
        assert_eq!(texts(&history), ["kind", "1?", "1!", "2?", "2!", "3?"]);
        assert!(history.drop_oldest());
        assert_eq!(texts(&history), ["kind", "2?", "2!", "3?"]);
        assert!(history.drop_oldest());
        assert!(!history.drop_oldest());
        assert_eq!(texts(&history), ["kind", "3?"]);
        history.pop();
        assert!(history.is_empty() && !history.drop_oldest());
        assert_eq!(texts(&history), ["kind"]);
        assert_eq!(texts(&History::new(Some(String::new()))), Vec::<String>::new());
    }
}
