//! Hashes that keep neighbours together: keys that end in consecutive integers get consecutive places in a table, eight
//! in a row, and the rows are anywhere. What comes in by key, page by page, then touches new memory once for eight
//! keys. That is what an insert into a large table costs.

use std::hash::{BuildHasher, Hasher};

/// The bits of an integer that tell neighbours apart.
const BITS: u32 = 3;
const NEAR: u64 = (1 << BITS) - 1;

/// Makes the hashers of one table.
#[derive(Clone, Debug, Default)]
pub(super) struct NearKeys(hashbrown::DefaultHashBuilder);

impl NearKeys {
    /// 32 bits of a key's hash: its row, and its place there.
    pub(super) fn short<K: std::hash::Hash>(&self, key: &K) -> u32 {
        self.hash_one(key) as u32
    }
}

/// A table's hash from a short one. The table looks at the lowest bits for the place, and at the highest to tell keys
/// apart.
pub(super) fn widened(short: u32) -> u64 {
    let (row, near) = (u64::from(short >> BITS), u64::from(short) & NEAR);
    (row.wrapping_mul(0x9E37_79B9_7F4A_7C15) << BITS | near) ^ (near << (u64::BITS - BITS))
}

impl BuildHasher for NearKeys {
    type Hasher = NearHasher;

    fn build_hasher(&self) -> NearHasher {
        NearHasher { row: self.0.build_hasher(), near: 0 }
    }
}

/// Hashes all of a key but the lowest bits of its last integer.
pub(super) struct NearHasher {
    row: <hashbrown::DefaultHashBuilder as BuildHasher>::Hasher,
    near: u64,
}

impl Hasher for NearHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.row.write(bytes);
    }

    fn write_u64(&mut self, number: u64) {
        // The bits that are left over of the integer before.
        let before = self.near << (u64::BITS - BITS);
        self.near = number & NEAR;
        self.row.write_u64(number >> BITS | before);
    }

    fn write_u32(&mut self, number: u32) {
        self.write_u64(number.into());
    }

    fn write_usize(&mut self, number: usize) {
        self.write_u64(number as u64);
    }

    fn finish(&self) -> u64 {
        (self.row.finish() >> 32) << BITS | self.near
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn neighbours_are_in_one_row_and_rows_are_anywhere() {
        let keys = NearKeys::default();
        let places: Vec<u64> = (0..80_000_i64).map(|n| widened(keys.short(&(7_i64, n))) & 0xF_FFFF).collect();
        for row in places.chunks(8) {
            assert!(row.iter().zip(row[0]..).all(|(place, expected)| *place == expected), "{row:?}");
        }
        let rows: HashSet<u64> = places.iter().step_by(8).copied().collect();
        // 10,000 rows in 131,072 places: a few meet.
        assert!(rows.len() > 9_000, "{}", rows.len());
    }

    #[test]
    fn all_of_a_key_counts() {
        let keys = NearKeys::default();
        let differ = |one: u32, other: u32| assert_ne!(one, other);
        for n in 0..1_000_i64 {
            differ(keys.short(&(n, 5_i64)), keys.short(&(n + 1, 5_i64)));
            differ(keys.short(&(n, 5_i64)), keys.short(&(n + 8, 5_i64)));
            differ(keys.short(&(5_i64, n)), keys.short(&(5_i64, n + 8)));
            differ(keys.short(&format!("name-{n}")), keys.short(&format!("name-{}", n + 1)));
        }
    }
}
