//! Waiting for a host to begin a recovery, by its log.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::world::Host;

/// A host without a last word is silent for 12 s before anybody claims it.
const CLAIM_MAX: Duration = Duration::from_secs(20);

/// The logs of some hosts from now on, and programs that want what a dead host had locked.
pub struct Watch {
    logs: Vec<(PathBuf, u64)>,
    wanting: Vec<Child>,
}

impl Watch {
    /// Looks at what the hosts log from now on.
    pub fn new(hosts: &[&Host]) -> Result<Watch> {
        let end = |host: &&Host| Ok((host.log.clone(), std::fs::metadata(&host.log)?.len()));
        let logs = hosts.iter().map(end).collect::<Result<_>>()?;
        Ok(Watch { logs, wanting: Vec::new() })
    }

    /// Lists everything on each host, for which the dead one's locks are needed.
    pub fn want(&mut self, hosts: &[&Host]) -> Result<()> {
        for host in hosts {
            let list = Command::new("ls")
                .arg("-lR")
                .arg(&host.dir)
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("cannot start ls")?;
            self.wanting.push(list);
        }
        Ok(())
    }

    /// Which of the hosts claims first.
    pub fn first_claim(&mut self) -> Result<Option<usize>> {
        let began = Instant::now();
        while began.elapsed() < CLAIM_MAX {
            for (index, (log, from)) in self.logs.iter().enumerate() {
                if read_from(log, *from)?.contains("\"event\":\"claim\"") {
                    return Ok(Some(index));
                }
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(None)
    }

    /// Whether a host has ended a recovery since.
    pub fn has_recovered(&self, host: &Host) -> Result<bool> {
        let from = self.logs.iter().find(|(log, _)| *log == host.log).map_or(0, |(_, from)| *from);
        Ok(read_from(&host.log, from)?.contains("\"event\":\"recovered\""))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        for child in &mut self.wanting {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn read_from(log: &Path, from: u64) -> Result<String> {
    let mut file = File::open(log).with_context(|| log.display().to_string())?;
    file.seek(SeekFrom::Start(from))?;
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
