//! Whole numbers, split in proportion, so that nothing is lost and nothing is made up.

/// Splits `total` in proportion to `weights`. The parts add up to exactly `total`; each is the
/// exact share, rounded up or down. Where all weights are zero, they count as equal.
///
/// `phase` decides which parts are rounded up. Over many calls with phases that take turns, no part
/// is favoured: an I/O at a time that is split in halves goes to either half as often.
///
/// Gives nothing for no weights: then `total` is the caller's to keep.
#[must_use]
pub fn split(total: u64, weights: &[u64], phase: u64) -> Vec<u64> {
    let sum = weights.iter().fold(0_u64, |sum, weight| sum.saturating_add(*weight));
    if sum == 0 {
        return if weights.is_empty() { Vec::new() } else { split_evenly(total, weights, phase) };
    }
    // Rounded down at the end of each part, all from the same offset: so the last ends at `total`.
    // No overflow: it is at most (2^64 - 1)^2 + 2^64 - 2.
    let (sum, offset) = (u128::from(sum), u128::from(phase % sum));
    let (mut weight_so_far, mut so_far) = (0_u64, 0_u64);
    let part = |weight: &u64| {
        weight_so_far = weight_so_far.saturating_add(*weight);
        let end = (u128::from(total) * u128::from(weight_so_far) + offset) / sum;
        let end = u64::try_from(end).expect("not more than the total");
        let part = end - so_far;
        so_far = end;
        part
    };
    weights.iter().map(part).collect()
}

fn split_evenly(total: u64, weights: &[u64], phase: u64) -> Vec<u64> {
    split(total, &vec![1; weights.len()], phase)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parts_are_in_proportion_and_add_up() {
        assert_eq!(split(10, &[1, 1], 0), [5, 5]);
        assert_eq!(split(10, &[3, 0, 1], 0), [7, 0, 3]);
        assert_eq!(split(10, &[0, 0], 0), [5, 5]);
        assert_eq!(split(10, &[], 0), [0; 0]);
        assert_eq!(split(0, &[1, 2], 5), [0, 0]);
        assert_eq!(split(u64::MAX, &[u64::MAX, u64::MAX], u64::MAX).iter().sum::<u64>(), u64::MAX);
    }

    #[test]
    fn single_ios_take_turns() {
        let mut sums = [0; 3];
        for phase in 0..60 {
            let parts = split(1, &[1, 2, 3], phase);
            sums.iter_mut().zip(parts).for_each(|(sum, part)| *sum += part);
        }
        assert_eq!(sums, [10, 20, 30]);
    }

    proptest! {
        #[test]
        fn the_sum_is_the_total_and_no_part_is_off_by_one(
            total: u64,
            weights in prop::collection::vec(0..1_u64 << 50, 1..8),
            phase: u64,
        ) {
            let parts = split(total, &weights, phase);
            prop_assert_eq!(parts.iter().map(|part| u128::from(*part)).sum::<u128>(), total.into());
            let sum: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            for (part, weight) in parts.iter().zip(&weights).filter(|_| sum > 0) {
                let exact = u128::from(total) * u128::from(*weight);
                let given = u128::from(*part) * sum;
                prop_assert!(given < exact + sum && exact < given + sum);
            }
        }

        #[test]
        fn any_weights_do(total: u64, weights: Vec<u64>, phase: u64) {
            let parts = split(total, &weights, phase);
            let sum: u128 = parts.iter().map(|part| u128::from(*part)).sum();
            prop_assert_eq!(sum, if weights.is_empty() { 0 } else { total.into() });
        }
    }
}
