//! Sizes as people write them: `512M`, `1G`, `10T`, or bytes.

use std::fmt;
use std::str::FromStr;

use anyhow::{Context, bail};

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

const UNITS: &[(&str, u32)] = &[("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

impl FromStr for Size {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Size> {
        let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit = text[digits.len()..].trim_end_matches("iB").trim_end_matches('B');
        let number: u64 = digits.parse().context("a size is a number and K, M, G, T or P")?;
        let shift = match UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit)) {
            Some((_, shift)) => *shift,
            None if unit.is_empty() => 0,
            None => bail!("{unit} is no unit; a size is a number and K, M, G, T or P"),
        };
        number.checked_mul(1 << shift).map(Size).context("more bytes than there are")
    }
}

/// A size, or by how much to change one: `20G`, `+10G`, `-512M`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// To this size.
    To(Size),
    /// By so much more.
    Up(Size),
    /// By so much less.
    Down(Size),
}

impl FromStr for Change {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Change> {
        Ok(match (text.strip_prefix('+'), text.strip_prefix('-')) {
            (Some(more), _) => Change::Up(unsigned(more)?),
            (_, Some(less)) => Change::Down(unsigned(less)?),
            _ => Change::To(text.parse()?),
        })
    }
}

/// Numbers may have a sign of their own, which would be a second one.
fn unsigned(text: &str) -> anyhow::Result<Size> {
    if text.starts_with('+') {
        bail!("a size has one sign at most");
    }
    text.parse()
}

impl Change {
    /// What becomes of a size, if there is such a size.
    pub fn of(self, now: u64) -> Option<u64> {
        match self {
            Change::To(Size(size)) => Some(size),
            Change::Up(Size(more)) => now.checked_add(more),
            Change::Down(Size(less)) => now.checked_sub(less),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let fitting = UNITS.iter().rev().find(|(_, shift)| self.0 >= 1 << shift);
        let Some((unit, shift)) = fitting else { return write!(f, "{} B", self.0) };
        let tenths = (u128::from(self.0) * 10) >> shift;
        match tenths % 10 {
            0 => write!(f, "{} {unit}iB", tenths / 10),
            tenth => write!(f, "{}.{tenth} {unit}iB", tenths / 10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Size>().map(|size| size.0).ok();
        assert_eq!(read("512"), Some(512));
        assert_eq!(read("512M"), Some(512 << 20));
        assert_eq!(read("1g"), Some(1 << 30));
        assert_eq!(read("64TiB"), Some(64 << 40));
        assert_eq!(read("1GB"), Some(1 << 30));
        assert_eq!(read("G"), None);
        assert_eq!(read("1X"), None);
        assert_eq!(read("-1G"), None);
        assert_eq!(read("99999999P"), None);
    }

    #[test]
    fn changes_are_sizes_with_a_sign() {
        let change = |text: &str, now| text.parse::<Change>().ok().map(|change| change.of(now));
        assert_eq!(change("4K", 9), Some(Some(4096)));
        assert_eq!(change("+4K", 9), Some(Some(4105)));
        assert_eq!(change("-4K", 5000), Some(Some(904)));
        assert_eq!(change("-4K", 9), Some(None));
        assert_eq!(change("+1", u64::MAX), Some(None));
        for bad in ["", "+", "-", "++1", "-+1", "--1", "+-1"] {
            assert_eq!(change(bad, 9), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_told_in_the_largest_unit_that_fits() {
        assert_eq!(Size(100).to_string(), "100 B");
        assert_eq!(Size(1 << 30).to_string(), "1 GiB");
        assert_eq!(Size(1536 << 20).to_string(), "1.5 GiB");
        assert_eq!(Size(u64::MAX).to_string(), "16383.9 PiB");
    }
}
