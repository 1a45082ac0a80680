//! Printing for people and pipes: whoever reads may stop reading (`lunfs inspect ... | head`).

use std::fmt::Arguments;
use std::io::Write as _;

/// Prints a line to stdout.
macro_rules! say {
    ($($what:tt)*) => { $crate::out::line(format_args!($($what)*)) };
}
pub(crate) use say;

/// Prints a line; ends the program when nobody reads it any more.
pub fn line(what: Arguments<'_>) {
    if writeln!(std::io::stdout().lock(), "{what}").is_err() {
        std::process::exit(2);
    }
}

/// A value as `Debug` shows it, each field on its own line and no more lines than that.
pub fn fields(debug: &str) -> String {
    let mut text = String::new();
    let mut depth = 0;
    let mut in_quotes = false;
    let mut chars = debug.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\\' if in_quotes => {
                text.push(c);
                text.extend(chars.next());
                continue;
            }
            '"' => in_quotes = !in_quotes,
            _ if in_quotes => {}
            '{' | '[' | '(' => depth += 1,
            '}' | ']' | ')' => depth -= 1,
            _ => {}
        }
        let opens = c == '{' && depth == 1;
        let separates = c == ',' && depth == 1;
        if c == '}' && depth == 0 {
            text.truncate(text.trim_end().len());
            text.push_str(",\n}");
            continue;
        }
        text.push(c);
        if !in_quotes && (opens || separates) {
            text.push_str("\n    ");
            chars.next_if_eq(&' ');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_field_has_one_line() {
        #[derive(Debug)]
        #[expect(dead_code, reason = "shown by Debug only")]
        struct Thing {
            name: &'static str,
            bytes: [u8; 3],
            inner: Option<(u8, u8)>,
        }
        let thing = Thing { name: "a, {b\"", bytes: [1, 2, 3], inner: Some((4, 5)) };
        let shown = fields(&format!("{thing:?}"));
        let lines: Vec<&str> = shown.lines().collect();
        assert_eq!(
            lines,
            [
                "Thing {",
                r#"    name: "a, {b\"","#,
                "    bytes: [1, 2, 3],",
                "    inner: Some((4, 5)),",
                "}",
            ]
        );
        assert_eq!(fields("Unit"), "Unit");
    }
}
