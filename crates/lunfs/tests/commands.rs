//! What the commands say and how they end, where neither root nor FUSE is needed.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// A directory of one test; gone with it.
struct Place(PathBuf);

impl Place {
    fn new(test: &str) -> Place {
        // Not in the temporary directory: that may be memory, without direct I/O.
        let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(test);
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).expect("a directory for the test");
        Place(dir)
    }

    fn lunfs(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_lunfs"))
            .args(arguments)
            .current_dir(&self.0)
            .output()
            .expect("lunfs starts")
    }

    /// What a command that must work prints.
    fn good(&self, arguments: &[&str]) -> String {
        let output = self.lunfs(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Exit code and message of a command that must not work.
    fn bad(&self, arguments: &[&str]) -> (i32, String) {
        let output = self.lunfs(arguments);
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        (output.status.code().expect("it ended by itself"), said)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_formatted_image_is_an_empty_clean_volume() {
    let place = Place::new("formatted");
    let said = place.good(&["format", "--label", "ds1", "--size", "256M", "volume.img"]);
    assert!(said.contains("\"ds1\", 256 MiB"), "{said}");
    assert!(said.contains("next: lunfs mount"), "{said}");

    let said = place.good(&["check", "--offline", "volume.img"]);
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[0], "0 files, 1 directories, 0 symlinks, 0 others");
    assert_eq!(lines.last(), Some(&"clean"));

    let said = place.good(&["info", "volume.img", "--json"]);
    assert!(said.contains("\"label\":\"ds1\""), "{said}");
    assert!(said.contains("\"slots_in_use\":0"), "{said}");
    let said = place.good(&["hosts", "volume.img", "--json"]);
    assert_eq!(said.trim(), "{\"hosts\":[]}");
    let said = place.good(&["inspect", "volume.img"]);
    assert!(said.starts_with("block 0: Superblock {"), "{said}");
    assert!(said.contains("\nblock 256: Superblock {"), "{said}");
}

#[test]
fn format_refuses_what_holds_data() {
    let place = Place::new("holds_data");
    fs::write(place.0.join("letter.img"), vec![b'x'; 64 << 20]).expect("a file");
    let (code, said) = place.bad(&["format", "letter.img"]);
    assert_eq!(code, 1);
    assert!(said.contains("letter.img holds data: unknown data"), "{said}");
    assert!(said.contains("add --force"), "{said}");
    place.good(&["format", "--force", "letter.img"]);
    place.good(&["check", "--offline", "letter.img"]);

    let (code, said) = place.bad(&["format", "letter.img"]);
    assert_eq!(code, 1);
    assert!(said.contains("the lunfs volume"), "{said}");
}

/// It emptied the image first, and found afterwards that it could make no volume of it.
#[test]
fn format_by_force_empties_nothing_that_cannot_become_a_volume() {
    let place = Place::new("by_force");
    let letter = vec![b'x'; 64 << 20];
    fs::write(place.0.join("letter.img"), &letter).expect("a file");
    for impossible in [["--slots", "100"], ["--size", "1M"]] {
        let [option, value] = impossible;
        let (code, said) = place.bad(&["format", "--force", option, value, "letter.img"]);
        assert_eq!(code, 1, "{said}");
        assert!(said.contains("nothing was written"), "{said}");
        assert!(fs::read(place.0.join("letter.img")).expect("it is there") == letter);
    }
}

#[test]
fn format_needs_a_size_to_create_an_image_and_leaves_nothing_when_it_fails() {
    let place = Place::new("needs_size");
    let (code, said) = place.bad(&["format", "new.img"]);
    assert_eq!(code, 1);
    assert_eq!(said, "lunfs: new.img does not exist; give --size to create an image");
    let (code, said) = place.bad(&["format", "--size", "1M", "new.img"]);
    assert_eq!(code, 1);
    assert!(said.contains("1 MiB are too small") && said.contains("MiB ("), "{said}");
    assert!(!place.0.join("new.img").exists());
    // No file system here has files of that size.
    let (code, said) = place.bad(&["format", "--size", "8000P", "new.img"]);
    assert_eq!(code, 1);
    assert!(said.contains("cannot be made there"), "{said}");
    assert!(!place.0.join("new.img").exists());
}

/// It said that nothing was written, and the letter had 64 MiB.
#[test]
fn what_format_refuses_is_as_it_was() {
    let place = Place::new("as_it_was");
    fs::write(place.0.join("letter"), "hello\n").expect("a file");
    let (code, said) = place.bad(&["format", "--size", "64M", "letter"]);
    assert_eq!(code, 1);
    assert!(said.contains("holds data") && said.contains("nothing was written"), "{said}");
    assert_eq!(fs::read_to_string(place.0.join("letter")).expect("there"), "hello\n");
}

#[test]
fn check_ends_with_two_where_it_cannot_run() {
    let place = Place::new("cannot_run");
    let (code, said) = place.bad(&["check", "missing.img"]);
    assert_eq!(code, 2, "{said}");
    fs::write(place.0.join("zeroes.img"), vec![0; 8 << 20]).expect("a file");
    let (code, said) = place.bad(&["check", "zeroes.img"]);
    assert_eq!(code, 2, "{said}");
    // Who reads JSON reads it also then.
    let output = place.lunfs(&["check", "--json", "zeroes.img"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(2));
    assert!(said.starts_with("{\"error\":\"") && said.contains("nothing is known"), "{said}");
}

#[test]
fn check_ends_with_one_where_it_finds_something() {
    use std::os::unix::fs::FileExt as _;

    let place = Place::new("finds");
    place.good(&["format", "--size", "256M", "volume.img"]);
    let info = place.good(&["inspect", "volume.img", "superblock"]);
    let root = info.lines().find_map(|line| line.trim().strip_prefix("root: BlockNo("));
    let root = root.and_then(|rest| rest.trim_end_matches("),").parse::<u64>().ok());
    let image = fs::File::options().write(true).open(place.0.join("volume.img"));
    let at = (root.expect("the superblock names the root") + 1) * 4096 + 300;
    image.expect("the image").write_all_at(b"not what was written", at).expect("a write");
    let output = place.lunfs(&["check", "--offline", "volume.img"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("error: block"), "{said}");
    assert!(said.contains("nothing was changed"), "{said}");

    // Somebody tried that again and again.
    let output = place.lunfs(&["check", "--repair", "volume.img"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("`--repair` can mend nothing of this"), "{said}");
    assert!(said.contains("from a backup"), "{said}");
}

#[test]
fn a_name_that_would_break_a_line_is_refused() {
    let place = Place::new("names");
    let (code, said) = place.bad(&["format", "--size", "64M", "--label", "a\nb", "volume.img"]);
    assert_eq!(code, 2);
    assert!(said.contains("a line break or another control character"), "{said}");
    assert!(!place.0.join("volume.img").exists());
    let (code, said) = place.bad(&["mount", "--host", "a\u{1b}b", "volume.img", "."]);
    assert_eq!(code, 2);
    assert!(said.contains("control character"), "{said}");
}

#[test]
fn a_place_that_is_not_mounted_is_named() {
    let place = Place::new("not_mounted");
    for command in ["unmount", "info", "hosts", "locks"] {
        let (code, said) = place.bad(&[command, "."]);
        assert_eq!(code, 1);
        assert!(said.contains("is not on a mounted lunfs volume"), "{command}: {said}");
    }
}

#[test]
fn a_size_that_is_none_is_refused_before_anything_is_done() {
    let place = Place::new("no_size");
    let (code, said) = place.bad(&["format", "--size", "huge", "volume.img"]);
    assert_eq!(code, 2);
    assert!(said.contains("a size is a number and K, M, G, T or P"), "{said}");
    assert!(!place.0.join("volume.img").exists());
}

#[test]
fn a_deadline_without_force_is_refused() {
    let place = Place::new("deadline");
    let (code, said) = place.bad(&["unmount", "--deadline", "1s", "."]);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("--force"), "{said}");
}

#[test]
fn the_demo_names_what_it_lacks_before_it_makes_anything() {
    let place = Place::new("demo_lacks");
    let output = Command::new(env!("CARGO_BIN_EXE_lunfs"))
        .arg("demo")
        .current_dir(&place.0)
        .env("PATH", &place.0)
        .output()
        .expect("lunfs starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.contains("sha256sum, which compares the files, cannot be started"), "{said}");
    assert!(output.stdout.is_empty(), "nothing was begun");
}

#[test]
fn help_says_what_a_size_and_a_mount_point_are() {
    let place = Place::new("help");
    let said = place.good(&["format", "--help"]);
    assert!(said.contains("powers of 1024"), "{said}");
    let said = place.good(&["mount", "--help"]);
    assert!(said.contains("Empty directory") && said.contains("--nonempty"), "{said}");
}

/// The examples of the document, typed as they are printed there.
#[test]
fn what_operating_tells_to_inspect_is_there_on_a_fresh_volume() {
    let place = Place::new("operating");
    place.good(&["format", "--size", "256M", "SOURCE"]);
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/operating.md");
    let document = fs::read_to_string(document).expect("the document");
    let commands = document.lines().filter_map(|line| line.strip_prefix("    lunfs inspect "));
    let mut ran = 0;
    for command in commands {
        let words = command.split('#').next().unwrap_or(command).split_whitespace();
        let words: Vec<&str> = ["inspect"].into_iter().chain(words).collect();
        let said = place.good(&words);
        let is_shown = match words[2] {
            "superblock" => said.contains("root: BlockNo(2050)"),
            "slot" => said.contains("Pulse {") && said.contains("doorbell 6"),
            "lock" => said.contains("Lock {") && said.contains("kind: Directory"),
            "block" => said.contains("Cluster {"),
            "journal" => said.contains("slot 0 has no journal"),
            other => panic!("a new example: {other}; say here what it must show"),
        };
        assert!(is_shown, "{words:?}: {said}");
        ran += 1;
    }
    assert_eq!(ran, 5);
}
