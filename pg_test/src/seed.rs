//! Random tests that can be repeated.

/// The seed of a test's randomness, printed so that a failure can be repeated with `PG_TEST_SEED`.
///
/// # Panics
/// When `PG_TEST_SEED` is no number.
pub fn seed() -> u64 {
    let seed = std::env::var("PG_TEST_SEED")
        .map_or_else(|_| rand::random(), |text| text.parse().expect("PG_TEST_SEED is a number"));
    println!("to repeat: PG_TEST_SEED={seed}");
    seed
}
