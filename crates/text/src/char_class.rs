//! The character classes of pre-tokenizer patterns, exactly as the regular-expression engine sees them.

use std::sync::LazyLock;

use tokenizers::utils::SysRegex;

/// What the patterns tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CharClass {
    /// None of the others.
    Other = 0,
    /// `\p{L}`
    Letter = 1,
    /// `\p{N}`
    Number = 2,
    /// `\s`
    Space = 3,
}

/// No letter, number or space has been assigned from here on.
const END: u32 = 0x4_0000;

/// One byte a character. Filled by the engine itself, so that its version of Unicode is the one that counts; this
/// takes some ten milliseconds, once.
static CLASSES: LazyLock<Box<[u8]>> = LazyLock::new(|| {
    let mut classes = vec![CharClass::Other as u8; END as usize].into_boxed_slice();
    let all: String = (0..END).filter_map(char::from_u32).collect();
    for (pattern, class) in
        [(r"\p{L}+", CharClass::Letter), (r"\p{N}+", CharClass::Number), (r"\s+", CharClass::Space)]
    {
        // The patterns are constant and valid.
        let Ok(regex) = SysRegex::new(pattern) else { continue };
        for (start, end) in regex.find_iter(&all) {
            all[start..end].chars().for_each(|symbol| classes[symbol as usize] = class as u8);
        }
    }
    classes
});

/// The table, looked up once per text.
#[derive(Clone, Copy)]
pub(crate) struct CharClasses(&'static [u8]);

impl CharClasses {
    pub(crate) fn get() -> Self {
        Self(&CLASSES)
    }

    #[inline]
    pub(crate) fn of(self, symbol: char) -> CharClass {
        match self.0.get(symbol as usize) {
            Some(1) => CharClass::Letter,
            Some(2) => CharClass::Number,
            Some(3) => CharClass::Space,
            _ => CharClass::Other,
        }
    }
}
