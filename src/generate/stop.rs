//! Texts that end an answer, found in pieces that arrive one by one.

/// Passes text on, but for a stop text and what follows it. What could be the beginning of one is held back until the
/// next piece decides.
#[derive(Clone, Debug)]
pub struct StopTexts {
    stops: Vec<String>,
    held: String,
}

impl StopTexts {
    /// Empty texts are left out: they would end every answer before it begins.
    pub fn new(stops: impl IntoIterator<Item = String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).collect();
        StopTexts { stops, held: String::new() }
    }

    /// Takes a piece; gives the text that is sure, and whether a stop text has come.
    pub fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|stop| self.held.find(stop.as_str())).min() {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let rest = self.held.split_off(self.held.len() - self.undecided());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What is still held back when no more comes.
    pub fn finish(self) -> String {
        self.held
    }

    /// Bytes at the end that a stop text begins with.
    fn undecided(&self) -> usize {
        let begins = |stop: &&String, from: usize| stop.starts_with(&self.held[from..]);
        let mut starts = self.held.char_indices().map(|(from, _)| from);
        let first = starts.find(|&from| self.stops.iter().any(|stop| begins(&stop, from)));
        first.map_or(0, |from| self.held.len() - from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopTexts::new(stops.iter().map(|&stop| stop.to_owned()));
        let mut out = Vec::new();
        for piece in pieces {
            let (text, stopped) = filter.push(piece);
            out.push(text);
            if stopped {
                return (out, true);
            }
        }
        out.push(filter.finish());
        (out, false)
    }

    #[test]
    fn a_stop_text_is_found_across_pieces_and_never_shown() {
        assert_eq!(passed(&["END"], &["a E", "N", "D b"]), (vec!["a ".into(), "".into(), "".into()], true));
        assert_eq!(passed(&["END"], &["a E", "Nd"]), (vec!["a ".into(), "ENd".into(), "".into()], false));
        assert_eq!(passed(&["\n\n"], &["a\n", "b\n"]), (vec!["a".into(), "\nb".into(), "\n".into()], false));
        assert_eq!(passed(&["é", "x"], &["aéx"]), (vec!["a".into()], true));
    }

    #[test]
    fn the_first_of_several_ends_the_text() {
        assert_eq!(passed(&["c", "bc"], &["abcd"]), (vec!["a".into()], true));
        // "aab" begins again inside of what was held back
        assert_eq!(passed(&["aab"], &["aa", "ab"]), (vec!["".into(), "a".into()], true));
    }

    #[test]
    fn without_stop_texts_all_passes_at_once() {
        assert_eq!(passed(&[], &["a", "b"]), (vec!["a".into(), "b".into(), "".into()], false));
        assert_eq!(passed(&[""], &["a"]), (vec!["a".into(), "".into()], false));
    }
}
