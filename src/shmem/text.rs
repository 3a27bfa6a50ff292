//! A text of limited length in shared memory.

/// Bytes of an error's text that are kept.
pub const TEXT_BYTES: usize = 1_000;

/// A text, or its beginning.
#[derive(Clone, Copy)]
pub struct Text {
    length: usize,
    bytes: [u8; TEXT_BYTES],
}

impl Text {
    pub const EMPTY: Self = Self { length: 0, bytes: [0; TEXT_BYTES] };

    /// Sets the text to `bytes`, or their beginning.
    pub fn set(&mut self, bytes: &[u8]) {
        self.length = bytes.len().min(TEXT_BYTES);
        self.bytes[..self.length].copy_from_slice(&bytes[..self.length]);
    }

    /// The text, up to the last whole character.
    pub fn get(&self) -> String {
        let chunk = self.bytes[..self.length].utf8_chunks().next();
        chunk.map_or_else(String::new, |chunk| chunk.valid().to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_after_a_whole_character() {
        let mut text = Text::EMPTY;
        assert_eq!(text.get(), "");
        text.set("é".as_bytes());
        assert_eq!(text.get(), "é");
        text.set(&[b'x'; TEXT_BYTES + 1]);
        assert_eq!(text.get().len(), TEXT_BYTES);
        text.set("xé".as_bytes().split_at(2).0);
        assert_eq!(text.get(), "x");
    }
}
