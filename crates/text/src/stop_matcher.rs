//! Stop strings in a text that arrives in pieces.

/// Where a stop string ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StopMatch {
    /// Which of the strings.
    pub index: usize,
    /// Bytes of the piece up to the end of the match.
    pub end: usize,
}

/// Looks for several strings at once (Knuth–Morris–Pratt for each), and knows how much of the text's end may be the
/// beginning of one.
///
/// The match that ends first wins; of several that end at the same byte, the longest.
#[derive(Clone, Debug, Default)]
pub struct StopMatcher {
    patterns: Box<[Pattern]>,
    /// Bytes that begin a pattern, as a bit set.
    first: [u64; 4],
    /// The longest of the patterns' states.
    longest: usize,
}

#[derive(Clone, Debug)]
struct Pattern {
    text: Box<str>,
    /// For each length, the longest proper prefix that is a suffix of the pattern's start of that length.
    fallback: Box<[u32]>,
    /// Bytes of the pattern that the text ends with.
    state: usize,
    /// The place in the caller's list.
    index: usize,
}

impl StopMatcher {
    /// Empty strings are ignored. Without any string this does not allocate.
    pub fn new<S: AsRef<str>>(strings: &[S]) -> Self {
        let mut first = [0; 4];
        let mut patterns = Vec::new();
        for (index, string) in strings.iter().enumerate() {
            let text = string.as_ref();
            if let Some(byte) = text.as_bytes().first() {
                first[usize::from(byte >> 6)] |= 1 << (byte & 63);
                patterns.push(Pattern {
                    text: text.into(),
                    fallback: fallback(text.as_bytes()),
                    state: 0,
                    index,
                });
            }
        }
        Self { patterns: patterns.into_boxed_slice(), first, longest: 0 }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Reads the next piece of the text, up to the first match.
    pub fn feed(&mut self, piece: &str) -> Option<StopMatch> {
        for (at, byte) in piece.bytes().enumerate() {
            if self.longest == 0 && self.first[usize::from(byte >> 6)] & (1 << (byte & 63)) == 0 {
                continue;
            }
            self.longest = 0;
            let mut found: Option<(usize, usize)> = None;
            for pattern in &mut self.patterns {
                pattern.step(byte);
                self.longest = self.longest.max(pattern.state);
                if pattern.state == pattern.text.len()
                    && found.is_none_or(|(length, _)| length < pattern.state)
                {
                    found = Some((pattern.state, pattern.index));
                }
            }
            if let Some((_, index)) = found {
                return Some(StopMatch { index, end: at + 1 });
            }
        }
        None
    }

    /// How many bytes at the end of the text may be the beginning of a stop string: the longest proper prefix of any.
    pub fn held(&self) -> usize {
        self.longest
    }

    /// Forgets the text so far.
    pub fn reset(&mut self) {
        self.longest = 0;
        self.patterns.iter_mut().for_each(|pattern| pattern.state = 0);
    }
}

impl Pattern {
    #[inline]
    fn step(&mut self, byte: u8) {
        let text = self.text.as_bytes();
        while self.state > 0 && (self.state == text.len() || text[self.state] != byte) {
            self.state = self.fallback[self.state - 1] as usize;
        }
        if text[self.state] == byte {
            self.state += 1;
        }
    }
}

fn fallback(pattern: &[u8]) -> Box<[u32]> {
    let mut table = vec![0_u32; pattern.len()];
    let mut length = 0;
    for at in 1..pattern.len() {
        while length > 0 && pattern[at] != pattern[length] {
            length = table[length - 1] as usize;
        }
        if pattern[at] == pattern[length] {
            length += 1;
        }
        // A stop string is shorter than a request body, which is capped far below 4 GiB.
        table[at] = u32::try_from(length).unwrap_or(u32::MAX);
    }
    table.into_boxed_slice()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Every end is tried in turn, and at each end every string.
    fn reference(strings: &[String], text: &str) -> Option<StopMatch> {
        (1..=text.len()).find_map(|end| {
            let (_, index) = strings
                .iter()
                .enumerate()
                .filter(|(_, stop)| !stop.is_empty() && text.as_bytes()[..end].ends_with(stop.as_bytes()))
                .map(|(index, stop)| (stop.len(), std::cmp::Reverse(index)))
                .max()?;
            Some(StopMatch { index: index.0, end })
        })
    }

    #[test]
    fn the_first_end_wins_and_then_the_longest() {
        let mut matcher = StopMatcher::new(&["bc", "abc", "abcd", "x"]);
        assert_eq!(matcher.feed("zab"), None);
        assert_eq!(matcher.held(), 2);
        assert_eq!(matcher.feed("cd"), Some(StopMatch { index: 1, end: 1 }));
    }

    #[test]
    fn a_beginning_inside_a_failed_beginning_is_kept() {
        let mut matcher = StopMatcher::new(&["aab"]);
        assert_eq!(matcher.feed("aaa"), None);
        assert_eq!(matcher.held(), 2);
        assert_eq!(matcher.feed("b"), Some(StopMatch { index: 0, end: 1 }));
    }

    #[test]
    fn nothing_to_look_for_never_matches() {
        let mut matcher = StopMatcher::new(&["", ""]);
        assert!(matcher.is_empty());
        assert_eq!(matcher.feed("anything"), None);
        assert_eq!(matcher.held(), 0);
    }

    proptest! {
        #[test]
        fn pieces_match_where_the_whole_does(
            strings in prop::collection::vec("[abé]{0,4}", 0..4),
            pieces in prop::collection::vec("[abcé]{0,5}", 0..12),
        ) {
            let whole = pieces.concat();
            let expected = reference(&strings, &whole);
            let mut matcher = StopMatcher::new(&strings);
            let mut before = 0;
            let mut found = None;
            for piece in &pieces {
                if let Some(hit) = matcher.feed(piece) {
                    found = Some(StopMatch { index: hit.index, end: before + hit.end });
                    break;
                }
                before += piece.len();
                let text = &whole.as_bytes()[..before];
                let longest = strings.iter().flat_map(|stop| (1..stop.len()).map(|n| &stop.as_bytes()[..n]))
                    .filter(|start| text.ends_with(start)).map(<[u8]>::len).max().unwrap_or(0);
                prop_assert_eq!(matcher.held(), longest);
            }
            prop_assert_eq!(found, expected);
        }
    }
}
