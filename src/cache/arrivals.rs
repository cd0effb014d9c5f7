//! Memory for what clients send.
//!
//! Invariant: what is announced at all doors together is at most a part of the [`Budget`],
//! however slowly it comes, so whoever reads finds the rest; a value larger than that part
//! arrives alone. What is set aside is what came, and [`AHEAD`] at most: who announces much
//! and sends nothing takes nothing from readers, nor from what the memory tier has.

use std::sync::Arc;

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use super::{BlobWriter, Budget, Charge, NoRoom};

/// The unit of account: a KiB.
const UNIT: u64 = 1 << 10;
/// Bytes that are set aside before they come.
const AHEAD: u64 = 1 << 20;

/// The part of a budget that clients' bytes may have; clones share it.
#[derive(Clone)]
pub struct Arrivals {
    budget: Budget,
    units: Arc<Semaphore>,
    most: u32,
}

/// What is to be set aside for a blob that is arriving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lacking {
    /// Bytes that are here.
    pub now: u64,
    /// Bytes of the blob for which nothing is set aside, these among them.
    pub left: u64,
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

    /// Lets `size` bytes come, and sets memory for the first of them aside: for all where they
    /// are few, else see [`more`](Self::more). Waits a bounded time for what others hold.
    pub async fn admit(&self, size: u64) -> Result<(Charge, Arriving), NoRoom> {
        self.budget.fits(size)?;
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
        Ok((self.budget.charge(size.min(AHEAD)).await?, Arriving(place)))
    }

    /// Sets memory for `lacking` bytes aside that come next, and for some more. Waits a bounded
    /// time for what others hold.
    pub async fn more(&self, lacking: Lacking) -> Result<Charge, NoRoom> {
        self.budget.charge_more(lacking.now.max(AHEAD).min(lacking.left)).await
    }

    /// Sets memory aside until `bytes` more fit into `writer`, which was charged for the first.
    pub async fn make_room(&self, writer: &mut BlobWriter, bytes: u64) -> Result<bool, NoRoom> {
        let Some(lacking) = writer.lacking(bytes) else { return Ok(false) };
        writer.add(self.more(lacking).await?);
        Ok(true)
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
        drop(budget.charge(7 * MIB).await.unwrap());
        drop(stalled);
        let large = arrivals.admit(6 * MIB).await.unwrap();
        assert!(arrivals.admit(1).await.is_err(), "a larger one arrives alone");
        drop(large);
        let never = NoRoom::TooLarge { wanted: 9 * MIB, most: 8 * MIB };
        assert_eq!(arrivals.admit(9 * MIB).await.unwrap_err(), never);
        assert_eq!(budget.in_use(), 0);
        arrivals.admit(4 * MIB).await.unwrap();
    }

    #[tokio::test]
    async fn what_is_announced_takes_nothing_from_readers_until_it_comes() {
        let wait = Duration::from_millis(20);
        let budget = Budget::new(BudgetSettings { bytes: 8 * MIB, blobs: 64, wait });
        let arrivals = Arrivals::new(budget.clone());
        let size = 8 * MIB;
        let (charge, place) = arrivals.admit(size).await.unwrap();
        let mut writer = BlobWriter::charged(charge, size).unwrap();
        let reading = budget.charge(7 * MIB).await.unwrap();

        let mib = vec![7; 1 << 20];
        assert!(!arrivals.make_room(&mut writer, MIB).await.unwrap(), "it is set aside");
        writer.write(&mib).unwrap();
        // A reader has the rest: it is not waited for without an end.
        let busy = NoRoom::Busy { wanted: MIB };
        assert_eq!(arrivals.make_room(&mut writer, 1).await.unwrap_err(), busy);
        drop(reading);
        for written in 1..8 {
            assert_eq!(budget.in_use(), written * MIB);
            assert!(arrivals.make_room(&mut writer, MIB).await.unwrap());
            writer.write(&mib).unwrap();
        }
        assert_eq!(writer.lacking(1), None, "more than was announced is refused and not paid");
        let blob = writer.finish().unwrap();
        assert_eq!((blob.size(), budget.in_use()), (size, size));
        drop((blob, place));
        assert_eq!(budget.in_use(), 0);
    }
}
