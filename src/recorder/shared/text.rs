//! A text in shared memory.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU8, AtomicU32, fence};

/// Bytes of an error's text that is kept.
pub const TEXT_BYTES: usize = 1_000;

/// A text that one process writes and others read.
#[repr(C)]
pub struct SharedText {
    /// Odd while the text is being written.
    version: AtomicU32,
    length: AtomicU32,
    bytes: [AtomicU8; TEXT_BYTES],
}

impl SharedText {
    /// Sets the text to `bytes`, or their beginning.
    pub fn set(&self, bytes: &[u8]) {
        self.version.fetch_add(1, Relaxed);
        // What is written is not seen before that.
        fence(Release);
        let length = bytes.len().min(TEXT_BYTES);
        for (to, &from) in self.bytes.iter().zip(&bytes[..length]) {
            to.store(from, Relaxed);
        }
        self.length.store(u32::try_from(length).unwrap_or_default(), Relaxed);
        self.version.fetch_add(1, Release);
    }

    /// The text; empty where it is being written just now, or was cut inside its first character.
    pub fn get(&self) -> String {
        let before = self.version.load(Acquire);
        let length = (self.length.load(Relaxed) as usize).min(TEXT_BYTES);
        let bytes: Vec<u8> = self.bytes[..length].iter().map(|byte| byte.load(Relaxed)).collect();
        fence(Acquire);
        if before % 2 == 1 || self.version.load(Relaxed) != before {
            return String::new();
        }
        bytes.utf8_chunks().next().map_or_else(String::new, |chunk| chunk.valid().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text() -> SharedText {
        SharedText {
            version: AtomicU32::new(0),
            length: AtomicU32::new(0),
            bytes: [const { AtomicU8::new(0) }; TEXT_BYTES],
        }
    }

    #[test]
    fn a_text_is_read_as_it_was_written_or_not_at_all() {
        let text = text();
        assert_eq!(text.get(), "");
        text.set("é".as_bytes());
        assert_eq!(text.get(), "é");
        text.set(&[b'x'; TEXT_BYTES + 1]);
        assert_eq!(text.get().len(), TEXT_BYTES);
        text.set("xé".as_bytes().split_at(2).0);
        assert_eq!(text.get(), "x");
        text.version.fetch_add(1, Relaxed);
        assert_eq!(text.get(), "");
    }
}
