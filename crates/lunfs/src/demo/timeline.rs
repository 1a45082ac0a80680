//! What happened when, told from the JSON logs of the hosts.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::{Map, Value};

use crate::out::say;

const SECONDS_OF_A_DAY: f64 = 86_400.0;

/// One line of the timeline.
pub struct Event {
    /// Seconds since the kill.
    at: f64,
    who: String,
    what: String,
}

impl Event {
    /// An event `at` seconds after the kill.
    pub fn new(at: f64, who: &str, what: String) -> Event {
        Event { at, who: who.into(), what }
    }
}

/// What a host logged after `since`.
pub fn read(log: &Path, since: SystemTime) -> Result<Vec<Event>> {
    let text = std::fs::read_to_string(log)
        .with_context(|| format!("cannot read the log {}", log.display()))?;
    let who = log.file_stem().unwrap_or_default().to_string_lossy();
    let start = second_of_day(since);
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter_map(|line| Some((seconds_between(start, time_of(&line)?), told(&line)?)))
        .filter(|(at, _)| *at >= 0.0)
        .map(|(at, what)| Event::new(at, &who, what))
        .collect())
}

/// Prints events in the order in which they happened.
pub fn print(mut events: Vec<Event>) {
    events.sort_by(|a, b| a.at.total_cmp(&b.at));
    for Event { at, who, what } in events {
        say!("     +{at:.3} s  {who:5}  {what}");
    }
}

/// The sentence of a log line.
fn told(line: &Value) -> Option<String> {
    let fields = line["fields"].as_object()?;
    let event = fields.get("event").and_then(Value::as_str).unwrap_or_default();
    match event {
        "claim" => Some(sentence("claims slot {slot} of {name}", fields)),
        "fenced" => Some(sentence("fence: no write of slot {slot} can land any more", fields)),
        "recovered" => Some(sentence(
            "replay of {records} records: {applied} images applied, {in_place} were in place; \
             slot {slot} is free",
            fields,
        )),
        _ => with_fields(fields),
    }
}

/// A sentence with the values of the fields it names.
fn sentence(form: &str, fields: &Map<String, Value>) -> String {
    fields.iter().fold(form.to_owned(), |text, (name, value)| {
        text.replace(&format!("{{{name}}}"), &plain(value))
    })
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The message as it was logged, with the numbers that belong to it.
fn with_fields(fields: &Map<String, Value>) -> Option<String> {
    let message = fields.get("message")?.as_str()?;
    let rest: Vec<String> = fields
        .iter()
        .filter(|(name, _)| !["message", "event"].contains(&name.as_str()))
        .map(|(name, value)| format!("{name} {}", plain(value)))
        .collect();
    Some(if rest.is_empty() { message.into() } else { format!("{message} ({})", rest.join(", ")) })
}

/// Second of the day in `"timestamp":"2026-11-22T16:03:08.123456Z"`.
fn time_of(line: &Value) -> Option<f64> {
    let (_, time) = line["timestamp"].as_str()?.split_once('T')?;
    let mut parts = time.trim_end_matches('Z').split(':');
    let hours: f64 = parts.next()?.parse().ok()?;
    let minutes: f64 = parts.next()?.parse().ok()?;
    let seconds: f64 = parts.next()?.parse().ok()?;
    Some(hours * 3600.0 + minutes * 60.0 + seconds)
}

fn second_of_day(time: SystemTime) -> f64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs_f64() % SECONDS_OF_A_DAY
}

/// From one moment to another of the same half day, across midnight if need be.
fn seconds_between(from: f64, to: f64) -> f64 {
    let difference = (to - from).rem_euclid(SECONDS_OF_A_DAY);
    if difference > SECONDS_OF_A_DAY / 2.0 { difference - SECONDS_OF_A_DAY } else { difference }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_told_with_its_numbers() {
        let line = serde_json::json!({
            "timestamp": "2026-11-22T16:03:08.500000Z",
            "fields": {"message": "replayed", "event": "new", "images": 12, "slot": "0"},
        });
        assert_eq!(told(&line).expect("a message"), "replayed (images 12, slot 0)");
        assert_eq!(time_of(&line), Some(57_788.5));
    }

    #[test]
    fn a_known_event_is_a_sentence() {
        let line = serde_json::json!({
            "fields": {"message": "m", "event": "claim", "slot": 3, "name": "alpha"},
        });
        assert_eq!(told(&line).expect("a sentence"), "claims slot 3 of alpha");
    }

    #[test]
    fn midnight_does_not_turn_time_back() {
        assert_eq!(seconds_between(86_399.0, 1.0), 2.0);
        assert_eq!(seconds_between(1.0, 86_399.0), -2.0);
    }
}
