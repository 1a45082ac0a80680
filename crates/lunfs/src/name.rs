//! Names that a volume keeps: of hosts, and labels. They appear in logs, tables and JSON of every
//! host, so they are one line of text.

use anyhow::{Result, bail};

/// As much as a pulse and a superblock have room for.
const BYTES_MAX: usize = 64;

/// The name of a host.
pub fn host(text: &str) -> Result<String> {
    if text.is_empty() {
        bail!("a host has a name");
    }
    label(text)
}

/// The label of a volume; it may be empty.
pub fn label(text: &str) -> Result<String> {
    if text.len() > BYTES_MAX {
        bail!("it has {} bytes, and at most {BYTES_MAX} are kept", text.len());
    }
    if text.chars().any(char::is_control) {
        bail!("it holds a line break or another control character");
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_line() {
        assert_eq!(host("node-1 (rack b)").ok().as_deref(), Some("node-1 (rack b)"));
        assert_eq!(label("").ok().as_deref(), Some(""));
        for bad in ["a\nb", "\t", "\u{1b}[31m", "\u{9b}", &"x".repeat(65)] {
            assert!(host(bad).is_err() && label(bad).is_err(), "{bad:?}");
        }
        assert!(host("").is_err());
    }
}
