//! Reads an answer as it comes: what is for the user, what is reasoning, and which tools are called.
//!
//! ```text
//! Start ─► Reasoning ─► Start ─► Content ─► Opened ─► Json | Name ─► Json | Block ─► After ─► Content
//! Header ─► Message | Json ─► Header                                        (gpt-oss)
//! ```
//! Every character is looked at once, or twice where it may begin a marker, and what is decided depends on
//! the characters alone, not on the pieces in which they come. A short call is told when it is complete, so
//! that one that turns out to be none is content. A long one is told as it comes ([`COMMIT`]); where its
//! arguments turn out to be no JSON, the client gets them as they are.
use super::call;
use super::format::{AnswerFormat, Calls, HARMONY};
use super::scan::{Found, JsonScan, Step, find, members};
use serde_json::Value;

/// A part of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AnswerPiece {
    /// Text for the user.
    Content(String),
    /// What the model thinks before it answers.
    Reasoning(String),
    /// The model begins to call the tool of this name.
    CallBegin(String),
    /// More of the call's arguments, which are JSON.
    CallArguments(String),
    /// The call is complete.
    CallEnd,
}

/// How an answer is to be read.
#[derive(Debug, Clone, Default)]
pub struct ReadAnswer {
    /// The prompt has opened a section of reasoning.
    pub thinking: bool,
    /// The tools that may be called, in OpenAI's shape; without any, no calls are looked for.
    pub tools: Vec<Value>,
    /// Tell the first call only.
    pub single_call: bool,
}

/// Bytes of a call from which on it is told before it is complete.
const COMMIT: usize = 256;
/// Longest name of a tool, and longest header of a message.
const MAX_NAME: usize = 256;

/// Reads one answer.
#[derive(Debug)]
pub struct AnswerParser {
    format: AnswerFormat,
    how: ReadAnswer,
    /// What is looked for in content.
    markers: Vec<(&'static str, Marker)>,
    state: State,
    /// The text that is not read yet is `held[pos..]`.
    held: String,
    pos: usize,
    /// White space at the end of content or reasoning, which goes if something else follows.
    space: String,
    /// Reasoning has been looked for.
    reasoned: bool,
    /// What came last, to keep messages of one kind apart.
    last: Last,
    n_calls: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Marker {
    /// Opens a call.
    Call,
    /// Opens a call and is a part of it.
    Block,
    /// Says nothing.
    Dropped,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Last {
    Nothing,
    Content,
    Reasoning,
    Call,
}

#[derive(Debug)]
enum State {
    /// Nothing but white space so far.
    Start,
    Content,
    Reasoning,
    /// Behind a marker that opens a call; with the text since then.
    Opened(String),
    /// In the name of a tool.
    Name {
        raw: String,
        name: String,
        part: NamePart,
    },
    Json(Box<JsonCall>),
    /// In a call that is read when it is complete.
    Block {
        raw: String,
        body: usize,
        in_value: bool,
    },
    /// In arguments that are no JSON.
    Spill,
    /// Behind a call.
    After {
        raw: String,
        list: bool,
        bare: bool,
    },
    /// In the header of a message.
    Header(String),
    /// In a message.
    Message(Last),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum NamePart {
    Name,
    /// Between the name and the arguments.
    Id,
    /// The rest of a line.
    Line,
}

/// A call of which an object is being read: all of it, or its arguments.
#[derive(Debug, Default)]
struct JsonCall {
    /// The text since the marker.
    raw: String,
    /// The object, control characters in texts escaped.
    json: String,
    scan: JsonScan,
    /// The name, if it does not stand in the object.
    name: Option<String>,
    list: bool,
    bare: bool,
    /// Where in `json` the arguments begin and how much of them has been told, once the call is told of.
    told: Option<usize>,
    /// Where they end.
    end: Option<usize>,
    /// It has been tried to tell of it.
    tried: bool,
}

impl AnswerParser {
    /// A reader of one answer.
    pub fn new(format: AnswerFormat, how: ReadAnswer) -> Self {
        let mut markers: Vec<_> = format.dropped.iter().map(|m| (*m, Marker::Dropped)).collect();
        if !how.tools.is_empty() {
            markers.extend(format.row.dropped.iter().map(|marker| (*marker, Marker::Dropped)));
            match &format.row.calls {
                Calls::Json { open, .. } | Calls::Named { open, .. } => {
                    markers.push((open, Marker::Call));
                }
                Calls::Gemma { open, .. } | Calls::Python { open, .. } => {
                    markers.push((open, Marker::Call));
                }
                Calls::Tagged(tags) => {
                    markers.push((tags.wrapper.0, Marker::Call));
                    if !tags.open.is_empty() {
                        markers.push((tags.wrapper.1, Marker::Dropped));
                        markers.push((tags.open, Marker::Block));
                    }
                }
                Calls::Harmony => {}
            }
        }
        let state = match format.row.calls {
            Calls::Harmony => State::Header(String::new()),
            _ if how.thinking => State::Reasoning,
            _ => State::Start,
        };
        Self {
            format,
            reasoned: how.thinking,
            how,
            markers,
            state,
            held: String::new(),
            pos: 0,
            space: String::new(),
            last: Last::Nothing,
            n_calls: 0,
        }
    }

    /// Calls that the answer has made so far.
    pub fn n_calls(&self) -> usize {
        self.n_calls
    }

    /// Whether the text so far ends in reasoning.
    pub fn is_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning | State::Message(Last::Reasoning))
    }

    /// Takes the next piece of text, and appends what is known of it now.
    pub fn push(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        self.held.push_str(text);
        while self.step(out) {}
        self.held.drain(..self.pos);
        self.pos = 0;
    }

    /// The text has ended: appends what was held back.
    pub fn finish(&mut self, out: &mut Vec<AnswerPiece>) {
        let rest = self.held.split_off(self.pos);
        // Behind a call, what begins like another one is the beginning of one that was cut off, and no text.
        let cut_off = self.n_calls > 0
            && match &self.state {
                State::Content => {
                    self.markers.iter().any(|(text, _)| text.starts_with(rest.trim()))
                }
                State::Opened(_) | State::Name { .. } => true,
                State::Json(call) => call.told.is_none(),
                State::Block { raw, body, .. } => match &self.format.row.calls {
                    Calls::Tagged(tags) => {
                        !(raw[*body..].to_owned() + &rest).contains(tags.name_end)
                    }
                    _ => false,
                },
                _ => false,
            };
        match std::mem::replace(&mut self.state, State::Content) {
            State::Name { name, part: NamePart::Name, .. }
                if cut_off && self.is_tool((name.clone() + &rest).trim()) =>
            {
                self.call((name + &rest).trim(), "{}", out);
            }
            State::Json(call) if cut_off => match &call.name {
                Some(name) if call.json.is_empty() => self.call(&name.clone(), "{}", out),
                // Models forget the last bracket, but not what they call with.
                None if call.scan.depth() == 1
                    && !call.scan.in_text()
                    && members(&call.json).iter().any(|member| is_arguments(&member.key)) =>
                {
                    self.whole(&call, &(call.json.clone() + "}"), out);
                }
                _ => {}
            },
            _ if cut_off => {}
            State::Start | State::Content => self.content(&rest, out),
            State::Message(Last::Reasoning) | State::Reasoning => self.reasoning(&rest, out),
            State::Message(_) => self.content(&rest, out),
            State::Opened(raw) => self.content(&(raw + &rest), out),
            State::Name { raw, name, part } => {
                // Without arguments there may be no separator either.
                let name = if part == NamePart::Name { name + &rest } else { name };
                match self.is_tool(name.trim()) {
                    true => self.call(name.trim(), "{}", out),
                    false => self.content(&(raw + &rest), out),
                }
            }
            State::Json(mut call) => {
                if call.told.is_none() {
                    call.raw.push_str(&rest);
                }
                self.broken(call, out);
            }
            State::Block { raw, body, in_value } => self.block(raw + &rest, body, !in_value, out),
            State::Spill => {
                self.arguments(&rest, out);
                self.end_call(out);
            }
            State::After { .. } => {}
            State::Header(header) => {
                let header = header + &rest;
                if !header.contains("<|") {
                    self.content(&header, out);
                }
            }
        }
        // What ends in white space by itself ends in it.
        if self.n_calls == 0 && !self.space.is_empty() && self.last != Last::Reasoning {
            let space = std::mem::take(&mut self.space);
            if self.last == Last::Content || !self.reasoned {
                emit(out, AnswerPiece::Content(space));
            }
        }
    }

    /// Reads on; false if that takes more text.
    fn step(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        match &mut self.state {
            State::Start => self.start(),
            State::Content => {
                let texts: Vec<&str> = self.markers.iter().map(|(text, _)| *text).collect();
                let Some((before, index)) = self.take(&texts) else {
                    return self.rest(Last::Content, &texts, out);
                };
                self.content(&before, out);
                let (text, marker) = self.markers[index];
                match marker {
                    Marker::Call => self.state = State::Opened(text.to_owned()),
                    Marker::Block => {
                        let (raw, body) = (text.to_owned(), 0);
                        self.state = State::Block { raw, body, in_value: false };
                    }
                    Marker::Dropped => {}
                }
                true
            }
            State::Reasoning => {
                let close = [self.format.reasoning.1];
                let Some((before, _)) = self.take(&close) else {
                    return self.rest(Last::Reasoning, &close, out);
                };
                self.reasoning(&before, out);
                self.space.clear();
                self.state = State::Start;
                true
            }
            State::Opened(raw) => {
                let text = self.held[self.pos..].trim_start();
                let blank = self.held.len() - self.pos - text.len();
                raw.push_str(&self.held[self.pos..self.pos + blank]);
                self.pos += blank;
                let Some(first) = text.chars().next() else { return false };
                let json = first == '{' || first == '[';
                let begin = match &self.format.row.calls {
                    Calls::Gemma { .. } => "call:",
                    Calls::Tagged(tags) if !json => tags.open,
                    _ => "",
                };
                if text.len() < begin.len() && begin.starts_with(text) {
                    return false;
                }
                let begins = text.starts_with(begin);
                let raw = std::mem::take(raw);
                let body = raw.len();
                self.state = match &self.format.row.calls {
                    _ if !begins => return self.give_up(&raw, out),
                    Calls::Json { .. } | Calls::Named { close: "", .. } | Calls::Tagged(_)
                        if json =>
                    {
                        State::Json(Box::new(JsonCall { raw, ..JsonCall::default() }))
                    }
                    Calls::Named { .. } => {
                        State::Name { raw, name: String::new(), part: NamePart::Name }
                    }
                    Calls::Tagged(_) | Calls::Gemma { .. } | Calls::Python { .. } => {
                        State::Block { raw, body, in_value: false }
                    }
                    Calls::Json { .. } | Calls::Harmony => return self.give_up(&raw, out),
                };
                true
            }
            State::Name { .. } => self.name(out),
            State::Json(_) => self.json(out),
            State::Block { .. } => self.block_step(out),
            State::Spill => {
                let ends = self.call_ends();
                match self.take(&ends) {
                    Some((before, _)) => {
                        self.arguments(&before, out);
                        self.end_call(out);
                        self.leave_call();
                        true
                    }
                    None => {
                        let before = self.take_before(&ends);
                        self.arguments(&before, out);
                        false
                    }
                }
            }
            State::After { .. } => self.after(out),
            State::Header(_) => self.header(out),
            State::Message(kind) => {
                let kind = *kind;
                let Some((before, index)) = self.take(&ENDS) else {
                    return self.rest(kind, &ENDS, out);
                };
                self.text(kind, &before, out);
                self.space.clear();
                self.state =
                    State::Header(if index < 3 { String::new() } else { ENDS[index].to_owned() });
                true
            }
        }
    }

    fn start(&mut self) -> bool {
        let text = self.held[self.pos..].trim_start();
        let blank = self.held.len() - self.pos - text.len();
        self.space.push_str(&self.held[self.pos..self.pos + blank]);
        self.pos += blank;
        if text.is_empty() {
            return false;
        }
        if self.reasoned {
            self.space.clear();
        } else {
            let open = self.format.reasoning.0;
            if text.starts_with(open) {
                self.pos += open.len();
                self.space.clear();
                self.reasoned = true;
                self.state = State::Reasoning;
                return true;
            }
            if open.starts_with(text) {
                return false;
            }
        }
        let bare =
            matches!(self.format.row.calls, Calls::Json { .. }) && !self.how.tools.is_empty();
        // Markers may begin with a bracket, too.
        if self
            .markers
            .iter()
            .any(|(marker, _)| marker.len() > text.len() && marker.starts_with(text))
        {
            return false;
        }
        let bare = bare && !self.markers.iter().any(|(marker, _)| text.starts_with(marker));
        self.state = match bare && text.starts_with(['{', '[']) {
            true => State::Json(Box::new(JsonCall { bare, ..JsonCall::default() })),
            false => State::Content,
        };
        true
    }

    /// In the name of a tool: until the arguments begin.
    fn name(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        let State::Name { raw, name, part } = &mut self.state else { return false };
        let Calls::Named { id, separator, close, .. } = &self.format.row.calls else {
            return false;
        };
        let separators: &[&str] = match part {
            NamePart::Line => &["\n"],
            NamePart::Id => &[separator],
            NamePart::Name if id.is_empty() => &[separator, close],
            // The separator may be missing.
            NamePart::Name => &[separator, "{", id],
        };
        let rest = &self.held[self.pos..];
        let in_name = |c: char| c.is_alphanumeric() || "_-.:/".contains(c);
        let n = rest.find(|c| !in_name(c)).unwrap_or(rest.len());
        let n =
            (0..=n).find(|&n| rest.is_char_boundary(n) && name.len() + n > MAX_NAME).unwrap_or(n);
        raw.push_str(&rest[..n]);
        if *part != NamePart::Id {
            name.push_str(&rest[..n]);
        }
        self.pos += n;
        let rest = &rest[n..];
        let found = separators.iter().find(|text| rest.starts_with(**text));
        let Some(found) = found.filter(|_| name.len() <= MAX_NAME) else {
            let open = separators.iter().any(|text| text.starts_with(rest));
            if open && name.len() <= MAX_NAME {
                return false;
            }
            let raw = std::mem::take(raw);
            return self.give_up(&raw, out);
        };
        if *found != "{" {
            raw.push_str(found);
            self.pos += found.len();
        }
        if found == id {
            *part = NamePart::Id;
            return true;
        }
        // Old models of DeepSeek say what they call before they name it.
        if *part == NamePart::Name && name == "function" && found == separator {
            name.clear();
            *part = NamePart::Line;
            return true;
        }
        let (raw, plain) = (std::mem::take(raw), plain_name(name));
        if plain.is_empty() {
            return self.give_up(&raw, out);
        }
        if found == close {
            self.call(&plain, "{}", out);
            self.state = State::Content;
            return true;
        }
        let call = JsonCall { raw, name: Some(plain), ..JsonCall::default() };
        self.state = State::Json(Box::new(call));
        true
    }

    fn json(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        let State::Json(mut call) = std::mem::replace(&mut self.state, State::Content) else {
            return false;
        };
        let ends = self.call_ends();
        while let Some(c) = self.held[self.pos..].chars().next() {
            let rest = &self.held[self.pos..];
            if call.json.is_empty() {
                // What may stand before an object: brackets of a list, and of a block of code.
                let fence = call.name.is_some() && "`json".contains(c);
                let skipped = c.is_whitespace() || fence || (c == '[' && call.name.is_none());
                if skipped {
                    call.list |= c == '[';
                    call.raw.push(c);
                    self.pos += c.len_utf8();
                    continue;
                }
                if c == ']' && call.list {
                    let raw = std::mem::take(&mut call.raw);
                    self.state = State::After { raw, list: call.list, bare: call.bare };
                    return true;
                }
                // No arguments are as good as none.
                if let (Some(name), Some(_)) =
                    (&call.name, ends.iter().find(|end| rest.starts_with(**end)))
                {
                    self.call(&name.clone(), "{}", out);
                    self.state = State::After { raw: String::new(), list: false, bare: false };
                    return true;
                }
                if call.name.is_some() && ends.iter().any(|end| end.starts_with(rest)) {
                    self.state = State::Json(call);
                    return false;
                }
            }
            let in_text = call.scan.in_text();
            let step = call.scan.push(c);
            if step == Step::Wrong || (call.json.is_empty() && c != '{') {
                self.broken(call, out);
                return true;
            }
            self.pos += c.len_utf8();
            if call.told.is_none() {
                call.raw.push(c);
            }
            if in_text && c < ' ' {
                call.json.push_str(&format!("\\u{:04x}", u32::from(c)));
            } else {
                call.json.push(c);
            }
            if step == Step::Done {
                self.complete(call, out);
                return true;
            }
            let begins_value = c == ':' && !in_text && call.scan.depth() == 1;
            if call.bare && begins_value && call.told.is_none() && !may_be_call(&call.json) {
                return self.give_up(&call.raw, out);
            }
            if call.told.is_some() {
                let depth = if call.name.is_some() { 0 } else { 1 };
                if call.end.is_none() && !call.scan.in_text() && call.scan.depth() == depth {
                    call.end = Some(call.json.len());
                }
            } else if !call.tried && call.json.len() >= COMMIT {
                call.tried = true;
                self.commit(&mut call, out);
                if call.bare && call.told.is_none() {
                    return self.give_up(&call.raw, out);
                }
            }
        }
        self.tell(&mut call, out);
        self.state = State::Json(call);
        false
    }

    /// Tells of a call that is not complete yet, if its name and the beginning of its arguments are there.
    fn commit(&mut self, call: &mut JsonCall, out: &mut Vec<AnswerPiece>) {
        let (name, at, end) = match &call.name {
            Some(name) => (name.clone(), 0, None),
            None => {
                let members = members(&call.json);
                let Some(name) = name_of(&members) else { return };
                let arguments = members.iter().find(|member| is_arguments(&member.key));
                let Some(arguments) = arguments.filter(|a| a.value.starts_with('{')) else {
                    return;
                };
                let at = arguments.value.as_ptr() as usize - call.json.as_ptr() as usize;
                (name, at, arguments.complete.then_some(at + arguments.value.len()))
            }
        };
        if call.bare && !self.is_tool(&name) {
            return;
        }
        self.begin_call(&name, out);
        call.told = Some(at);
        call.end = end;
        call.raw.clear();
    }

    /// Tells what is new of the arguments.
    fn tell(&mut self, call: &mut JsonCall, out: &mut Vec<AnswerPiece>) {
        if let Some(told) = &mut call.told {
            let end = call.end.unwrap_or(call.json.len());
            let new = call.json[*told..end].to_owned();
            *told = end;
            self.arguments(&new, out);
        }
    }

    /// The object is complete.
    fn complete(&mut self, mut call: Box<JsonCall>, out: &mut Vec<AnswerPiece>) {
        if call.told.is_some() {
            self.tell(&mut call, out);
            self.end_call(out);
        } else if !self.whole(&call, &call.json, out) {
            self.give_up(&call.raw, out);
            return;
        }
        self.state = State::After { raw: String::new(), list: call.list, bare: call.bare };
    }

    /// The object breaks off here, and what follows is no JSON.
    fn broken(&mut self, mut call: Box<JsonCall>, out: &mut Vec<AnswerPiece>) {
        self.state = State::After { raw: String::new(), list: call.list, bare: call.bare };
        if call.told.is_some() {
            self.tell(&mut call, out);
            if call.end.is_some() || self.pos >= self.held.len() {
                self.end_call(out);
            } else {
                self.state = State::Spill;
            }
            return;
        }
        if let (Some(name), "") = (&call.name, call.json.as_str()) {
            let name = name.clone();
            if self.pos >= self.held.len() {
                return self.call(&name, "{}", out);
            }
        }
        // Models forget the last bracket.
        let forgotten = call.name.is_none() && call.scan.depth() == 1 && !call.scan.in_text();
        if !(forgotten && self.whole(&call, &(call.json.clone() + "}"), out)) {
            self.give_up(&call.raw, out);
        }
    }

    /// Tells of a call that is complete; false if it is none.
    fn whole(&mut self, call: &JsonCall, json: &str, out: &mut Vec<AnswerPiece>) -> bool {
        if serde_json::from_str::<Value>(json).is_err() {
            return false;
        }
        let (name, arguments) = match &call.name {
            Some(name) => (name.clone(), json.to_owned()),
            None => match read_call(json) {
                Some(read) => read,
                None => return false,
            },
        };
        if call.bare && !self.is_tool(&name) {
            return false;
        }
        self.call(&name, &arguments, out);
        true
    }

    /// In a call that is read when it is complete.
    fn block_step(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        let State::Block { raw, in_value, .. } = &mut self.state else { return false };
        let markers: &[&str] = match (&self.format.row.calls, *in_value) {
            (Calls::Tagged(tags), false) => &[tags.close, tags.key],
            (Calls::Tagged(tags), true) => &[tags.value_end],
            (Calls::Gemma { close, quote, .. }, false) => &[close, quote],
            (Calls::Gemma { quote, .. }, true) => &[quote],
            (Calls::Python { close, .. }, _) => &[close],
            _ => return false,
        };
        let rest = &self.held[self.pos..];
        let (end, found) = match find(rest, markers) {
            Found::Marker { at, index } => (at + markers[index].len(), Some(index)),
            Found::Open(at) => (at, None),
        };
        raw.push_str(&rest[..end]);
        self.pos += end;
        let Some(index) = found else { return false };
        if *in_value || index > 0 {
            *in_value = !*in_value;
            return true;
        }
        let State::Block { raw, body, .. } = std::mem::replace(&mut self.state, State::Content)
        else {
            return false;
        };
        self.block(raw, body, true, out);
        true
    }

    /// Tells of the calls in a block, which is content if there are none.
    fn block(&mut self, raw: String, body: usize, complete: bool, out: &mut Vec<AnswerPiece>) {
        let text = &raw[body..];
        let strip = |close: &str| text.strip_suffix(close).unwrap_or(text);
        let calls = match &self.format.row.calls {
            _ if !complete => None,
            Calls::Tagged(tags) => {
                let schema = |name: &str| {
                    let tool = self.how.tools.iter().find(|tool| tool["function"]["name"] == name);
                    tool.map(|tool| &tool["function"]["parameters"])
                };
                call::tagged(text, tags, schema).map(|call| vec![call])
            }
            Calls::Gemma { close, quote, .. } => call::gemma(strip(close), quote),
            Calls::Python { close, .. } => {
                let text = strip(close).trim();
                let list = || serde_json::from_str::<Vec<Value>>(text).ok();
                let json =
                    |calls: Vec<Value>| calls.iter().map(|c| read_call(&c.to_string())).collect();
                call::python(text).or_else(|| list().and_then(json))
            }
            _ => None,
        };
        match calls {
            Some(calls) => calls.iter().for_each(|(name, args)| self.call(name, args, out)),
            None => self.content(&raw, out),
        }
    }

    /// Behind a call: another one, or what closes it.
    fn after(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        let ends = self.call_ends();
        let State::After { raw, list, bare } = &mut self.state else { return false };
        loop {
            let rest = &self.held[self.pos..];
            let Some(c) = rest.chars().next() else { return false };
            if let Some(end) = ends.iter().find(|end| rest.starts_with(**end)) {
                self.pos += end.len();
                self.leave_call();
                return true;
            }
            if ends.iter().any(|end| end.starts_with(rest)) {
                return false;
            }
            let again = *list || *bare || matches!(self.format.row.calls, Calls::Json { .. });
            if c == '{' && again {
                let call = JsonCall { list: *list, bare: *bare, ..JsonCall::default() };
                self.state = State::Json(Box::new(call));
                return true;
            }
            // Brackets too many, the end of a block of code.
            if !c.is_whitespace() && !",;]}`".contains(c) {
                let raw = std::mem::take(raw);
                self.state = State::Content;
                let blank = raw.trim().is_empty();
                self.content(if blank { &raw } else { "" }, out);
                return true;
            }
            *list &= c != ']';
            raw.push(c);
            self.pos += c.len_utf8();
        }
    }

    fn header(&mut self, out: &mut Vec<AnswerPiece>) -> bool {
        let State::Header(header) = &mut self.state else { return false };
        let begins =
            ["<|channel|>", "<|start|>", "<|message|>", "<|constrain|>", "to=", "assistant"];
        let rest = &self.held[self.pos..];
        let (at, found) = match find(rest, &HARMONY[..4]) {
            Found::Marker { at, index } => (at, Some(index)),
            Found::Open(at) => (at, None),
        };
        let longest = (0..=at).find(|&n| rest.is_char_boundary(n) && header.len() + n > MAX_NAME);
        let begin = header.clone() + &rest[..rest.floor_char_boundary(at.min(MAX_NAME) + 16)];
        let begin = begin.trim_start();
        let plausible = begin.is_empty()
            || begins.iter().any(|text| begin.starts_with(text) || text.starts_with(begin));
        if !plausible || longest.is_some() {
            let n = longest.filter(|_| plausible).unwrap_or(0);
            header.push_str(&rest[..n]);
            self.pos += n;
            let header = std::mem::take(header);
            self.state = State::Message(Last::Content);
            self.content(&header, out);
            return true;
        }
        header.push_str(&rest[..at]);
        self.pos += at;
        let Some(index) = found else { return false };
        self.pos += HARMONY[index].len();
        if index > 0 {
            header.clear();
            return true;
        }
        let word = |after: &str| {
            let text = header.split_once(after)?.1;
            text.split(|c: char| c.is_whitespace() || c == '<').next().map(str::to_owned)
        };
        let to = word("to=").filter(|to| !matches!(to.as_str(), "user" | "assistant" | "all"));
        let channel = word("<|channel|>");
        self.state = match to {
            Some(to) if !self.how.tools.is_empty() => {
                let (raw, name) = (std::mem::take(header) + HARMONY[0], Some(plain_name(&to)));
                State::Json(Box::new(JsonCall { raw, name, ..JsonCall::default() }))
            }
            _ if channel.as_deref() == Some("analysis") => State::Message(Last::Reasoning),
            _ => State::Message(Last::Content),
        };
        // Messages of one kind one after another are one text here.
        if let State::Message(kind) = self.state
            && kind == self.last
        {
            self.space = "\n\n".to_owned();
        }
        true
    }

    /// What ends a call.
    fn call_ends(&self) -> Vec<&'static str> {
        match &self.format.row.calls {
            Calls::Harmony => ENDS.to_vec(),
            Calls::Json { close, .. } | Calls::Named { close, .. } => vec![*close],
            Calls::Gemma { close, .. } | Calls::Python { close, .. } => vec![*close],
            Calls::Tagged(tags) if tags.open.is_empty() => vec![tags.close],
            Calls::Tagged(tags) => vec![tags.wrapper.1],
        }
        .into_iter()
        .filter(|end| !end.is_empty())
        .collect()
    }

    /// Goes on behind a call.
    fn leave_call(&mut self) {
        self.state = match self.format.row.calls {
            Calls::Harmony => State::Header(String::new()),
            _ => State::Content,
        };
    }

    /// What looked like a call is content.
    fn give_up(&mut self, raw: &str, out: &mut Vec<AnswerPiece>) -> bool {
        self.content(raw, out);
        self.state = match self.format.row.calls {
            Calls::Harmony => State::Message(Last::Content),
            _ => State::Content,
        };
        true
    }

    /// The text before the first of `markers`, which is taken too, and its index.
    fn take(&mut self, markers: &[&str]) -> Option<(String, usize)> {
        let rest = &self.held[self.pos..];
        let Found::Marker { at, index } = find(rest, markers) else { return None };
        let before = rest[..at].to_owned();
        self.pos += at + markers[index].len();
        Some((before, index))
    }

    /// The text that belongs to none of `markers`.
    fn take_before(&mut self, markers: &[&str]) -> String {
        let rest = &self.held[self.pos..];
        let (Found::Open(at) | Found::Marker { at, .. }) = find(rest, markers);
        let before = rest[..at].to_owned();
        self.pos += at;
        before
    }

    /// Tells the text in which no marker begins, and waits for more.
    fn rest(&mut self, kind: Last, markers: &[&str], out: &mut Vec<AnswerPiece>) -> bool {
        let before = self.take_before(markers);
        self.text(kind, &before, out);
        false
    }

    fn text(&mut self, kind: Last, text: &str, out: &mut Vec<AnswerPiece>) {
        match kind {
            Last::Reasoning => self.reasoning(text, out),
            _ => self.content(text, out),
        }
    }

    fn content(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        // White space at the end stays, unless something may follow that is no content.
        let holds = !self.how.tools.is_empty()
            || !self.format.dropped.is_empty()
            || self.format.row.calls == Calls::Harmony;
        let shown = if holds { text.trim_end() } else { text };
        if !shown.is_empty() {
            let space = std::mem::take(&mut self.space);
            emit(out, AnswerPiece::Content(space + shown));
            self.last = Last::Content;
        }
        self.space.push_str(&text[shown.len()..]);
    }

    fn reasoning(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        let shown = text.trim_end();
        if !shown.is_empty() {
            let first = self.last != Last::Reasoning;
            let space = std::mem::take(&mut self.space);
            let shown = if first { shown.trim_start().to_owned() } else { space + shown };
            emit(out, AnswerPiece::Reasoning(shown));
            self.last = Last::Reasoning;
        }
        self.space.push_str(&text[shown.len()..]);
    }

    fn is_tool(&self, name: &str) -> bool {
        self.how.tools.iter().any(|tool| tool["function"]["name"] == name)
    }

    fn call(&mut self, name: &str, arguments: &str, out: &mut Vec<AnswerPiece>) {
        self.begin_call(name, out);
        self.arguments(arguments, out);
        self.end_call(out);
    }

    /// Whether the call that is being read is told.
    fn is_told(&self) -> bool {
        !self.how.single_call || self.n_calls == 1
    }

    fn begin_call(&mut self, name: &str, out: &mut Vec<AnswerPiece>) {
        self.space.clear();
        self.n_calls += 1;
        self.last = Last::Call;
        if self.is_told() {
            out.push(AnswerPiece::CallBegin(name.to_owned()));
        }
    }

    fn arguments(&mut self, text: &str, out: &mut Vec<AnswerPiece>) {
        if self.is_told() && !text.is_empty() {
            emit(out, AnswerPiece::CallArguments(text.to_owned()));
        }
    }

    fn end_call(&mut self, out: &mut Vec<AnswerPiece>) {
        if self.is_told() {
            out.push(AnswerPiece::CallEnd);
        }
    }
}

/// What ends a message of gpt-oss; the last two begin another one.
const ENDS: [&str; 5] = [HARMONY[1], HARMONY[2], HARMONY[3], HARMONY[4], HARMONY[5]];

/// Appends a piece; text goes on where text came last.
fn emit(out: &mut Vec<AnswerPiece>, piece: AnswerPiece) {
    match (out.last_mut(), piece) {
        (Some(AnswerPiece::Content(text)), AnswerPiece::Content(more))
        | (Some(AnswerPiece::Reasoning(text)), AnswerPiece::Reasoning(more))
        | (Some(AnswerPiece::CallArguments(text)), AnswerPiece::CallArguments(more)) => {
            text.push_str(&more);
        }
        (_, piece) => out.push(piece),
    }
}

/// `functions.f:0` is `f`.
fn plain_name(name: &str) -> String {
    let name = name.trim();
    let name = name.strip_prefix("functions.").unwrap_or(name);
    let numbered = name.rsplit_once(':').filter(|(_, n)| n.bytes().all(|b| b.is_ascii_digit()));
    numbered.map_or(name, |(name, _)| name).to_owned()
}

/// Whether an object of which a first key is there may be a call.
fn may_be_call(json: &str) -> bool {
    const KEYS: [&str; 7] =
        ["name", "tool_name", "function", "type", "id", "arguments", "parameters"];
    let key = json.trim_start_matches(|c: char| c == '{' || c.is_whitespace());
    let key = key.strip_prefix('"').and_then(|key| key.split_once('"'));
    key.is_some_and(|(key, _)| KEYS.contains(&key))
}

fn is_arguments(key: &str) -> bool {
    matches!(key, "arguments" | "parameters" | "args")
}

fn name_of(members: &[super::scan::Member<'_>]) -> Option<String> {
    let named =
        |m: &&super::scan::Member<'_>| matches!(m.key.as_str(), "name" | "tool_name" | "function");
    let name = members.iter().find(|m| named(m) && m.complete && m.value.starts_with('"'))?;
    serde_json::from_str(name.value).ok().filter(|name: &String| !name.is_empty())
}

/// Name and arguments of an object that is a call.
fn read_call(json: &str) -> Option<(String, String)> {
    let members = members(json);
    if let Some(inner) = members.iter().find(|m| m.key == "function" && m.value.starts_with('{')) {
        return read_call(inner.value);
    }
    let name = name_of(&members)?;
    let arguments = members.iter().find(|member| is_arguments(&member.key));
    let arguments = match arguments.map_or("{}", |member| member.value) {
        "null" => "{}".to_owned(),
        // Some models write the object into a text.
        text if text.starts_with('"') => {
            let text: String = serde_json::from_str(text).ok()?;
            matches!(serde_json::from_str(&text), Ok(Value::Object(_))).then_some(text)?
        }
        object => object.starts_with('{').then(|| object.to_owned())?,
    };
    Some((name, arguments))
}

#[cfg(test)]
mod tests;
