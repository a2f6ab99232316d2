//! A small random generator of our own (SplitMix64): the same seed gives the same numbers in every release.

/// A stream of random numbers.
#[derive(Debug, Clone)]
pub(crate) struct Random {
    state: u64,
}

impl Random {
    /// The stream of `seed`.
    pub(crate) const fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The stream of `seed` for one purpose: streams of different purposes have nothing to do with each other.
    pub(crate) fn of(seed: u64, purpose: &str, index: u64) -> Self {
        let mut mixed = Self::new(seed).next();
        for byte in purpose.bytes() {
            mixed = Self::new(mixed ^ u64::from(byte)).next();
        }
        Self::new(Self::new(mixed ^ index).next())
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From 0 up to, not including, 1.
    pub(crate) fn share(&mut self) -> f64 {
        // 53 bits are what a double holds.
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From `low` up to `high`.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.share()
    }

    /// From 0 up to, not including, `count`; 0 where `count` is 0.
    pub(crate) fn below(&mut self, count: usize) -> usize {
        ((self.share() * count as f64) as usize).min(count.saturating_sub(1))
    }

    /// True with that probability.
    pub(crate) fn chance(&mut self, probability: f64) -> bool {
        self.share() < probability
    }

    /// A random order.
    pub(crate) fn shuffle<T>(&mut self, items: &mut [T]) {
        for last in (1..items.len()).rev() {
            items.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_never_change() {
        // The published test vector of SplitMix64.
        let mut random = Random::new(1_234_567);
        assert_eq!(random.next(), 6_457_827_717_110_365_317);
        assert_eq!(random.next(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn draws_stay_in_their_bounds() {
        let mut random = Random::of(7, "test", 0);
        for _ in 0..1_000 {
            assert!((2.0..3.0).contains(&random.between(2.0, 3.0)));
            assert!(random.below(5) < 5);
        }
        assert_eq!(random.below(0), 0);
        let mut items: Vec<_> = (0..20).collect();
        random.shuffle(&mut items);
        items.sort_unstable();
        assert_eq!(items, (0..20).collect::<Vec<_>>());
    }

    #[test]
    fn purposes_do_not_share_a_stream() {
        assert_ne!(Random::of(7, "a", 0).next(), Random::of(7, "b", 0).next());
        assert_ne!(Random::of(7, "a", 0).next(), Random::of(7, "a", 1).next());
        assert_eq!(Random::of(7, "a", 1).next(), Random::of(7, "a", 1).next());
    }
}
