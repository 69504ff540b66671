//! GPT-2's alphabet for bytes: every byte has a printable character, so that a vocabulary of byte
//! strings can be stored as text. Printable Latin-1 stands for itself, the other 68 bytes are
//! U+0100 and following, in order. (A space is `Ġ`, a line feed `Ċ`.)

use std::sync::LazyLock;

static CHARS: LazyLock<[char; 256]> = LazyLock::new(|| {
    let mut chars = ['\0'; 256];
    let mut next = 0x100;
    for byte in 0..=255u8 {
        chars[usize::from(byte)] = match byte {
            b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff => char::from(byte),
            _ => {
                next += 1;
                char::from_u32(next - 1).unwrap_or_default()
            }
        };
    }
    chars
});

/// Bytes by the code point of their character; the largest is U+0143.
static BYTES: LazyLock<[Option<u8>; 0x144]> = LazyLock::new(|| {
    let mut bytes = [None; 0x144];
    for (byte, &c) in (0..=255).zip(CHARS.iter()) {
        bytes[c as usize] = Some(byte);
    }
    bytes
});

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// The byte that `c` stands for.
pub(super) fn byte_of(c: char) -> Option<u8> {
    BYTES.get(c as usize).copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_gpt2s_alphabet() {
        let check = |byte, c| {
            assert_eq!(char_of(byte), c);
        };
        check(b' ', 'Ġ');
        check(b'\n', 'Ċ');
        check(b'a', 'a');
        check(0x00, 'Ā');
        check(0x7f, 'ġ');
        check(0xad, 'Ń');
        check(0xff, 'ÿ');
        assert!((0..=255).all(|b| byte_of(char_of(b)) == Some(b)));
        assert_eq!(byte_of(' '), None);
        assert_eq!(byte_of('中'), None);
    }
}
