#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| lunfs_fuzz::run("superblock", input));
