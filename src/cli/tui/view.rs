//! Draws a [`State`] on whatever size of screen there is.

use super::super::progress::validation_text;
use super::state::{State, axis_over};
use crate::memory_size::memory_text;
use crate::train::axis::{Axis, Scale, range};
use crate::train::duration::duration_text;
use crate::train::figures::{short, thinned};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis as ChartAxis, Block, BorderType, Chart, Dataset, Gauge, GraphType, Paragraph};

const TRAINING: Color = Color::Blue;
const RAW: Color = Color::DarkGray;
const VALIDATION: Color = Color::Yellow;
const RATE: Color = Color::Cyan;
const NORM: Color = Color::Magenta;
const SPEED: Color = Color::Green;

/// Rows below which charts would be of no use.
const ROOM_FOR_CHARTS: u16 = 14;

/// Draws everything. `stopping`: the run was asked to stop.
pub fn draw(frame: &mut Frame, state: &State, stopping: bool) {
    let area = frame.area();
    let notes = if area.height >= 24 { 6 } else { 3 };
    let charts = if area.height >= ROOM_FOR_CHARTS { Constraint::Min(6) } else { Constraint::Length(0) };
    let rows = [
        Constraint::Length(1),
        Constraint::Length(1),
        Constraint::Length(2),
        charts,
        Constraint::Length(notes),
        Constraint::Length(1),
    ];
    let [title, gauge, figures, charts, notes, keys] = Layout::vertical(rows).areas(area);
    draw_title(frame, state, title);
    draw_gauge(frame, state, gauge);
    draw_figures(frame, state, figures);
    if charts.height > 0 {
        draw_charts(frame, state, charts);
    }
    draw_notes(frame, state, notes);
    let text = match stopping {
        true if state.run.is_none() => {
            Line::from(" stopping before the first step; once more to stop at once".yellow())
        }
        true if state.validating.is_some() => {
            Line::from(" stopping in this validation, and saving; once more to stop at once".yellow())
        }
        true => Line::from(" stopping after this step, and saving; once more to stop at once".yellow()),
        false => Line::from(" q or Ctrl-C: finish the step, save and stop".dark_gray()),
    };
    frame.render_widget(text, keys);
}

fn draw_title(frame: &mut Frame, state: &State, area: Rect) {
    let mut spans = vec![" engraft ".bold().reversed(), format!(" {} ", state.title).bold()];
    if let Some(run) = &state.run {
        let software = if run.software_device { " (software)" } else { "" };
        spans.push(format!(" {}{software}, {}", run.device, memory_text(run.device_bytes)).dark_gray());
    }
    frame.render_widget(Line::from(spans), area);
}

fn draw_gauge(frame: &mut Frame, state: &State, area: Rect) {
    let Some(run) = &state.run else {
        let text = state.preparing.clone().unwrap_or_else(|| "preparing the data and the model".into());
        return frame.render_widget(Line::from(format!(" {text}").cyan()), area);
    };
    let done = state.last.as_ref().map_or(0, |record| record.step);
    let eta = state.eta().map_or("?".into(), duration_text);
    let epoch = state.last.as_ref().map_or(0.0, |record| record.epoch);
    let mut label = format!("step {done}/{}  epoch {epoch:.2}/{}  ETA {eta}", run.steps, run.epochs);
    // what is over in a moment would only flicker
    if let Some(validating) = state.validating.filter(|validating| validating.elapsed_s >= 2.0) {
        label = format!("step {done}/{}  {}", run.steps, validation_text(&validating));
    }
    let gauge = Gauge::default()
        .ratio((done as f64 / run.steps.max(1) as f64).clamp(0.0, 1.0))
        .label(label)
        .use_unicode(true)
        .gauge_style(Style::new().fg(TRAINING).bg(RAW));
    frame.render_widget(gauge, area);
}

/// The numbers of the last step, and memory by kind.
fn draw_figures(frame: &mut Frame, state: &State, area: Rect) {
    let mut spans = Vec::new();
    let mut add = |name: &str, value: String, colour: Color| {
        spans.push(format!(" {name} ").dark_gray());
        spans.push(Span::styled(value, Style::new().fg(colour).bold()));
        spans.push(" ".into());
    };
    if let Some(last) = &state.last {
        add("loss", short(last.loss), TRAINING);
    }
    if let Some([_, loss]) = state.val_loss.last() {
        add("val loss", short(*loss), VALIDATION);
    }
    if let Some(last) = &state.last {
        add("lr", format!("{:.2e}", last.learning_rate), RATE);
        add("grad norm", short(last.grad_norm), NORM);
        add("tokens/s", short(last.tokens_per_s), SPEED);
        add("elapsed", duration_text(last.elapsed_s), Color::Reset);
    }
    let mut lines = vec![Line::from(spans)];
    if let Some(run) = &state.run {
        let m = &run.memory;
        let kinds = [
            ("weights", m.weights),
            ("activations", m.activations),
            ("trainables", m.trainables),
            ("optimiser", m.optimiser),
            ("inputs", m.inputs + m.parameters),
        ];
        let text = kinds.map(|(name, bytes)| format!("{name} {}", memory_text(bytes))).join(", ");
        lines.push(Line::from(format!(" memory {text}").dark_gray()));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

fn draw_charts(frame: &mut Frame, state: &State, area: Rect) {
    let [left, right] =
        Layout::horizontal([Constraint::Percentage(60), Constraint::Percentage(40)]).areas(area);
    // braille has two dots across a cell
    let fit = |points: &[[f64; 2]], area: Rect| thinned(points, usize::from(area.width.max(1)));
    let smooth = state.smooth_loss();
    let steps = range(state.loss.iter().chain(&state.val_loss).map(|[step, _]| *step));
    let mut losses = vec![
        Curve { points: fit(&smooth, left), colour: TRAINING, dots: false },
        Curve { points: state.val_loss.clone(), colour: VALIDATION, dots: true },
    ];
    if smooth.len() < state.loss.len() || smooth != state.loss {
        losses.insert(0, Curve { points: fit(&state.loss, left), colour: RAW, dots: true });
    }
    let title = Line::from(vec![" loss ".fg(TRAINING), "validation ".fg(VALIDATION)]);
    draw_chart(frame, left, title, Scale::Fitted, steps, &losses);
    let others = [
        ("learning rate", RATE, Scale::FromZero, &state.learning_rate),
        ("gradient norm", NORM, Scale::Fitted, &state.grad_norm),
        ("tokens/s", SPEED, Scale::FromZero, &state.tokens_per_s),
    ];
    // each needs six rows to say anything
    let count = usize::from(right.height / 6).clamp(1, others.len());
    let areas = Layout::vertical(vec![Constraint::Fill(1); count]).split(right);
    for ((name, colour, scale, points), area) in others.into_iter().zip(areas.iter()) {
        let line = Curve { points: fit(points, *area), colour, dots: false };
        draw_chart(frame, *area, Line::from(format!(" {name} ").fg(colour)), scale, steps, &[line]);
    }
}

/// A line of a chart, in order of what is drawn over what.
struct Curve {
    points: Vec<[f64; 2]>,
    colour: Color,
    /// Points alone, without lines between them.
    dots: bool,
}

fn draw_chart(
    frame: &mut Frame,
    area: Rect,
    title: Line,
    scale: Scale,
    steps: Option<(f64, f64)>,
    lines: &[Curve],
) {
    let block = Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().fg(RAW));
    let block = block.title(title);
    let all: Vec<&[[f64; 2]]> = lines.iter().map(|line| line.points.as_slice()).collect();
    let (Some(y), Some((first, last))) = (axis_over(scale, &all), steps) else {
        let empty = Paragraph::new("no step yet".dark_gray()).block(block);
        return frame.render_widget(empty, area);
    };
    let x = Axis::whole(first, last);
    let places: Vec<Vec<(f64, f64)>> = lines
        .iter()
        .map(|line| {
            let finite = line.points.iter().filter(|[_, y]| y.is_finite());
            finite.map(|[step, value]| (*step, y.share(*value))).collect()
        })
        .collect();
    let datasets = lines.iter().zip(&places).map(|(line, places)| {
        let graph = if line.dots { GraphType::Scatter } else { GraphType::Line };
        let marker = if line.dots && line.colour == VALIDATION { Marker::Dot } else { Marker::Braille };
        Dataset::default().marker(marker).graph_type(graph).style(line.colour).data(places)
    });
    let steps = [first, last].map(|step| format!("{step:.0}"));
    let chart = Chart::new(datasets.collect())
        .block(block.title_top(Line::from(if y.log { " log " } else { "" }.dark_gray()).right_aligned()))
        .x_axis(ChartAxis::default().bounds([x.low, x.high]).labels(steps).style(RAW))
        .y_axis(ChartAxis::default().bounds([0.0, 1.0]).labels(y.thirds()).style(RAW))
        .legend_position(None);
    frame.render_widget(chart, area);
}

/// The newest lines that there is room for.
fn draw_notes(frame: &mut Frame, state: &State, area: Rect) {
    let block = Block::bordered().border_type(BorderType::Rounded).border_style(Style::new().fg(RAW));
    let block = block.title(" notes ".dark_gray());
    let room = usize::from(block.inner(area).height);
    let from = state.notes.len().saturating_sub(room);
    let lines: Vec<Line> = state.notes[from..].iter().map(|note| Line::from(note.as_str())).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
