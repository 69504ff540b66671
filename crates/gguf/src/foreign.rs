//! What people open by mistake: a file that is not GGUF at all, recognized by its first bytes so
//! that the message can say how to get the right one.

/// What a file that is not GGUF probably is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// No bytes at all.
    Empty,
    /// A safetensors file.
    Safetensors,
    /// A format of llama.cpp from before August 2023 (`ggml`, `ggmf`, `ggjt`).
    LegacyGgml,
    /// A Git LFS pointer in place of the file itself.
    GitLfsPointer,
    /// A web page: an error or log-in page saved by a download.
    WebPage,
    /// JSON: an error message or a manifest saved by a download.
    Json,
    /// A zip archive, which PyTorch checkpoints are too.
    Zip,
    /// Compressed with gzip, zstd or xz.
    Compressed,
    /// None of those.
    Unknown,
}

impl Foreign {
    /// Judges by the first bytes of a file (64 are enough) and its length.
    pub(crate) fn sniff(head: &[u8], file_len: u64) -> Self {
        let text = head.trim_ascii_start();
        let starts = |prefix: &[u8]| {
            text.get(..prefix.len()).is_some_and(|t| t.eq_ignore_ascii_case(prefix))
        };
        // A safetensors file begins with the length of its JSON header, then the header.
        let safetensors = head.len() > 8
            && head[8] == b'{'
            && head.first_chunk().is_some_and(|n| u64::from_le_bytes(*n) <= file_len);
        match head {
            [] => Self::Empty,
            // Those formats wrote their magic as a little-endian number, so it reads backwards.
            [b'l' | b'f', b'm', b'g', b'g', ..] | [b't', b'j', b'g', b'g', ..] => Self::LegacyGgml,
            [b'P', b'K', 3, 4, ..] => Self::Zip,
            [0x1f, 0x8b, ..]
            | [0x28, 0xb5, 0x2f, 0xfd, ..]
            | [0xfd, b'7', b'z', b'X', b'Z', ..] => Self::Compressed,
            _ if safetensors => Self::Safetensors,
            _ if starts(b"version https://git-lfs") => Self::GitLfsPointer,
            _ if starts(b"<!doctype") || starts(b"<html") || starts(b"<?xml") => Self::WebPage,
            _ if starts(b"{") => Self::Json,
            _ => Self::Unknown,
        }
    }

    /// How to get a GGUF file instead.
    pub(crate) fn hint(self) -> &'static str {
        match self {
            Self::Empty => "the file is empty; the download may have failed, pull it again",
            Self::Safetensors => {
                "this looks like safetensors; convert the model with llama.cpp's convert_hf_to_gguf.py, or pull a GGUF file of it"
            }
            Self::LegacyGgml => {
                "this looks like a GGML file from before August 2023; pull a GGUF file of the model"
            }
            Self::GitLfsPointer => {
                "this is a Git LFS pointer, not the file; run 'git lfs pull' in its repository"
            }
            Self::WebPage => {
                "this looks like a web page; the link may need a log-in or lead to a page about the file, not to the file"
            }
            Self::Json => "this looks like JSON, perhaps the error message of a failed download",
            Self::Zip => {
                "this looks like a zip archive or a PyTorch checkpoint; unpack it, or pull a GGUF file of the model"
            }
            Self::Compressed => "this looks like a compressed file; decompress it first",
            Self::Unknown => "pull a GGUF file of the model",
        }
    }
}
