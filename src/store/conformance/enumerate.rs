//! The rules of listing.
//!
//! The blobs for these checks are chosen so that their digests share a random beginning: the part of the store that they lie in
//! is a four-thousandth of it, and can be listed whole.

use super::StoreRule;
use super::lab::{Lab, RuleVerdict, SampleBlob, fail};
use crate::blob::{BlobMeta, BlobRef};
use crate::store::EnumerateRange;

pub(super) const CHECKS: &[StoreRule] = &[
    StoreRule {
        name: "enumerate.whole",
        description: "a range lists every blob in it, with its size, once, in order, and counts them",
        run: |lab| Box::pin(whole(lab)),
    },
    StoreRule {
        name: "enumerate.bounds",
        description: "`after` is exclusive and `until` inclusive",
        run: |lab| Box::pin(bounds(lab)),
    },
    StoreRule {
        name: "enumerate.any_text",
        description: "bounds may be any text, and compare as text",
        run: |lab| Box::pin(any_text(lab)),
    },
    StoreRule {
        name: "enumerate.limit",
        description: "cut by a limit, going on after the last ref gives the rest; a limit that cuts nothing is complete",
        run: |lab| Box::pin(limit(lab)),
    },
    StoreRule {
        name: "enumerate.empty",
        description: "an empty range ends at once, complete",
        run: |lab| Box::pin(empty(lab)),
    },
];

/// Hex digits that the digests of a neighbourhood share.
const SHARED: usize = 3;

fn shared(blob: &BlobRef) -> (u8, u8) {
    let digest = blob.digest();
    (digest[0], digest[1] >> 4)
}

/// Blobs of one narrow part of all refs, in order.
struct Neighbourhood {
    samples: Vec<SampleBlob>,
    /// What all their refs begin with, and the refs of few others.
    prefix: String,
}

impl Neighbourhood {
    async fn write(lab: &Lab<'_>, count: usize) -> Result<Self, super::RuleOutcome> {
        let function = lab.function();
        let first = function.ref_of(&lab.random(16));
        let prefix = first.to_string()[..function.name().len() + 1 + SHARED].to_owned();
        let salt = lab.random(16);
        let mut samples: Vec<SampleBlob> = Vec::new();
        for number in 0u32.. {
            // Sizes differ, so that a size at the wrong blob is noticed.
            let padding = &salt[..samples.len() % salt.len()];
            let bytes = [&salt, number.to_be_bytes().as_slice(), padding].concat();
            let blob = function.ref_of(&bytes);
            if shared(&blob) == shared(&first) {
                samples.push(SampleBlob { blob, bytes: bytes.into() });
                if samples.len() == count {
                    break;
                }
            }
        }
        samples.sort_unstable_by_key(|sample| sample.blob);
        for sample in &samples {
            lab.write(sample).await?;
        }
        Ok(Self { samples, prefix })
    }

    fn text(&self, at: usize) -> String {
        self.samples[at].blob.to_string()
    }

    /// The range that holds all of it.
    fn range(&self) -> EnumerateRange {
        EnumerateRange { after: self.prefix.clone(), until: format!("{}~", self.prefix), limit: None }
    }

    /// Of what was listed, its own must be exactly those in the range.
    fn judge(&self, range: &EnumerateRange, listed: &[BlobMeta]) -> RuleVerdict {
        let due = self.samples.iter().filter(|sample| {
            let text = sample.blob.to_string();
            text > range.after && (range.until.is_empty() || text <= range.until)
        });
        for sample in due {
            match listed.iter().find(|meta| meta.blob == sample.blob) {
                Some(meta) if meta.size == sample.size() => {}
                Some(meta) => return fail(format!("{} is listed with {} bytes", sample.blob, meta.size)),
                None => return fail(format!("enumerate of {range:?} leaves out {}", sample.blob)),
            }
        }
        Ok(())
    }
}

async fn whole(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("enumerate")?;
    let here = Neighbourhood::write(lab, 16).await?;
    let (listed, _) = lab.list(&here.range()).await?;
    here.judge(&here.range(), &listed)
}

async fn bounds(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("enumerate")?;
    let here = Neighbourhood::write(lab, 4).await?;
    let range = EnumerateRange { after: here.text(0), until: here.text(2), limit: None };
    // That nothing listed lies outside, the list itself checks.
    let (listed, _) = lab.list(&range).await?;
    here.judge(&range, &listed)
}

async fn any_text(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("enumerate")?;
    let here = Neighbourhood::write(lab, 5).await?;
    let (prefix, middle, last) = (&here.prefix, here.text(2), here.text(4));
    let name = lab.function().name();
    let hex = prefix.len() - SHARED;
    let upper = format!("{}{}", &middle[..hex], middle[hex..].to_uppercase());
    let mut texts: Vec<String> = ["a", "sha", "sha2", "t", "zzz", " ", "~", "-", "SHA256-FF"].map(str::to_owned).into();
    texts.extend([name.to_owned(), format!("{name}-"), format!("{name}-zz"), format!("{name}."), format!("{name}-~")]);
    texts.extend(["g", "G", "/", ":", "~", " ", "0", "f"].map(|odd| format!("{prefix}{odd}")));
    texts.extend([upper, format!("{middle}0"), format!("{middle}~"), format!("{middle} ")]);
    texts.extend((1..4).map(|cut| middle[..middle.len() - cut].to_owned()));
    texts.extend((1..4).map(|cut| format!("{}~", &middle[..middle.len() - cut])));
    for text in texts {
        // Where the text lies far away, the limit keeps the list short.
        let before = EnumerateRange { after: prefix.clone(), until: text.clone(), limit: Some(2000) };
        let behind = EnumerateRange { after: text, until: last.clone(), limit: Some(2000) };
        for range in [before, behind] {
            let (listed, end) = lab.list(&range).await?;
            let until = match listed.last() {
                Some(cut) if !end.complete => cut.blob.to_string(),
                _ => range.until.clone(),
            };
            here.judge(&EnumerateRange { until, ..range }, &listed)?;
        }
    }
    Ok(())
}

async fn limit(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("enumerate")?;
    let here = Neighbourhood::write(lab, 12).await?;
    let range = here.range();
    lab.list(&EnumerateRange { limit: Some(1), ..range.clone() }).await?;
    for limit in [5, 100] {
        let mut range = EnumerateRange { limit: Some(limit), ..range.clone() };
        let mut all = Vec::new();
        loop {
            let (listed, end) = lab.list(&range).await?;
            all.extend(listed);
            if end.complete {
                break;
            }
            let Some(last) = all.last().map(|meta: &BlobMeta| meta.blob.to_string()) else {
                return fail(format!("enumerate of {range:?} is cut before its first blob"));
            };
            range.after = last;
        }
        here.judge(&here.range(), &all)?;
    }
    // Exact limits, as long as nobody else writes in between.
    for _ in 0..5 {
        let count = lab.list(&range).await?.0.len() as u64;
        let (exact, exact_end) = lab.list(&EnumerateRange { limit: Some(count), ..range.clone() }).await?;
        let (less, less_end) = lab.list(&EnumerateRange { limit: Some(count - 1), ..range.clone() }).await?;
        if lab.list(&range).await?.0.len() as u64 != count {
            continue;
        }
        if exact.len() as u64 != count || !exact_end.complete {
            return fail(format!("{count} blobs with the limit {count}: {} given, not as complete", exact.len()));
        }
        if less.len() as u64 != count - 1 || less_end.complete {
            return fail(format!("{count} blobs with the limit {}: {} given, as complete", count - 1, less.len()));
        }
        return Ok(());
    }
    Err(super::RuleOutcome::Skipped("others write too fast here".to_owned()))
}

async fn empty(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("enumerate")?;
    let here = Neighbourhood::write(lab, 3).await?;
    let ends = [(here.text(1), here.text(1)), (here.text(2), here.text(0)), ("~".to_owned(), String::new())];
    for (after, until) in ends {
        for limit in [None, Some(1)] {
            let range = EnumerateRange { after: after.clone(), until: until.clone(), limit };
            let (listed, end) = lab.list(&range).await?;
            if !listed.is_empty() || !end.complete {
                return fail(format!(
                    "enumerate of {range:?} gives {} blobs, complete: {}",
                    listed.len(),
                    end.complete
                ));
            }
        }
    }
    Ok(())
}
