//! The rules of packs.

use super::lab::{Lab, RuleVerdict, SampleBlob, fail};
use super::{StoreRule, is_missing};
use crate::store::packed::{Answers, MAX_PACKED_BYTES, Packed, Parcel, Want};
use crate::store::{PeerKind, Received, StoreError};
use bytes::Bytes;
use std::fmt::Debug;

pub(super) const CHECKS: &[StoreRule] = &[
    StoreRule {
        name: "packed.round_trip",
        description: "hundreds of small blobs at once, also empty and largest ones, are confirmed each, and come back the same",
        run: |lab| Box::pin(round_trip(lab)),
    },
    StoreRule {
        name: "packed.one_bad",
        description: "a blob of wrong bytes among good ones is refused alone, and leaves nothing",
        run: |lab| Box::pin(one_bad(lab)),
    },
    StoreRule {
        name: "packed.twice",
        description: "blobs that are there, or stand in one pack twice, are confirmed, and are new once",
        run: |lab| Box::pin(twice(lab)),
    },
    StoreRule {
        name: "packed.missing",
        description: "of wanted blobs, one that is missing or too large is said to be so, and the others come",
        run: |lab| Box::pin(missing(lab)),
    },
];

fn parcel(sample: &SampleBlob, bytes: &Bytes) -> Parcel {
    Parcel { put: sample.put(), bytes: bytes.clone(), trace: None }
}

fn want(sample: &SampleBlob) -> Want {
    Want { blob: sample.blob, trace: None }
}

/// The largest blob that may be packed here.
fn largest(lab: &Lab<'_>) -> usize {
    usize::try_from(lab.info.max_packed_bytes.unwrap_or(0).min(MAX_PACKED_BYTES)).unwrap_or(0)
}

/// Takes the answers to a pack, and notes what is wrong with how they come.
struct Strict<T> {
    answers: Vec<Option<Result<T, StoreError>>>,
    wrong: Option<String>,
}

impl<T> Strict<T> {
    fn of(count: usize) -> Self {
        Self { answers: (0..count).map(|_| None).collect(), wrong: None }
    }

    /// The answers in the order of the items.
    fn end(self, ended: Result<(), StoreError>) -> Result<Vec<Result<T, StoreError>>, super::RuleOutcome> {
        if let Err(error) = ended {
            return fail(format!("the pack ended with: {error}"));
        }
        if let Some(wrong) = self.wrong {
            return fail(wrong);
        }
        let (due, answers) = (self.answers.len(), self.answers.into_iter().flatten().collect::<Vec<_>>());
        if answers.len() != due {
            return fail(format!("of {due} blobs in a pack, {} were answered", answers.len()));
        }
        Ok(answers)
    }
}

impl<T: Send + Debug> Answers<T> for Strict<T> {
    fn answer(&mut self, at: usize, answer: Result<T, StoreError>) {
        match self.answers.get_mut(at) {
            Some(place @ None) => *place = Some(answer),
            Some(Some(_)) => self.wrong = Some(format!("blob {at} of a pack was answered twice: {answer:?}")),
            None => self.wrong = Some(format!("blob {at} was answered, which is not in the pack: {answer:?}")),
        }
    }

    fn all_sent(&mut self) {}
}

async fn receive(lab: &Lab<'_>, parcels: Vec<Parcel>) -> Result<Vec<Result<Received, StoreError>>, super::RuleOutcome> {
    let mut answers = Strict::of(parcels.len());
    let ended = lab.store.receive_packed(parcels, &mut answers).await;
    answers.end(ended)
}

async fn fetch(lab: &Lab<'_>, wants: Vec<Want>) -> Result<Vec<Result<Packed, StoreError>>, super::RuleOutcome> {
    let mut answers = Strict::of(wants.len());
    let ended = lab.store.fetch_packed(wants, &mut answers).await;
    answers.end(ended)
}

async fn write(lab: &Lab<'_>, samples: &[SampleBlob]) -> Result<Vec<Received>, super::RuleOutcome> {
    let parcels = samples.iter().map(|sample| parcel(sample, &sample.bytes)).collect();
    let results = receive(lab, parcels).await?;
    let mut all = Vec::with_capacity(results.len());
    for (result, sample) in results.into_iter().zip(samples) {
        match result {
            Ok(received) if received.blob == sample.blob && received.size == sample.size() => all.push(received),
            Ok(received) => return fail(format!("{} was confirmed as {received:?}", sample.blob)),
            Err(error) => return fail(format!("{} was refused: {error}", sample.blob)),
        }
    }
    Ok(all)
}

async fn round_trip(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("packed")?;
    let most = largest(lab);
    let mut samples: Vec<SampleBlob> = [0, 1, most].into_iter().map(|size| lab.sample(size)).collect();
    samples.extend((0..300).map(|at| lab.sample((100 + 37 * at).min(most))));
    write(lab, &samples).await?;
    for sample in samples.iter().step_by(50) {
        lab.holds(sample).await?;
    }
    if !lab.info.abilities.fetch {
        return Ok(());
    }
    let found = fetch(lab, samples.iter().map(want).collect()).await?;
    for (found, sample) in found.iter().zip(&samples) {
        match found {
            Ok(Packed::Whole(bytes)) if *bytes == sample.bytes => {}
            Ok(Packed::Whole(bytes)) => {
                let (due, came) = (sample.size(), bytes.len());
                return fail(format!("{} of {due} bytes comes back as {came} other bytes", sample.blob));
            }
            Ok(Packed::TooLarge { size }) => {
                return fail(format!("{} of {} bytes is said to be too large ({size})", sample.blob, sample.size()));
            }
            Err(error) => return fail(format!("the packed read of {} fails: {error}", sample.blob)),
        }
    }
    Ok(())
}

async fn one_bad(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("packed")?;
    let samples: Vec<SampleBlob> = (0..3).map(|_| lab.sample(1000)).collect();
    let [before, bad, after] = samples.as_slice() else { return Ok(()) };
    let parcels = vec![parcel(before, &before.bytes), parcel(bad, &bad.spoiled()), parcel(after, &after.bytes)];
    match receive(lab, parcels).await?.as_slice() {
        [Ok(_), Err(error), Ok(_)] if error.is_mismatch() => {}
        results => return fail(format!("of a good, a wrong and a good blob, the results are {results:?}")),
    }
    lab.lacks("wrong bytes in a pack", bad.blob).await?;
    lab.holds(before).await?;
    lab.holds(after).await?;
    write(lab, &samples[1..2]).await?;
    lab.holds(bad).await
}

async fn twice(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("packed")?;
    let sample = lab.sample(1000);
    let pair = [sample.clone(), sample.clone()];
    let first = write(lab, &pair).await?;
    let again = write(lab, &pair).await?;
    let new = first.iter().chain(&again).filter(|received| received.was_new).count();
    if new != 1 && lab.info.kind == PeerKind::Store {
        return fail(format!("a blob that was sent four times was new {new} times"));
    }
    lab.holds(&sample).await
}

async fn missing(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("packed")?;
    lab.needs("fetch")?;
    let [small, large] = [lab.sample(1000), lab.sample(largest(lab) + 1)];
    for sample in [&small, &large] {
        lab.write(sample).await?;
    }
    let absent = lab.sample(1000);
    let wants = [&absent, &small, &large, &small].map(want).into();
    let found = fetch(lab, wants).await?;
    let is_small = |found: &Result<Packed, StoreError>| matches!(found, Ok(Packed::Whole(b)) if *b == small.bytes);
    match found.as_slice() {
        [Err(error), first, Ok(Packed::TooLarge { size }), second]
            if is_missing(error) && *size == large.size() && is_small(first) && is_small(second) =>
        {
            Ok(())
        }
        _ => fail(format!("of a missing, a small, a large and a small blob there is {found:?}")),
    }
}
