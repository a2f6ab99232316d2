//! What the audit found, as a table.

use std::fmt;

/// Offending ids shown for each check.
const SHOWN: usize = 10;

/// The promise that every delivery ends, which those under way have not kept yet.
const ENDS: u8 = 2;

/// One promise, checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Check {
    /// The promise's number in the list of what must always hold.
    pub promise: u8,
    /// What was checked, in words.
    pub what: &'static str,
    /// How many things were looked at.
    pub examined: usize,
    /// What breaks the promise.
    pub offenders: Vec<String>,
}

/// Everything that was checked, and some counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
    /// Counts worth knowing: name and number.
    pub counts: Vec<(String, usize)>,
}

impl Report {
    /// Whether every promise holds.
    pub fn is_clean(&self) -> bool {
        self.checks.iter().all(|check| check.offenders.is_empty())
    }

    /// The checks that found something.
    pub fn broken(&self) -> Vec<&'static str> {
        self.checks.iter().filter(|check| !check.offenders.is_empty()).map(|check| check.what).collect()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, count) in &self.counts {
            writeln!(f, "{name:<32} {count:>9}")?;
        }
        writeln!(f)?;
        writeln!(f, "{:<8} {:<58} {:>9} {:>9}", "promise", "check", "examined", "broken")?;
        for check in &self.checks {
            let Check { promise, what, examined, offenders } = check;
            writeln!(f, "{promise:<8} {what:<58} {examined:>9} {:>9}", offenders.len())?;
            for offender in offenders.iter().take(SHOWN) {
                writeln!(f, "           {offender}")?;
            }
            if offenders.len() > SHOWN {
                writeln!(f, "           ... and {} more", offenders.len() - SHOWN)?;
            }
        }
        writeln!(f)?;
        if self.checks.iter().any(|check| check.promise == ENDS && !check.offenders.is_empty()) {
            writeln!(
                f,
                "What was under way when the system stopped counts as broken: start it, and let everything end."
            )?;
        }
        f.write_str(if self.is_clean() { "clean" } else { "BROKEN" })
    }
}
