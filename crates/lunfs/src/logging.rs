//! Logs: one JSON object a line for programs, text on stderr for people who watch.
//!
//! `LUNFS_LOG` filters both, as in `LUNFS_LOG=debug` or `LUNFS_LOG=lunfs_core=trace,info`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

const LOG_DIR: &str = "/run/lunfs/log";

/// Where a host logs unless told otherwise.
pub fn default_path(host: &str) -> PathBuf {
    // Slashes would lead elsewhere; names on the volume may have them.
    let name = host.replace('/', "_");
    Path::new(LOG_DIR).join(format!("{name}-{}.jsonl", std::process::id()))
}

/// Starts logging to a file, which is made with its directory, and to stderr if asked for.
pub fn start(path: &Path, to_stderr: bool) -> Result<()> {
    let what = || format!("cannot log to {}; give another place with --log", path.display());
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir).with_context(what)?;
    }
    let file = File::options().create(true).append(true).open(path).with_context(what)?;
    let json = fmt::layer().json().with_writer(file).with_filter(filter());
    let text = to_stderr.then(|| {
        fmt::layer().compact().with_target(false).with_writer(std::io::stderr).with_filter(filter())
    });
    tracing_subscriber::registry().with(json).with(text).init();
    Ok(())
}

fn filter() -> EnvFilter {
    EnvFilter::try_from_env("LUNFS_LOG").unwrap_or_else(|_| EnvFilter::new("info"))
}
