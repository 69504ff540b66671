//! RWKV's tokenizer: always the longest token that fits. Token texts are byte strings with escapes
//! (`\n`, `\x80`).

use super::trie::Trie;
use super::vocab::Vocab;

#[derive(Debug)]
pub(super) struct Rwkv {
    tokens: Trie,
}

impl Rwkv {
    pub(super) fn new(vocab: &Vocab) -> Self {
        let texts: Vec<_> = vocab
            .ids()
            .map(|id| {
                let mut text = Vec::new();
                unescape(vocab.text(id), &mut text);
                text
            })
            .collect();
        Self { tokens: Trie::new(texts.iter().map(Vec::as_slice).zip(vocab.ids())) }
    }

    pub(super) fn encode(&self, text: &[u8], unknown: Option<u32>, out: &mut Vec<u32>) {
        let mut rest = text;
        while !rest.is_empty() {
            let (len, id) = match self.tokens.prefixes(rest).last() {
                Some((len, id)) => (len, Some(id)),
                None => (1, unknown),
            };
            out.extend(id);
            rest = &rest[len..];
        }
    }
}

/// The bytes that a token stands for.
pub(super) fn unescape(text: &[u8], bytes: &mut Vec<u8>) {
    let mut rest = text.iter().copied();
    while let Some(b) = rest.next() {
        if b != b'\\' {
            bytes.push(b);
            continue;
        }
        match rest.next() {
            None => {}
            Some(b't') => bytes.push(b'\t'),
            Some(b'n') => bytes.push(b'\n'),
            Some(b'r') => bytes.push(b'\r'),
            Some(b'x') => {
                let mut digit = || Some(char::from(rest.next()?).to_digit(16).unwrap_or(0) as u8);
                if let (Some(high), Some(low)) = (digit(), digit()) {
                    bytes.push(high << 4 | low);
                }
            }
            Some(other) => bytes.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unescapes() {
        let check = |text: &str, bytes: &[u8]| {
            let mut found = Vec::new();
            unescape(text.as_bytes(), &mut found);
            assert_eq!(found, bytes, "{text}");
        };
        check("plain ünïcode", "plain ünïcode".as_bytes());
        check(r"\t\n\r\\\'", b"\t\n\r\\'");
        check(r"\x80a\xfF", &[0x80, b'a', 0xff]);
        check(r"cut \x8", b"cut ");
        check("end \\", b"end ");
    }
}
