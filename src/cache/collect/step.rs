//! One step of the collector: a condemnation, or a deletion and what follows it.
//!
//! Invariant: what is told of a step was carried out, also where a later part of it failed.

use fail::fail_point;

use super::packs::PackIndex;
use crate::cache::{IndexError, ObjectName, ObjectTier};

/// What is done about one object.
pub(super) enum Step {
    Condemn(ObjectName),
    /// `forget`: its condemnation too.
    Delete {
        name: ObjectName,
        size: u64,
        forget: bool,
    },
    /// Forget its condemnation, if there is no object any more.
    Finish(ObjectName),
}

/// What came of a step.
pub(super) struct Taken {
    pub(super) name: ObjectName,
    pub(super) condemned: bool,
    /// Bytes of the object that was deleted.
    pub(super) freed: Option<u64>,
    pub(super) forgotten: bool,
    /// Why no more was done.
    pub(super) failed: Option<IndexError>,
}

/// Takes one step.
pub(super) async fn take(object: &ObjectTier, index: &dyn PackIndex, step: Step) -> Taken {
    let (Step::Condemn(name) | Step::Delete { name, .. } | Step::Finish(name)) = step;
    let mut taken = Taken { name, condemned: false, freed: None, forgotten: false, failed: None };
    let work = async {
        let forget = match step {
            Step::Condemn(_) => {
                taken.condemned = index.condemn(&name.pack, name.generation).await?;
                if taken.condemned {
                    fail_point!("collect.condemned");
                }
                false
            }
            Step::Delete { size, forget, .. } => {
                fail_point!("collect.begin");
                object.delete(&name).await?;
                fail_point!("collect.deleted");
                taken.freed = Some(size);
                forget
            }
            Step::Finish(_) => object.stat(&name).await?.is_none(),
        };
        if forget {
            index.forget(&name.pack, name.generation).await?;
            fail_point!("collect.forgotten");
            taken.forgotten = true;
        }
        Ok(())
    };
    let worked: Result<(), IndexError> = work.await;
    taken.failed = worked.err();
    taken
}
