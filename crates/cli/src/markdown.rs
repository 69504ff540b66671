//! Markdown for terminals.

/// Draws Markdown while it arrives.
#[derive(Debug)]
pub(crate) struct MarkdownStream;

impl MarkdownStream {
    /// A stream for a terminal of `width` columns.
    pub(crate) fn new(_width: usize, _color: bool) -> Self {
        Self
    }
    /// What to print when `text` arrives.
    pub(crate) fn push(&mut self, text: &str) -> String {
        crate::terminal::harmless(text)
    }
    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        String::new()
    }
}
