//! The rules of reading single blobs.

use super::lab::{Lab, RuleVerdict, SampleBlob, fail};
use super::{StoreRule, is_invalid, is_missing};
use crate::blob::BlobMeta;
use crate::store::ByteRange;
use std::collections::HashSet;

pub(super) const CHECKS: &[StoreRule] = &[
    StoreRule {
        name: "stat.missing",
        description: "stat gives the sizes of what is there and leaves out the rest",
        run: |lab| Box::pin(stat_missing(lab)),
    },
    StoreRule {
        name: "stat.ten_thousand",
        description: "stat takes 10,000 refs at once, and none at all",
        run: |lab| Box::pin(stat_ten_thousand(lab)),
    },
    StoreRule {
        name: "fetch.missing",
        description: "a blob that is not there is said to be missing",
        run: |lab| Box::pin(fetch_missing(lab)),
    },
    StoreRule {
        name: "fetch.ranges",
        description: "any offset up to the size, and any length, gives those bytes and the size of the whole",
        run: |lab| Box::pin(fetch_ranges(lab)),
    },
    StoreRule {
        name: "fetch.behind",
        description: "an offset behind the size is an error of the request",
        run: |lab| Box::pin(fetch_behind(lab)),
    },
];

async fn stat_missing(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("stat")?;
    let there = lab.small_and_large();
    for sample in &there {
        lab.write(sample).await?;
    }
    let absent = lab.small_and_large();
    let asked: Vec<_> = [&absent[0], &there[0], &absent[1], &there[1]].map(|sample| sample.blob).into();
    let found = match lab.store.stat(&asked).await {
        Ok(found) => found,
        Err(error) => return fail(format!("stat fails: {error}")),
    };
    let found_all = there.iter().map(SampleBlob::meta).all(|meta: BlobMeta| found.contains(&meta));
    if found.len() != 2 || !found_all {
        return fail(format!("of {asked:?}, the second and fourth are there, and stat gives {found:?}"));
    }
    Ok(())
}

async fn stat_ten_thousand(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("stat")?;
    let there = lab.sample(100);
    lab.write(&there).await?;
    let mut asked: Vec<_> = (1..10_000).map(|_| lab.sample(16).blob).collect();
    asked.push(there.blob);
    match lab.store.stat(&asked).await.as_deref() {
        Ok([found]) if *found == there.meta() => {}
        Ok(found) => return fail(format!("one of 10,000 is there, and stat gives {}", found.len())),
        Err(error) => return fail(format!("stat of 10,000 fails: {error}")),
    }
    match lab.store.stat(&[]).await.as_deref() {
        Ok([]) => Ok(()),
        Ok(found) => fail(format!("stat of nothing gives {}", found.len())),
        Err(error) => fail(format!("stat of nothing fails: {error}")),
    }
}

async fn fetch_missing(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("fetch")?;
    match lab.read(lab.sample(100).blob, ByteRange::default()).await {
        Err(error) if is_missing(&error) => Ok(()),
        Err(error) => fail(format!("it fails, but not as missing: {error}")),
        Ok((size, _)) => fail(format!("it comes with {size} bytes")),
    }
}

async fn fetch_ranges(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("fetch")?;
    for sample in [lab.sample(1000), lab.sample(700_000)] {
        lab.write(&sample).await?;
        let size = sample.size();
        let offsets: HashSet<u64> = [0, 1, size / 2, size - 1, size].into();
        let lengths = [None, Some(0), Some(1), Some(size / 2), Some(size), Some(size + 1), Some(u64::MAX)];
        for offset in offsets {
            for length in lengths {
                let (read, bytes) = match lab.read(sample.blob, ByteRange { offset, length }).await {
                    Ok(read) => read,
                    Err(error) => return fail(format!("offset {offset}, length {length:?} of {size} fails: {error}")),
                };
                if read != size {
                    return fail(format!("offset {offset}, length {length:?}: the size {size} is stated as {read}"));
                }
                let end = length.map_or(size, |length| size.min(offset.saturating_add(length)));
                if bytes != sample.bytes.slice(index(offset)..index(end)) {
                    let came = bytes.len();
                    return fail(format!("offset {offset}, length {length:?} of {size} gives {came} wrong bytes"));
                }
            }
        }
    }
    Ok(())
}

fn index(at: u64) -> usize {
    usize::try_from(at).unwrap_or(usize::MAX)
}

async fn fetch_behind(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("fetch")?;
    for sample in lab.small_and_large() {
        lab.write(&sample).await?;
        for offset in [sample.size() + 1, u64::MAX] {
            for length in [None, Some(0), Some(u64::MAX)] {
                match lab.read(sample.blob, ByteRange { offset, length }).await {
                    Err(error) if is_invalid(&error) => {}
                    Err(error) => {
                        return fail(format!("offset {offset} fails, but not as an invalid request: {error}"));
                    }
                    Ok((_, bytes)) => return fail(format!("offset {offset} gives {} bytes", bytes.len())),
                }
            }
        }
    }
    Ok(())
}
