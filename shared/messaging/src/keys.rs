//! The one hash by which keys are spread, over partitions and over buckets.

/// Which of `parts` a key belongs to, from 0. FNV-1a of 64 bits (RFC 9923): the same in every process
/// and version, for ever.
pub fn part_of(key: &str, parts: u32) -> u32 {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in key.bytes() {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    (hash % u64::from(parts.max(1))) as u32
}
