//! Logs: one JSON object a line for programs, text on stderr for people who watch.
//!
//! `LUNFS_LOG` filters both, as in `LUNFS_LOG=debug` or `LUNFS_LOG=lunfs_core=trace,info`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

const LOG_DIR: &str = "/run/lunfs/log";

/// Where a host logs unless told otherwise; the directory is made.
pub fn default_path(host: &str) -> Result<PathBuf> {
    fs::create_dir_all(LOG_DIR)
        .with_context(|| format!("cannot make {LOG_DIR}; give another place with --log"))?;
    // Slashes would lead elsewhere; names on the volume may have them.
    let name = host.replace('/', "_");
    Ok(Path::new(LOG_DIR).join(format!("{name}-{}.jsonl", std::process::id())))
}

/// Starts logging to a file, and to stderr if asked for. The file is made, its directory is not:
/// a mistyped place would take the log where nobody looks.
pub fn start(path: &Path, to_stderr: bool) -> Result<()> {
    let what = || format!("cannot log to {}; give another place with --log", path.display());
    if let Some(dir) = path.parent().filter(|dir| !dir.is_dir()) {
        bail!("{}: there is no directory {}", what(), dir.display());
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
