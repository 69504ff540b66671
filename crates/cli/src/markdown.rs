//! Markdown for terminals, drawn while it arrives.
//!
//! A model writes a few characters at a time and a person reads along, so nothing may wait for the
//! end of a paragraph. Every character goes through three stages, each of which holds back only what
//! it cannot decide yet:
//!
//! ```text
//! char ─► block: heading, list, quote, fence ...   holds the beginning of a line
//!      ─► inline: emphasis, code, links            holds a span until its end mark, or the line's
//!      ─► words: wrapping                          holds a word near the right edge
//! ```
//!
//! As each stage sees single characters, the output cannot depend on how the text was cut. Marks that
//! turn out to be no Markdown are printed as they are: only marks vanish, never content. Lines stay
//! lines, since models break lines where they want them. Code and tables are neither wrapped nor
//! decorated, so that they can be copied.
use crate::terminal::harmless;
use std::mem::take;
use unicode_width::UnicodeWidthChar as _;

/// Words that begin this close to the right edge are held until their length is known.
const EDGE: usize = 24;
/// Bytes after which the beginning of a line is taken for text.
const MAX_START: usize = 200;
/// Characters after which an open `*`, `_`, `~~` or backtick is taken for itself.
const MAX_SPAN: usize = 200;
/// The same for a link.
const MAX_LINK: usize = 1000;

/// Draws Markdown while it arrives.
#[derive(Debug)]
pub(crate) struct MarkdownStream {
    color: bool,
    out: Writer,
    block: Block,
    inline: Inline,
    /// A block mark in front of the line's text has been drawn: in a quote there are no fences.
    quoted: bool,
}

/// What the current line is.
#[derive(Debug)]
enum Block {
    /// Not known yet; what has been read of it.
    Start(String),
    Text,
    /// A row of a table.
    Row,
    /// A line in a fenced block, with what may be its closing fence.
    Code {
        fence: Fence,
        start: Option<String>,
    },
}

/// The characters that opened a fenced block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fence {
    mark: char,
    len: usize,
}

impl MarkdownStream {
    /// A stream for a terminal of `width` columns. Without `color` the text is left as it is.
    pub(crate) fn new(width: usize, color: bool) -> Self {
        Self {
            color,
            out: Writer::new(width),
            block: Block::Start(String::new()),
            inline: Inline::default(),
            quoted: false,
        }
    }

    /// What to print when `text` arrives.
    pub(crate) fn push(&mut self, text: &str) -> String {
        if !self.color {
            return harmless(text);
        }
        for c in text.chars() {
            match c {
                '\n' => self.end_line(),
                '\r' => {} // of "\r\n"
                '\t' if !matches!(self.block, Block::Code { .. }) => {
                    (0..4).for_each(|_| self.char(' '));
                }
                c if c.is_control() && c != '\t' => self.char('\u{fffd}'),
                c => self.char(c),
            }
        }
        take(&mut self.out.text)
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        self.end_block();
        self.out.set(Style::PLAIN);
        take(&mut self.out.text)
    }

    fn char(&mut self, c: char) {
        match &mut self.block {
            Block::Start(line) => {
                line.push(c);
                self.decide(false);
            }
            Block::Text => self.inline.char(c, &mut self.out),
            Block::Row => {
                let style = if c == '|' { Style::FAINT } else { Style::PLAIN };
                self.out.verbatim(c, style);
            }
            Block::Code { fence, start } => match start {
                Some(line) => {
                    line.push(c);
                    if !fence.may_close(line) {
                        let line = take(line);
                        *start = None;
                        line.chars().for_each(|c| self.out.verbatim(c, Style::CODE));
                    }
                }
                None => self.out.verbatim(c, Style::CODE),
            },
        }
    }

    fn end_line(&mut self) {
        self.end_block();
        self.out.new_line();
        self.quoted = false;
        if let Block::Code { start, .. } = &mut self.block {
            *start = Some(String::new());
        } else {
            self.block = Block::Start(String::new());
        }
    }

    /// Draws what the line holds back, as nothing more will come.
    fn end_block(&mut self) {
        self.decide(true);
        if let Block::Code { fence, start: Some(line) } = &self.block {
            let closed = fence.closes(line);
            let style = if closed { Style::FAINT } else { Style::CODE };
            line.chars().for_each(|c| self.out.verbatim(c, style));
            if closed {
                self.block = Block::Text;
            }
        }
        if matches!(self.block, Block::Text) {
            self.inline.end_line(&mut self.out);
        }
    }

    /// Draws the beginning of the line as soon as it is known what the line is. `end`: nothing more
    /// will come in this line.
    fn decide(&mut self, end: bool) {
        while let Block::Start(line) = &mut self.block {
            let Some(start) = LineStart::of(line, end, self.quoted) else { return };
            let line = take(line);
            let text = line.trim_start();
            self.block = Block::Text;
            if start == LineStart::Blank {
                return;
            }
            self.out.margin(&" ".repeat(line.len() - text.len()), None);
            match start {
                LineStart::Blank => {}
                LineStart::Text => text.chars().for_each(|c| self.inline.char(c, &mut self.out)),
                LineStart::Heading { level } => {
                    self.inline.base = if level == 1 { Style::TITLE } else { Style::BOLD };
                    text[level..].trim_start().chars().for_each(|c| self.char(c));
                }
                LineStart::Rule => {
                    let n = self.out.width.saturating_sub(self.out.column).clamp(1, 80);
                    (0..n).for_each(|_| self.out.verbatim('─', Style::FAINT));
                }
                LineStart::Row => {
                    self.block = Block::Row;
                    text.chars().for_each(|c| self.char(c));
                }
                LineStart::Fence(fence) => {
                    text.chars().for_each(|c| self.out.verbatim(c, Style::FAINT));
                    self.block = Block::Code { fence, start: None };
                }
                LineStart::Item { mark, rest } => {
                    let drawn = if mark.len() == 1 { "• " } else { &format!("{mark} ") };
                    self.out.margin(drawn, Some(&" ".repeat(drawn.chars().count())));
                    self.block = Block::Start(rest);
                }
                LineStart::Quote { rest } => {
                    self.quoted = true;
                    self.out.margin("│ ", None);
                    self.block = Block::Start(rest);
                }
            }
        }
    }
}

/// How a line begins.
#[derive(Debug, PartialEq, Eq)]
enum LineStart {
    Blank,
    Text,
    Heading {
        level: usize,
    },
    Rule,
    Row,
    Fence(Fence),
    /// `mark` of a list and what has been read after it.
    Item {
        mark: String,
        rest: String,
    },
    Quote {
        rest: String,
    },
}

impl LineStart {
    /// `None` while `line` does not tell yet; `end` says that it is all of the line.
    fn of(line: &str, end: bool, quoted: bool) -> Option<Self> {
        let text = line.trim_start();
        let Some(first) = text.chars().next() else { return end.then_some(Self::Blank) };
        if line.len() > MAX_START {
            return Some(Self::Text);
        }
        let run = text.chars().take_while(|c| *c == first).count();
        let after = &text[run * first.len_utf8()..];
        // What is a beginning of something else as long as nothing follows.
        let open = after.is_empty() && !end;
        match first {
            '#' if run <= 6 => match after.starts_with(' ') {
                true => Some(Self::Heading { level: run }),
                false if open => None,
                false => Some(Self::Text),
            },
            '`' | '~' if run >= 3 && !quoted => match after.contains('`') {
                true => Some(Self::Text),
                false => end.then_some(Self::Fence(Fence { mark: first, len: run })),
            },
            '`' | '~' if run < 3 && open => None,
            '|' => Some(Self::Row),
            '>' => match text[1..].chars().next() {
                None if !end => None,
                Some(' ') => Some(Self::Quote { rest: text[2..].to_owned() }),
                _ => Some(Self::Quote { rest: text[1..].to_owned() }),
            },
            '-' | '*' | '_' | '+' => {
                let only_marks = text.chars().all(|c| c == first || c == ' ');
                if only_marks && !end {
                    return None;
                }
                let marks = text.chars().filter(|c| *c == first).count();
                if only_marks && marks >= 3 && first != '+' {
                    return Some(Self::Rule);
                }
                let item = run == 1 && first != '_' && after.starts_with(' ');
                Some(if item { Self::item(text, 1) } else { Self::Text })
            }
            '0'..='9' => {
                let digits = text.chars().take_while(char::is_ascii_digit).count();
                let mut after = text[digits..].chars();
                match (after.next(), after.next()) {
                    _ if digits > 9 => Some(Self::Text),
                    (None, _) | (Some('.' | ')'), None) if !end => None,
                    (Some('.' | ')'), Some(' ')) => Some(Self::item(text, digits + 1)),
                    _ => Some(Self::Text),
                }
            }
            _ => Some(Self::Text),
        }
    }

    fn item(text: &str, mark: usize) -> Self {
        let rest = &text[mark..];
        let rest = rest.strip_prefix(' ').unwrap_or(rest);
        Self::Item { mark: text[..mark].to_owned(), rest: rest.to_owned() }
    }
}

impl Fence {
    /// Whether `line` may become the closing fence.
    fn may_close(self, line: &str) -> bool {
        let marks = line.trim_start_matches(' ').trim_end_matches(' ');
        marks.chars().all(|c| c == self.mark)
    }

    fn closes(self, line: &str) -> bool {
        self.may_close(line) && line.chars().filter(|c| *c == self.mark).count() >= self.len
    }
}

/// Emphasis, code and links within a line.
#[derive(Debug, Default)]
struct Inline {
    /// The style of the line's text without marks.
    base: Style,
    bold: bool,
    italic: bool,
    held: Held,
    /// The last character drawn in this line.
    previous: Option<char>,
}

/// What waits for the next characters.
#[derive(Debug, Default)]
enum Held {
    #[default]
    Nothing,
    Backslash,
    /// Some of the same mark.
    Run {
        mark: char,
        len: usize,
    },
    /// A span that `len` marks have opened, and what has been read since.
    Span {
        mark: char,
        len: usize,
        text: String,
    },
    /// From the opening bracket on.
    Link(String),
}

impl Inline {
    fn char(&mut self, c: char, out: &mut Writer) {
        match take(&mut self.held) {
            Held::Nothing => match c {
                '\\' => self.held = Held::Backslash,
                '*' | '_' | '~' | '`' => self.held = Held::Run { mark: c, len: 1 },
                '[' => self.held = Held::Link("[".into()),
                c => self.draw(c, out),
            },
            Held::Backslash if c.is_ascii_punctuation() => self.draw(c, out),
            Held::Backslash => {
                self.draw('\\', out);
                self.char(c, out);
            }
            Held::Run { mark, len } if c == mark => self.held = Held::Run { mark, len: len + 1 },
            Held::Run { mark, len } => {
                self.open_or_close(mark, len, c, out);
                self.char(c, out);
            }
            Held::Span { mark, len, mut text } => {
                if self.closed(mark, len, &text, c) {
                    text.truncate(text.len() - len);
                    self.span(mark, &text, out);
                    self.char(c, out);
                } else if text.chars().count() >= MAX_SPAN {
                    text.push(c);
                    self.literal(mark, len, &text, out);
                } else {
                    text.push(c);
                    self.held = Held::Span { mark, len, text };
                }
            }
            Held::Link(mut text) => {
                text.push(c);
                match link(&text) {
                    LinkState::Open if text.len() < MAX_LINK => self.held = Held::Link(text),
                    LinkState::Closed { label, url } => self.link(label, url, out),
                    LinkState::Open | LinkState::None => self.no_link(&text, out),
                }
            }
        }
    }

    /// Ends the line.
    fn end_line(&mut self, out: &mut Writer) {
        self.settle(out);
        out.end_word();
        *self = Self::default();
    }

    /// Draws what is held, as nothing more will come.
    fn settle(&mut self, out: &mut Writer) {
        // Each round draws at least one mark of what is held.
        loop {
            match take(&mut self.held) {
                Held::Nothing => break,
                Held::Backslash => self.draw('\\', out),
                Held::Run { mark, len } => {
                    self.open_or_close(mark, len, ' ', out);
                    // What opens here has nothing to span.
                    if let Held::Span { mark, len, text } = take(&mut self.held) {
                        self.literal(mark, len, &text, out);
                    }
                }
                Held::Span { mark, len, mut text } => {
                    if self.closed(mark, len, &text, ' ') {
                        text.truncate(text.len() - len);
                        self.span(mark, &text, out);
                    } else {
                        self.literal(mark, len, &text, out);
                    }
                }
                Held::Link(text) => self.no_link(&text, out),
            }
        }
    }

    /// What a run of marks means between what has been drawn and `next`.
    fn open_or_close(&mut self, mark: char, len: usize, next: char, out: &mut Writer) {
        let after_space = self.previous.is_none_or(char::is_whitespace);
        let before_space = next.is_whitespace();
        let after_word = self.previous.is_some_and(is_word);
        match (mark, len) {
            ('`', _) => self.held = Held::Span { mark, len, text: String::new() },
            ('*', 1) if self.italic && !after_space => self.italic = false,
            ('*', 2) if self.bold && !after_space => self.bold = false,
            ('*', 3) if self.bold && self.italic && !after_space => {
                (self.bold, self.italic) = (false, false);
            }
            ('*', 2) if !self.bold && !before_space => self.bold = true,
            ('*', 3) if !self.bold && !self.italic && !before_space => {
                (self.bold, self.italic) = (true, true);
            }
            ('*' | '_', 1) | ('~', 2) if !before_space && !after_word => {
                self.held = Held::Span { mark, len, text: String::new() };
            }
            _ => (0..len).for_each(|_| self.draw(mark, out)),
        }
    }

    /// Whether the span ends at the end of `text`, given what follows.
    fn closed(&self, mark: char, len: usize, text: &str, next: char) -> bool {
        let inner = text.trim_end_matches(mark);
        if next == mark || inner.is_empty() || text.len() - inner.len() != len {
            return false;
        }
        let in_code = inner.matches('`').count() % 2 == 1;
        match mark {
            '`' => true,
            _ if in_code => false,
            '_' => !inner.ends_with(char::is_whitespace) && !is_word(next),
            _ => !inner.ends_with(char::is_whitespace),
        }
    }

    /// Draws a finished span.
    fn span(&mut self, mark: char, text: &str, out: &mut Writer) {
        let outer = self.base;
        match mark {
            '`' => {
                // `` `x` `` is how one writes backticks.
                let bare = text.strip_prefix(' ').and_then(|t| t.strip_suffix(' '));
                self.base.code = true;
                let text = bare.filter(|bare| !bare.trim().is_empty()).unwrap_or(text);
                text.chars().for_each(|c| self.draw(c, out));
            }
            _ => {
                self.base.italic |= mark != '~';
                self.base.struck |= mark == '~';
                self.nested(text, out);
            }
        }
        self.base = outer;
    }

    /// Draws a span that turned out to be none.
    fn literal(&mut self, mark: char, len: usize, text: &str, out: &mut Writer) {
        (0..len).for_each(|_| self.draw(mark, out));
        text.chars().for_each(|c| self.char(c, out));
    }

    fn link(&mut self, label: &str, url: &str, out: &mut Writer) {
        let outer = self.base;
        self.base.underlined = true;
        self.nested(label, out);
        self.base = outer;
        if label != url {
            self.base.faint = true;
            for c in [' ', '('].into_iter().chain(url.chars()).chain([')']) {
                self.draw(c, out);
            }
            self.base = outer;
        }
    }

    fn no_link(&mut self, text: &str, out: &mut Writer) {
        self.draw('[', out);
        text[1..].chars().for_each(|c| self.char(c, out));
    }

    /// Draws the inside of a span, which may have further marks of its own.
    fn nested(&mut self, text: &str, out: &mut Writer) {
        let mut inner = Self { base: self.style(), previous: self.previous, ..Self::default() };
        text.chars().for_each(|c| inner.char(c, out));
        inner.settle(out);
        self.previous = inner.previous;
    }

    fn style(&self) -> Style {
        Style {
            bold: self.base.bold | self.bold,
            italic: self.base.italic | self.italic,
            ..self.base
        }
    }

    fn draw(&mut self, c: char, out: &mut Writer) {
        out.put(c, self.style());
        self.previous = Some(c);
    }
}

/// What `[...` is so far.
enum LinkState<'a> {
    Open,
    Closed { label: &'a str, url: &'a str },
    None,
}

/// Reads `[label](url)`; neither part may have brackets of its own but for pairs of `()` in the URL.
fn link(text: &str) -> LinkState<'_> {
    let inner = &text[1..];
    if inner.contains('[') {
        return LinkState::None;
    }
    let Some((label, after)) = inner.split_once(']') else { return LinkState::Open };
    let Some(url) = after.strip_prefix('(') else {
        return if after.is_empty() && !label.is_empty() {
            LinkState::Open
        } else {
            LinkState::None
        };
    };
    match url.strip_suffix(')') {
        Some(url) if url.matches('(').count() == url.matches(')').count() => {
            LinkState::Closed { label, url }
        }
        _ if url.contains(char::is_whitespace) => LinkState::None,
        _ => LinkState::Open,
    }
}

/// Whether a character belongs to a word, in writing that puts spaces between words.
fn is_word(c: char) -> bool {
    c.is_alphanumeric() && c.width() == Some(1)
}

/// How characters look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Style {
    bold: bool,
    faint: bool,
    italic: bool,
    underlined: bool,
    struck: bool,
    code: bool,
}

impl Style {
    const PLAIN: Self = Self {
        bold: false,
        faint: false,
        italic: false,
        underlined: false,
        struck: false,
        code: false,
    };
    const BOLD: Self = Self { bold: true, ..Self::PLAIN };
    const TITLE: Self = Self { bold: true, underlined: true, ..Self::PLAIN };
    const FAINT: Self = Self { faint: true, ..Self::PLAIN };
    const CODE: Self = Self { code: true, ..Self::PLAIN };

    /// What two neighbours share, for the space between them.
    fn common(self, other: Self) -> Self {
        Self {
            bold: self.bold && other.bold,
            faint: self.faint && other.faint,
            italic: self.italic && other.italic,
            underlined: self.underlined && other.underlined,
            struck: self.struck && other.struck,
            code: self.code && other.code,
        }
    }

    /// The escape sequence that switches from any style to this one.
    fn sequence(self) -> String {
        let on = [
            (self.bold, ";1"),
            (self.faint, ";2"),
            (self.italic, ";3"),
            (self.underlined, ";4"),
            (self.struck, ";9"),
            (self.code, ";36"), // cyan
        ];
        let codes: String = on.iter().filter(|(on, _)| *on).map(|(_, code)| *code).collect();
        format!("\x1b[0{codes}m")
    }
}

/// Lays words out in lines.
#[derive(Debug)]
struct Writer {
    /// What has been drawn and not yet been taken.
    text: String,
    /// Columns of the terminal.
    width: usize,
    /// Columns used in this line.
    column: usize,
    /// What the lines of this paragraph begin with after the first.
    margin: String,
    style: Style,
    /// Spaces after the last word.
    spaces: usize,
    /// A word that may have to go to the next line.
    word: Vec<(char, Style)>,
    /// Whether a word is being drawn at once.
    drawing: bool,
    previous: char,
}

impl Writer {
    fn new(width: usize) -> Self {
        Self {
            text: String::new(),
            width: width.max(1),
            column: 0,
            margin: String::new(),
            style: Style::PLAIN,
            spaces: 0,
            word: Vec::new(),
            drawing: false,
            previous: ' ',
        }
    }

    /// Draws the next part of a line's margin; where the line is wrapped, `wrapped` takes its place.
    fn margin(&mut self, text: &str, wrapped: Option<&str>) {
        text.chars().for_each(|c| self.verbatim(c, Style::FAINT));
        self.margin.push_str(wrapped.unwrap_or(text));
    }

    /// Draws a character of running text.
    fn put(&mut self, c: char, style: Style) {
        if c == ' ' {
            self.end_word();
            self.spaces += 1;
            self.previous = c;
            return;
        }
        let width = c.width().unwrap_or(0);
        // East Asian characters are words of their own; joined emoji are one.
        let wide = |c: char| c.width() == Some(2);
        let joined = width == 0 || self.previous == '\u{200d}';
        if !joined && (wide(c) || wide(self.previous)) {
            self.end_word();
        }
        self.previous = c;
        let edge = if wide(c) { 2 } else { EDGE };
        let fits = self.column + self.spaces + edge <= self.width;
        if !self.drawing && self.word.is_empty() && fits {
            self.draw_spaces(style);
            self.drawing = true;
        }
        if self.drawing {
            self.draw(c, style);
            return;
        }
        self.word.push((c, style));
        if self.word_width() >= self.width {
            // No line has room for it: the terminal breaks it, which leaves it whole for copying.
            self.end_word();
            self.drawing = true;
        }
    }

    /// Draws the word that is held, in the next line if it does not fit in this one.
    fn end_word(&mut self) {
        self.drawing = false;
        let Some(&(_, style)) = self.word.first() else { return };
        if self.column + self.spaces + self.word_width() > self.width
            && self.column > self.margin.chars().count()
        {
            self.wrap();
        }
        self.draw_spaces(style);
        for (c, style) in take(&mut self.word) {
            self.draw(c, style);
        }
    }

    fn word_width(&self) -> usize {
        self.word.iter().map(|(c, _)| c.width().unwrap_or(0)).sum()
    }

    fn draw_spaces(&mut self, next: Style) {
        let n = take(&mut self.spaces);
        if n > 0 {
            let style = self.style.common(next);
            (0..n).for_each(|_| self.draw(' ', style));
        }
    }

    /// Draws a character where it stands, whatever the width.
    fn verbatim(&mut self, c: char, style: Style) {
        self.end_word();
        self.draw_spaces(style);
        self.draw(c, style);
    }

    fn draw(&mut self, c: char, style: Style) {
        self.set(style);
        self.text.push(c);
        self.column += c.width().unwrap_or(0);
        if self.column > self.width {
            self.column -= self.width; // the terminal has gone to the next line
        }
    }

    fn wrap(&mut self) {
        self.set(Style::PLAIN);
        self.text.push('\n');
        self.column = 0;
        self.spaces = 0;
        // Where margins leave no room they are left out.
        if self.margin.chars().count() * 2 <= self.width {
            for c in take(&mut self.margin).chars() {
                self.draw(c, Style::FAINT);
                self.margin.push(c);
            }
        }
    }

    fn new_line(&mut self) {
        self.end_word();
        self.set(Style::PLAIN);
        self.text.push('\n');
        self.column = 0;
        self.spaces = 0;
        self.previous = ' ';
        self.margin.clear();
    }

    fn set(&mut self, style: Style) {
        if style != self.style {
            self.text.push_str(&style.sequence());
            self.style = style;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn draw<'a>(pieces: impl IntoIterator<Item = &'a str>, width: usize) -> String {
        let mut stream = MarkdownStream::new(width, true);
        let mut out: String = pieces.into_iter().map(|piece| stream.push(piece)).collect();
        out.push_str(&stream.finish());
        out
    }

    /// Shows styles as tags: `<b>` bold, `<f>` faint, `<i>` italic, `<u>` underlined, `<s>` struck,
    /// `<c>` code; `<>` plain.
    fn tagged(text: &str) -> String {
        let mut parts = text.split("\x1b[");
        let mut out = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            let (codes, rest) = part.split_once('m').expect("a style");
            let tags = codes.split(';').map(|code| match code {
                "0" => "",
                "1" => "b",
                "2" => "f",
                "3" => "i",
                "4" => "u",
                "9" => "s",
                "36" => "c",
                other => panic!("style {other}"),
            });
            out.push_str(&format!("<{}>{rest}", tags.collect::<String>()));
        }
        out
    }

    fn stripped(text: &str) -> String {
        let mut parts = text.split("\x1b[");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |out, part| out + part.split_once('m').expect("a style").1)
    }

    #[track_caller]
    fn check(markdown: &str, want: &str) {
        assert_eq!(tagged(&draw([markdown], 40)), want, "{markdown:?}");
    }

    #[test]
    fn inline_marks() {
        check("a **b c** d", "a <b>b c<> d");
        check("a *b c* d", "a <i>b c<> d");
        check("a _b c_ d", "a <i>b c<> d");
        check("***a*** b", "<bi>a<> b");
        check("***a* b**", "<bi>a<b> b<>");
        check("**a *b* c**", "<b>a <bi>b<b> c<>");
        check("*a **b** c*", "<i>a <bi>b<i> c<>");
        check("是**粗**的", "是<b>粗<>的");
        check("~~a~~ ~b~", "<s>a<> ~b~");
        check("`a*b*` ``c`d`` `` ` ``", "<c>a*b* c`d `<>");
        check("*see `a*b` now*", "<i>see <ic>a*b<i> now<>");
        check("[a *b*](http://x.y/(z)) c", "<u>a <iu>b<> <f>(http://x.y/(z))<> c");
        check("[http://x.y](http://x.y)", "<u>http://x.y<>");
        check("![a](b.png)", "!<u>a<> <f>(b.png)<>");
        check(r"\*a\* \# \d \\", r"*a* # \d \");
    }

    #[test]
    fn marks_that_are_none_stay() {
        for text in [
            "2 * 3 * 4",
            "5*3 = 15",
            "snake_case_name",
            "the __init__ method",
            "*args and more",
            "a ** b",
            "a_ b_",
            "`open",
            "[ ] task",
            "[x]",
            "[a](b c)",
            "[a",
            "[[a]]",
            "a]",
            "~/x ~ y",
            "<b>&amp;",
            "#tag",
            "1.5 kg",
            "2024 was",
            "-5",
            "--flag",
            "+1",
            "``",
            "*",
            "_",
            "a*",
            "a\\",
            "$x_1 * y_2$",
        ] {
            assert_eq!(stripped(&draw([text], 80)), text);
        }
    }

    #[test]
    fn blocks() {
        check("# A *b*\n## C\nd", "<bu>A <biu>b<>\n<b>C<>\nd");
        check("- a\n  * b\n1. c\n10) d", "<f>• <>a\n<f>  • <>b\n<f>1. <>c\n<f>10) <>d");
        check("- **a**: b", "<f>• <b>a<>: b");
        check("> a\n> - b\n>c", "<f>│ <>a\n<f>│ • <>b\n<f>│ <>c");
        check("a\n\n---\n***", &format!("a\n\n<f>{0}<>\n<f>{0}<>", "─".repeat(40)));
        check("| a | **b** |\n|---|---|", "<f>|<> a <f>|<> **b** <f>|<>\n<f>|<>---<f>|<>---<f>|<>");
        check("a  \r\nb\tc", "a\nb    c");
    }

    #[test]
    fn code_is_verbatim() {
        let code = "  fn *a*() {\n\n\t`x` # [b](c) // a line that is much longer than the terminal is wide\n";
        let markdown = format!("a:\n```rust\n{code}```\n*b*");
        let want = format!(
            "a:\n<f>```rust<>\n<c>{}<i>b<>",
            code.replace('\n', "<>\n<c>").replace("<c><>", "")
        );
        let want = want.replace("<c><i>b", "<f>```<>\n<i>b");
        check(&markdown, &want);
        check("````\n```\n````\na", "<f>````<>\n<c>```<>\n<f>````<>\na");
        check("~~~\n``\n ~~~ \na", "<f>~~~<>\n<c>``<>\n<f> ~~~ <>\na");
        check(
            "- x\n  ```sh\n  ls\n  ```\n- y",
            "<f>• <>x\n<f>  ```sh<>\n<c>  ls<>\n<f>  ```<>\n<f>• <>y",
        );
        check("```\nopen", "<f>```<>\n<c>open<>");
        check("> ```\n> a", "<f>│ <>```\n<f>│ <>a");
    }

    #[test]
    fn wraps_at_words() {
        let wrap = |text: &str, width| stripped(&draw([text], width));
        assert_eq!(wrap("aaa bbb ccc ddd", 7), "aaa bbb\nccc ddd");
        assert_eq!(wrap("- aaa bbb ccc", 9), "• aaa bbb\n  ccc");
        assert_eq!(wrap("> aaa bbb ccc", 9), "│ aaa bbb\n│ ccc");
        assert_eq!(wrap("  10. aaa bbb", 12), "  10. aaa\n      bbb");
        assert_eq!(wrap("aaa **bbb** *ccc* d", 7), "aaa bbb\nccc d");
        assert_eq!(
            wrap("aaa http://example.org/long/path b", 10),
            "aaa\nhttp://example.org/long/path b"
        );
        assert_eq!(wrap("中文字符很宽", 6), "中文字\n符很宽");
        assert_eq!(wrap("aaaa👩\u{200d}👧👩", 6), "aaaa👩\u{200d}👧👩");
        assert_eq!(wrap("aaaaa👩\u{200d}👧", 6), "aaaaa\n👩\u{200d}👧");
    }

    #[test]
    fn text_appears_at_once() {
        let mut stream = MarkdownStream::new(80, true);
        let pieces = [
            ("Hel", "Hel"),
            ("lo", "lo"),
            (" w", " w"),
            (" *", ""),
            ("*", ""),
            ("x", " \x1b[0;1mx"),
            ("\n", "\x1b[0m\n"),
            ("#", ""),
            ("# ", ""),
            ("T", "\x1b[0;1mT"),
            ("\n", "\x1b[0m\n"),
            ("-", ""),
            (" ", ""),
            ("i", "\x1b[0;2m• \x1b[0mi"),
            ("\n```", "\n"),
            ("py\n", "\x1b[0;2m```py\x1b[0m\n"),
            ("  x", "\x1b[0;36m  x"),
            ("=1", "=1"),
        ];
        for (piece, want) in pieces {
            assert_eq!(stream.push(piece), want, "{piece:?}");
        }
        assert_eq!(stream.finish(), "\x1b[0m");
    }

    #[test]
    fn control_characters_cannot_steer_the_terminal() {
        let attack = "a\x1b[2J\x1b]0;t\x07 \u{9b}31m `\x1b[1m`\n```\n\x1b[0m\u{8}\n```";
        let drawn = stripped(&draw([attack], 80));
        assert!(drawn.chars().all(|c| c == '\n' || !c.is_control()), "{drawn:?}");
        assert_eq!(drawn.matches('\u{fffd}').count(), 7);
        let plain = MarkdownStream::new(80, false).push(attack);
        assert!(plain.chars().all(|c| c == '\n' || !c.is_control()), "{plain:?}");
    }

    #[test]
    fn without_colour_the_text_is_left_alone() {
        let text = "# A\n- **b** `c` [d](e)\n\n```\nx\n```\n a very long line that is longer than the width";
        let mut stream = MarkdownStream::new(20, false);
        assert_eq!(stream.push(text) + &stream.finish(), text);
    }

    #[test]
    fn long_runs_of_marks_are_fast() {
        for part in
            ["*", "_", "`", "[", "*a ", "_a", "[a](", "~~", "> ", "- ", "`a``b", "**a* ", "\\"]
        {
            let start = std::time::Instant::now();
            let text = part.repeat(20_000);
            let drawn = draw([text.as_str()], 80);
            assert!(drawn.len() < text.len() * 20);
            assert!(start.elapsed().as_secs() < 10, "{part}: {:?}", start.elapsed());
        }
    }

    proptest! {
        #[test]
        fn output_does_not_depend_on_the_pieces(
            words in prop::collection::vec(
                prop::sample::select(vec![
                    "*", "**", "_", "`", "```", "~~", "[", "](", ")", "#", "-", "1.", ">", "|", " ", "  ",
                    "\n", "\\", "a", "word", "中", "é", "\t", "👩", "\u{200d}", "\x1b[1m", "~~~\n",
                ]),
                0..60,
            ),
            width in 1_usize..60,
        ) {
            let text = words.concat();
            let whole = draw([text.as_str()], width);
            let chars: Vec<String> = text.chars().map(String::from).collect();
            prop_assert_eq!(&draw(words.iter().copied(), width), &whole);
            prop_assert_eq!(&draw(chars.iter().map(String::as_str), width), &whole);
            // Marks may vanish, words may not.
            let letters = |text: &str| -> String { text.chars().filter(|c| c.is_alphanumeric()).collect() };
            let harmless = text.replace("\x1b[1m", "1m");
            prop_assert_eq!(letters(&stripped(&whole)), letters(&harmless));
        }

        #[test]
        fn lines_fit(text in "([a-z]{1,9}|\\*\\*[a-z]{1,6}\\*\\*|中|`[a-z]{1,5}`)( ([a-z]{1,9}|\\*[a-z]{1,6}\\*|中|`[a-z]{1,5}`)){0,40}", width in 16_usize..70) {
            for prefix in ["", "- ", "> ", "## ", "12. "] {
                let drawn = stripped(&draw([prefix, text.as_str()], width));
                for line in drawn.lines() {
                    let columns: usize = line.chars().filter_map(|c| c.width()).sum();
                    prop_assert!(columns <= width, "{line:?} has {columns} of {width}");
                }
            }
        }
    }
}
