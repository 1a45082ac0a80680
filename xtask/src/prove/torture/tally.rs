//! What a torture met: deeds by name, and what the logs of the hosts tell.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::super::ledger::Verified;
use super::deed::Deed;

/// Events of the hosts' logs that are counted.
const EVENTS: &[&str] = &[
    "claim",
    "recovered",
    "last_word",
    "suspended",
    "resumed",
    "stop",
    "claim_handed_back",
    "claim_kept",
];

/// Events that no kill may cause.
const DAMAGE: &[&str] = &["panic", "slot_damaged"];

/// Numbers of what happened.
#[derive(Default)]
pub struct Tally {
    /// Rounds that ended well.
    pub rounds: u64,
    /// Hosts that were killed, with or without their parent, by us.
    pub kills: u64,
    /// Hosts killed between their claim of another one and its end.
    pub killed_recovering: u64,
    /// Stopped hosts that were replaced, and that went on.
    pub replaced: u64,
    /// Stopped hosts that went on.
    pub went_on: u64,
    /// What writers were told is durable, and was there.
    pub verified: Verified,
    deeds: BTreeMap<Deed, u64>,
    events: BTreeMap<&'static str, u64>,
    images: u64,
}

impl Tally {
    /// Counts a deed.
    pub fn did(&mut self, deed: Deed) {
        *self.deeds.entry(deed).or_default() += 1;
    }

    /// Slots that were recovered.
    pub fn takeovers(&self) -> u64 {
        self.events.get("recovered").copied().unwrap_or_default()
    }

    /// Blocks that replays wrote.
    pub fn images(&self) -> u64 {
        self.images
    }

    /// Counts what the hosts of a round logged, and removes it; what must not be there is an
    /// error.
    pub fn read_logs(&mut self, logs: &Path) -> Result<()> {
        for entry in fs::read_dir(logs)? {
            let path = entry?.path();
            let shown = path.display();
            match path.extension().and_then(|e| e.to_str()) {
                Some("jsonl") => {
                    let text = fs::read_to_string(&path)?;
                    text.lines()
                        .try_for_each(|line| self.read_line(line))
                        .context(shown.to_string())?;
                }
                Some("stderr") => {
                    let text = fs::read_to_string(&path)?;
                    if text.contains("panicked") {
                        bail!("{shown}: a panic");
                    }
                    // A writer's own words stay with its ledger.
                    if path.with_extension("ledger").exists() {
                        continue;
                    }
                }
                _ => continue,
            }
            fs::remove_file(&path)?;
        }
        Ok(())
    }

    fn read_line(&mut self, line: &str) -> Result<()> {
        // The last line of a killed host may be cut off.
        let Ok(line) = serde_json::from_str::<Value>(line) else { return Ok(()) };
        let event = line["fields"]["event"].as_str().unwrap_or_default();
        if DAMAGE.contains(&event) || line["fields"]["kind"] == "Corrupt" {
            bail!("must not be logged: {line}");
        }
        if let Some(event) = EVENTS.iter().find(|counted| **counted == event) {
            *self.events.entry(event).or_default() += 1;
        }
        if event == "recovered" {
            self.images += line["fields"]["applied"].as_u64().unwrap_or_default();
        }
        Ok(())
    }

    /// Prints all numbers.
    pub fn print(&self) {
        println!("what was done:");
        for (deed, count) in &self.deeds {
            println!("{count:>8}  {deed:?}");
        }
        println!("what came of it:");
        for (event, count) in &self.events {
            println!("{count:>8}  {event}");
        }
        for (what, count) in [
            ("images replayed", self.images),
            ("hosts killed", self.kills),
            ("hosts killed while they recovered another one", self.killed_recovering),
            ("stopped hosts replaced", self.replaced),
            ("stopped hosts that went on", self.went_on),
            ("files found whole", self.verified.files),
            ("MiB found whole", self.verified.bytes >> 20),
        ] {
            println!("{count:>8}  {what}");
        }
    }

    /// The same for programs.
    pub fn json(&self, findings: u64) -> Value {
        json!({
            "rounds": self.rounds,
            "kills": self.kills,
            "killed_recovering": self.killed_recovering,
            "takeovers": self.takeovers(),
            "images": self.images,
            "files": self.verified.files,
            "findings": findings,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_takeover_is_counted_with_its_images() {
        let mut tally = Tally::default();
        let line = r#"{"fields":{"event":"recovered","applied":12}}"#;
        tally.read_line(line).expect("good");
        tally.read_line("{\"fields\":{\"ev").expect("cut off by a kill");
        assert_eq!((tally.takeovers(), tally.images()), (1, 12));
    }

    #[test]
    fn damage_and_panics_are_findings() {
        let mut tally = Tally::default();
        let corrupt = r#"{"fields":{"event":"operation_failed","kind":"Corrupt"}}"#;
        assert!(tally.read_line(corrupt).is_err());
        assert!(tally.read_line(r#"{"fields":{"event":"panic"}}"#).is_err());
        assert!(tally.read_line(r#"{"fields":{"event":"slot_damaged","slot":0}}"#).is_err());
    }
}
