#![no_main]

#[allow(dead_code, reason = "shared with the tests")]
#[path = "../../tests/fake/mod.rs"]
mod fake;
#[allow(dead_code, reason = "one function for each target")]
#[path = "../../tests/hostile/mod.rs"]
mod hostile;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| hostile::expression(bytes));
