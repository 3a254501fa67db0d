//! `engraft data`: data as a run would see them.

use super::args::DataCommandArgs;
use super::download::settings_folder;
use super::named_data::NamedData;
use crate::data::{Dataset, IGNORE_INDEX, Sample, Tokenizer, detect_format};
use crate::error::Error;
use crate::models::ModelConfig;
use serde_json::json;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};

pub fn run(mut args: DataCommandArgs, quiet: bool) -> Result<(), Error> {
    let mut options = args.options()?;
    args.model = settings_folder(&args.model, quiet)?;
    if let Some(named) = args.named()?.map(NamedData::from) {
        named.resolve(&mut options, quiet)?;
    }
    let tokenizer = Tokenizer::open(&args.model)?;
    let data = options.open(&tokenizer, 0, args.max_seq_length, None)?;
    let text = match args.json {
        true => format!("{:#}\n", as_json(&data, args.show)),
        false => {
            let first = options.sources.first().map_or(&options.json_path, |source| &source.path);
            let format = match options.format {
                Some(format) => Some(format),
                None => detect_format(first).ok().filter(|_| first.is_file()),
            };
            // a folder without a readable configuration still shows its data
            let limit = ModelConfig::read(&args.model).ok().map(|config| config.max_position_embeddings);
            let colour =
                io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty());
            let mut out = String::new();
            if let Some(format) = format {
                let _ = writeln!(out, "format {format}, prompt style {}", options.prompt_style);
            }
            out += &report(&data, limit);
            for i in 0..args.show.min(data.train.len()) {
                out += &sample_text(&tokenizer, i, &data.train.get(i), colour)?;
            }
            out
        }
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // a reader that has had enough (`| head`) is no error
        Err(source) if source.kind() != io::ErrorKind::BrokenPipe => {
            Err(Error::Write { path: "standard output".into(), source })
        }
        _ => Ok(()),
    }
}

fn as_json(data: &Dataset, show: usize) -> serde_json::Value {
    let samples: Vec<_> = (0..show.min(data.train.len()))
        .map(|i| data.train.get(i))
        .map(|sample| json!({"input_ids": sample.tokens, "labels": sample.labels()}))
        .collect();
    let histogram: Vec<_> = Histogram::new(lengths(data)).bins();
    let histogram: Vec<_> =
        histogram.iter().map(|(from, to, count)| json!({"from": from, "to": to, "samples": count})).collect();
    json!({"counts": data.summary, "lengths": histogram, "samples": samples})
}

fn lengths(data: &Dataset) -> impl Iterator<Item = usize> + Clone + '_ {
    [&data.train, &data.validation]
        .into_iter()
        .flat_map(|samples| (0..samples.len()).map(|i| samples.tokens_len(i)))
}

fn report(data: &Dataset, limit: Option<usize>) -> String {
    let mut out = format!("{}\n", data.summary);
    if let Some(note) = &data.note {
        let _ = writeln!(out, "{note}");
    }
    if let Some(limit) = limit {
        let over = lengths(data).filter(|&length| length > limit).count();
        if over > 0 {
            let _ =
                writeln!(out, "over the model's limit of {limit} tokens, where a run cuts: {over} samples");
        }
    }
    out.push('\n');
    out += &Histogram::new(lengths(data)).to_text();
    out
}

/// Lengths in bins of equal, round width.
struct Histogram {
    width: usize,
    counts: Vec<usize>,
    first: usize,
}

impl Histogram {
    const BINS: usize = 16;

    fn new(lengths: impl Iterator<Item = usize> + Clone) -> Self {
        let (shortest, longest) =
            lengths.clone().fold((usize::MAX, 0), |(low, high), length| (low.min(length), high.max(length)));
        let span = longest.saturating_sub(shortest) + 1;
        // 1, 2 or 5 times a power of ten
        let steps = (0..).flat_map(|power| [1, 2, 5].map(|step| step * 10usize.pow(power)));
        let fits = |width: &usize| span.div_ceil(*width) < Self::BINS || *width >= usize::MAX / 100;
        let width = steps.into_iter().find(fits).unwrap_or(1);
        let first = if longest == 0 { 0 } else { shortest / width };
        let mut counts = vec![0; longest / width + 1 - first];
        lengths.for_each(|length| counts[length / width - first] += 1);
        Self { width, counts, first }
    }

    /// (from, to, samples) of each bin; `to` is the last length in it.
    fn bins(&self) -> Vec<(usize, usize, usize)> {
        let bin = |(i, &count): (usize, &usize)| {
            let from = (self.first + i) * self.width;
            (from, from + self.width - 1, count)
        };
        self.counts.iter().enumerate().map(bin).collect()
    }

    fn to_text(&self) -> String {
        const COLUMNS: usize = 50;
        const EIGHTHS: [&str; 8] = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"];
        let most = self.counts.iter().copied().max().unwrap_or(0).max(1);
        let digits = self.bins().last().map_or(1, |(_, to, _)| to.to_string().len());
        // a bin of one length is that length
        let range = if self.width == 1 { digits } else { 2 * digits + 1 };
        let columns = range.max("tokens".len());
        let mut out = format!("{:>columns$}  samples\n", "tokens");
        for (from, to, count) in self.bins() {
            // a bin that is not empty shows at least a sliver
            let eighths = (count * COLUMNS * 8).div_ceil(most);
            let bar = "█".repeat(eighths / 8) + EIGHTHS[eighths % 8];
            let lengths =
                if from == to { from.to_string() } else { format!("{from:>digits$}-{to:>digits$}") };
            let _ = writeln!(out, "{lengths:>columns$}  {bar} {count}");
        }
        out
    }
}

/// A sample token by token: those with a label green, or in brackets where there are no colours.
fn sample_text(tokenizer: &Tokenizer, i: usize, sample: &Sample, colour: bool) -> Result<String, Error> {
    let (tokens, labels) = (sample.tokens.len(), sample.label_tokens());
    let key = if colour { "green is learned" } else { "[in brackets] is learned" };
    let mut out = format!("\nsample {i}: {tokens} tokens, {labels} of them labels ({key})\n");
    let mut learned = false;
    for (piece, label) in pieces(tokenizer, sample)? {
        match (colour, label == learned) {
            (true, _) => out += if label { "\x1b[32m" } else { "\x1b[2m" },
            (false, true) => out.push('|'),
            (false, false) => out.push(if label { '[' } else { ']' }),
        }
        learned = label;
        out += &piece;
        if colour {
            out += "\x1b[0m\x1b[2m|\x1b[0m";
        }
    }
    if !colour && learned {
        out.push(']');
    }
    out.push('\n');
    Ok(out)
}

/// The text of each token, or of the few that make up a character together, and whether it is a label.
///
/// A token is decoded behind the one before it: decoders of SentencePiece's kind take a blank from the start of a text.
fn pieces(tokenizer: &Tokenizer, sample: &Sample) -> Result<Vec<(String, bool)>, Error> {
    let (tokens, labels) = (&sample.tokens, sample.labels());
    let label = |i: usize| labels[i] != IGNORE_INDEX;
    let (mut out, mut from) = (Vec::new(), 0usize);
    for i in 0..tokens.len() {
        let before = from.saturating_sub(1);
        let text = tokenizer.decode_all(&tokens[before..=i])?;
        let text = match text.strip_prefix(&tokenizer.decode_all(&tokens[before..from])?) {
            Some(text) => text.to_owned(),
            None => tokenizer.decode_all(&tokens[from..=i])?,
        };
        let next = i + 1;
        let whole = !text.ends_with(char::REPLACEMENT_CHARACTER) || next - from == 4;
        if whole || next == tokens.len() || label(next) != label(from) {
            let visible = text.replace('\n', "⏎\n").replace('\t', "⇥").replace('\x1b', "␛");
            out.push((visible, label(from)));
            from = next;
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_are_round_and_hold_all() {
        for lengths in
            [vec![], vec![1], vec![5, 5, 5], (1..=1000).collect(), vec![3, 70_000], vec![1023, 1024]]
        {
            let histogram = Histogram::new(lengths.iter().copied());
            let bins = histogram.bins();
            assert!(bins.len() <= Histogram::BINS, "{bins:?}");
            assert_eq!(bins.iter().map(|(_, _, count)| count).sum::<usize>(), lengths.len());
            for (from, to, count) in bins {
                assert_eq!(lengths.iter().filter(|&&l| (from..=to).contains(&l)).count(), count);
            }
        }
        let text = Histogram::new([9, 10].into_iter()).to_text();
        assert!(text.contains("\n     9  █") && text.contains("\n    10  █"), "{text}");
        let text = Histogram::new([10, 11, 12, 12, 31].into_iter()).to_text();
        assert_eq!(
            text.lines().nth(1).unwrap(),
            " 10-11  ██████████████████████████████████████████████████ 2"
        );
    }
}
