//! Memory for what clients send.
//!
//! Invariant: what is arriving at all doors together has at most a part of the
//! [`Budget`], whatever was announced and however slowly it comes, so whoever reads
//! finds the rest. A value larger than that part arrives alone.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{Budget, Charge, NoRoom};

/// The unit of account: a KiB.
const UNIT: u64 = 1 << 10;

/// The part of a budget that clients' bytes may have; clones share it.
#[derive(Clone)]
pub struct Arrivals {
    budget: Budget,
    units: Arc<Semaphore>,
    most: u32,
}

/// A place among what arrives, until it is stored or given up.
#[derive(Debug)]
pub struct Arriving(#[expect(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Arrivals {
    /// At most half of `budget`.
    pub fn new(budget: Budget) -> Self {
        let most = u32::try_from(budget.capacity() / 2 / UNIT).unwrap_or(u32::MAX).max(1);
        Self { budget, units: Arc::new(Semaphore::new(most as usize)), most }
    }

    /// Sets memory for `size` bytes aside. Waits a bounded time for what others hold.
    pub async fn admit(&self, size: u64) -> Result<(Charge, Arriving), NoRoom> {
        let units = size.div_ceil(UNIT).clamp(1, self.most.into());
        let units = u32::try_from(units).unwrap_or(self.most);
        let place = match Arc::clone(&self.units).try_acquire_many_owned(units) {
            Ok(place) => place,
            Err(_) => {
                let turn = Arc::clone(&self.units).acquire_many_owned(units);
                let turn = timeout(self.budget.patience(), turn).await;
                turn.ok().and_then(Result::ok).ok_or(NoRoom::Busy { wanted: size })?
            }
        };
        Ok((self.budget.charge(size).await?, Arriving(place)))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::cache::BudgetSettings;

    const MIB: u64 = 1 << 20;

    #[tokio::test]
    async fn half_of_the_budget_is_left_for_readers() {
        let wait = Duration::from_millis(20);
        let budget = Budget::new(BudgetSettings { bytes: 8 * MIB, blobs: 64, wait });
        let arrivals = Arrivals::new(budget.clone());
        let stalled = arrivals.admit(4 * MIB).await.unwrap();
        assert_eq!(arrivals.admit(1).await.unwrap_err(), NoRoom::Busy { wanted: 1 });
        budget.charge(4 * MIB).await.unwrap();
        drop(stalled);
        let large = arrivals.admit(6 * MIB).await.unwrap();
        assert!(arrivals.admit(1).await.is_err(), "a larger one arrives alone");
        drop(large);
        let never = NoRoom::TooLarge { wanted: 9 * MIB, most: 8 * MIB };
        assert_eq!(arrivals.admit(9 * MIB).await.unwrap_err(), never);
        assert_eq!(budget.in_use(), 0);
        arrivals.admit(4 * MIB).await.unwrap();
    }
}
