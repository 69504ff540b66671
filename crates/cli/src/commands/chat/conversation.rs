//! What was said so far, and the file it can be kept in.
use crate::answer::Said;
use crate::args::read_text;
use anyhow::{Context as _, Result, bail};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::Path;

/// A conversation.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Conversation {
    /// What the model is told before everything else.
    #[serde(default)]
    pub(super) system: Option<String>,
    /// Questions and answers in turn, the oldest first.
    messages: Vec<Message>,
}

/// One message.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Message {
    pub(super) role: Role,
    pub(super) content: String,
    /// What the model thought before it answered.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) reasoning_content: String,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Role {
    User,
    Assistant,
}

impl Conversation {
    /// A conversation in which nothing was said.
    pub(super) fn new(system: Option<String>) -> Self {
        Self { system, messages: Vec::new() }
    }

    /// Adds a question.
    pub(super) fn ask(&mut self, content: String) {
        let reasoning_content = String::new();
        self.messages.push(Message { role: Role::User, content, reasoning_content });
    }

    /// Adds the answer to the last question.
    pub(super) fn answer(&mut self, Said { content, reasoning }: Said) {
        let role = Role::Assistant;
        self.messages.push(Message { role, content, reasoning_content: reasoning });
    }

    /// Takes back the last answer, so that its question is open again; false if there is none.
    pub(super) fn reopen(&mut self) -> bool {
        self.messages.pop_if(|last| last.role == Role::Assistant).is_some()
    }

    /// Takes back an open question.
    pub(super) fn unask(&mut self) {
        self.messages.pop_if(|last| last.role == Role::User);
    }

    /// Forgets the oldest question with its answer and returns the question, unless it is the last one.
    pub(super) fn forget_oldest(&mut self) -> Option<String> {
        let is_question = |message: &Message| message.role == Role::User;
        let second = self.messages.iter().skip(1).position(is_question)? + 1;
        self.messages.drain(..second).next().map(|message| message.content)
    }

    /// Forgets everything but the system prompt.
    pub(super) fn clear(&mut self) {
        self.messages.clear();
    }

    /// What was said.
    pub(super) fn messages(&self) -> &[Message] {
        &self.messages
    }

    /// As chat templates want it.
    pub(super) fn for_template(&self) -> Vec<Value> {
        let system = self.system.iter().map(|text| json!({"role": "system", "content": text}));
        system.chain(self.messages.iter().map(|message| json!(message))).collect()
    }

    /// Writes the conversation to a file. A file that holds something else is not overwritten.
    pub(super) fn save(&self, path: &Path) -> Result<()> {
        if path.exists() && Self::load(path).is_err() {
            bail!("{}: exists and is no saved conversation; choose another name", path.display());
        }
        let text = serde_json::to_string_pretty(self)? + "\n";
        std::fs::write(path, text).with_context(|| format!("{}: cannot write", path.display()))
    }

    /// Reads what [`Conversation::save`] wrote.
    pub(super) fn load(path: &Path) -> Result<Self> {
        serde_json::from_str(&read_text(path)?)
            .with_context(|| format!("{}: no saved conversation", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_turns() -> Conversation {
        let mut conversation = Conversation::new(Some("Be brief.".into()));
        for (question, answer) in [("a?", "A."), ("b?", "B.")] {
            conversation.ask(question.into());
            conversation.answer(Said { content: answer.into(), reasoning: String::new() });
        }
        conversation
    }

    #[test]
    fn the_oldest_turn_is_forgotten_first_and_the_last_never() {
        let mut conversation = two_turns();
        conversation.ask("c?".into());
        assert_eq!(conversation.forget_oldest().as_deref(), Some("a?"));
        assert_eq!(conversation.forget_oldest().as_deref(), Some("b?"));
        assert_eq!(conversation.forget_oldest(), None);
        let left = json!([
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "c?"}
        ]);
        assert_eq!(json!(conversation.for_template()), left);
    }

    #[test]
    fn answers_and_questions_are_taken_back() {
        let mut conversation = two_turns();
        conversation.unask();
        assert_eq!(conversation, two_turns());
        assert!(conversation.reopen());
        assert!(!conversation.reopen());
        conversation.unask();
        assert_eq!(conversation.messages().len(), 2);
    }

    #[test]
    fn files_round_trip_and_others_are_left_alone() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("talk.json");
        two_turns().save(&path).expect("saved");
        two_turns().save(&path).expect("saved again");
        assert_eq!(Conversation::load(&path).expect("loaded"), two_turns());

        let other = folder.path().join("other.json");
        std::fs::write(&other, "{}").expect("written");
        assert!(two_turns().save(&other).is_err());
        assert_eq!(std::fs::read_to_string(&other).expect("read"), "{}");
    }
}
