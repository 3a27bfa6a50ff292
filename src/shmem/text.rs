//! A text of limited length, for shared memory and for callbacks that allocate nothing.

/// Bytes of a text, at most.
const TEXT_BYTES: usize = 1_000;

/// A text, or its beginning.
#[derive(Clone, Copy)]
pub struct Text {
    length: usize,
    bytes: [u8; TEXT_BYTES],
}

impl Text {
    pub const EMPTY: Self = Self { length: 0, bytes: [0; TEXT_BYTES] };

    pub const fn clear(&mut self) {
        self.length = 0;
    }

    /// Appends `bytes`, or as many of them as there is room for. Cannot fail.
    pub fn push(&mut self, bytes: impl IntoIterator<Item = u8>) {
        for (place, byte) in self.bytes[self.length..].iter_mut().zip(bytes) {
            *place = byte;
            self.length += 1;
        }
    }

    /// Sets the text to `bytes`, or their beginning.
    pub fn set(&mut self, bytes: &[u8]) {
        self.clear();
        self.push(bytes.iter().copied());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// The text, up to the last whole character.
    pub fn get(&self) -> String {
        let chunk = self.bytes().utf8_chunks().next();
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
