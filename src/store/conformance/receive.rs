//! The rules of writing.

use super::StoreRule;
use super::lab::{Lab, RuleVerdict, SampleBlob, fail, pieces};
use crate::store::{ByteStream, Put, StoreError};
use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use futures::stream;
use std::collections::HashSet;
use std::pin::pin;
use std::sync::Arc;
use tokio::sync::Notify;

pub(super) const CHECKS: &[StoreRule] = &[
    StoreRule {
        name: "receive.round_trip",
        description: "blobs of every function and of sizes around common limits are confirmed, and come back the same",
        run: |lab| Box::pin(round_trip(lab)),
    },
    StoreRule {
        name: "receive.unknown_size",
        description: "a blob whose size is not stated is taken",
        run: |lab| Box::pin(unknown_size(lab)),
    },
    StoreRule {
        name: "receive.odd_chunks",
        description: "chunks may have any size, also none",
        run: |lab| Box::pin(odd_chunks(lab)),
    },
    StoreRule {
        name: "receive.wrong_bytes",
        description: "bytes of another digest are refused as a mismatch and leave nothing; the right ones are taken then",
        run: |lab| Box::pin(wrong_bytes(lab)),
    },
    StoreRule {
        name: "receive.too_short",
        description: "a stream that ends early is refused as a mismatch and leaves nothing",
        run: |lab| Box::pin(too_short(lab)),
    },
    StoreRule {
        name: "receive.too_long",
        description: "more bytes than stated, or than the ref has, are refused as a mismatch and leave nothing",
        run: |lab| Box::pin(too_long(lab)),
    },
    StoreRule {
        name: "receive.failed_stream",
        description: "a stream that fails commits nothing, even after the last byte",
        run: |lab| Box::pin(failed_stream(lab)),
    },
    StoreRule {
        name: "receive.cancelled",
        description: "a write that is cancelled before its end commits nothing, even after the last byte",
        run: |lab| Box::pin(cancelled(lab)),
    },
    StoreRule {
        name: "receive.twice",
        description: "a blob that is there is confirmed again, as not new",
        run: |lab| Box::pin(twice(lab)),
    },
    StoreRule {
        name: "receive.twice_wrong",
        description: "wrong bytes for a blob that is there are refused, and the blob stays as it was",
        run: |lab| Box::pin(twice_wrong(lab)),
    },
    StoreRule {
        name: "receive.at_once",
        description: "the same blob from several writers at once is confirmed to all, and is new to one",
        run: |lab| Box::pin(at_once(lab)),
    },
    StoreRule {
        name: "receive.many",
        description: "many small blobs at once are all confirmed and there",
        run: |lab| Box::pin(many(lab)),
    },
    StoreRule {
        name: "receive.replace",
        description: "a replacement is confirmed as not new and leaves the blob readable; a wrong one is refused",
        run: |lab| Box::pin(replace(lab)),
    },
];

async fn round_trip(lab: &Lab<'_>) -> RuleVerdict {
    const KIB: usize = 1024;
    let sizes =
        [0, 1, 64 * KIB - 1, 64 * KIB, 64 * KIB + 1, 256 * KIB - 1, 256 * KIB, 256 * KIB + 1, 3 * KIB * KIB + 7];
    for function in lab.info.functions.iter().copied() {
        for size in sizes.into_iter().filter(|size| lab.takes(*size)) {
            let bytes = lab.random(size);
            let sample = SampleBlob { blob: function.ref_of(&bytes), bytes };
            let received = lab.write(&sample).await?;
            // There is only one empty blob, and others may have written it; single bytes are few, too.
            if size > 1 && !received.was_new {
                return fail(format!("{}, of random content, is said to be there already", sample.blob));
            }
            lab.holds(&sample).await?;
        }
    }
    Ok(())
}

async fn unknown_size(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        let put = Put { size: None, ..sample.put() };
        lab.write_as(&sample, put, pieces(&sample.bytes, 64 * 1024)).await?;
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn odd_chunks(lab: &Lab<'_>) -> RuleVerdict {
    for (sample, size) in lab.small_and_large().into_iter().zip([1, 333]) {
        let mut odd = vec![Bytes::new()];
        for piece in pieces(&sample.bytes, size) {
            odd.push(piece);
            odd.push(Bytes::new());
        }
        lab.write_as(&sample, sample.put(), odd).await?;
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn wrong_bytes(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        for size in [Some(sample.size()), None] {
            let put = Put { size, ..sample.put() };
            lab.refuses("a blob with one wrong bit", put, &sample.spoiled()).await?;
        }
        lab.lacks("wrong bytes", sample.blob).await?;
        lab.write(&sample).await?;
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn too_short(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        let cut = sample.bytes.slice(..sample.bytes.len() - 1);
        for size in [Some(sample.size()), None] {
            for short in [&cut, &Bytes::new()] {
                let put = Put { size, ..sample.put() };
                lab.refuses("a blob without its last bytes", put, short).await?;
            }
        }
        lab.lacks("a short stream", sample.blob).await?;
    }
    Ok(())
}

async fn too_long(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        let longer: Bytes = [&sample.bytes[..], b"!"].concat().into();
        lab.refuses("a blob with a byte too many", sample.put(), &longer).await?;
        lab.refuses("a blob with a byte too many", Put { size: None, ..sample.put() }, &longer).await?;
        // The bytes are right, but the size that was stated is not.
        let stated = Put { size: Some(sample.size() - 1), ..sample.put() };
        lab.refuses("a blob larger than stated", stated, &sample.bytes).await?;
        let stated = Put { size: Some(sample.size() + 1), ..sample.put() };
        lab.refuses("a blob smaller than stated", stated, &sample.bytes).await?;
        lab.lacks("a stream of another size than stated", sample.blob).await?;
    }
    Ok(())
}

async fn failed_stream(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        for came in [sample.bytes.len() / 2, sample.bytes.len()] {
            let failure = StoreError::Protocol("the conformance suite cut this stream".to_owned());
            let came = pieces(&sample.bytes.slice(..came), 64 * 1024).into_iter().map(Ok);
            let cut = stream::iter(came.chain([Err(failure)])).boxed();
            if lab.store.receive(sample.put(), cut).await.is_ok() {
                return fail("a stream that failed was confirmed");
            }
        }
        lab.lacks("a failed stream", sample.blob).await?;
    }
    Ok(())
}

/// The pieces, and then nothing, for ever; tells when the last piece was taken.
fn stalled(pieces: Vec<Bytes>) -> (ByteStream, Arc<Notify>) {
    let taken = Arc::new(Notify::new());
    let tell = taken.clone();
    let rest = stream::once(async move {
        tell.notify_one();
        std::future::pending().await
    });
    (stream::iter(pieces.into_iter().map(Ok)).chain(rest).boxed(), taken)
}

async fn cancelled(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        for came in [sample.bytes.len() / 2, sample.bytes.len()] {
            let (bytes, taken) = stalled(pieces(&sample.bytes.slice(..came), 64 * 1024));
            {
                let mut receive = pin!(lab.store.receive(sample.put(), bytes));
                tokio::select! {
                    early = &mut receive => return fail(format!("answered before the stream's end: {early:?}")),
                    () = taken.notified() => {}
                }
                // A moment more, in which a hasty store would commit.
                let moment = std::time::Duration::from_millis(50);
                if let Ok(early) = tokio::time::timeout(moment, receive).await {
                    return fail(format!("answered before the stream's end: {early:?}"));
                }
            }
            lab.lacks("a cancelled write", sample.blob).await?;
        }
        lab.write(&sample).await?;
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn twice(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        if !lab.write(&sample).await?.was_new {
            return fail("a blob of random content is said to be there already");
        }
        if lab.write(&sample).await?.was_new {
            return fail("a blob that is there is said to be new");
        }
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn twice_wrong(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        lab.write(&sample).await?;
        lab.refuses("a blob that is there, with one wrong bit", sample.put(), &sample.spoiled()).await?;
        let cut = sample.bytes.slice(..sample.bytes.len() / 2);
        lab.refuses("a blob that is there, cut short", sample.put(), &cut).await?;
        lab.refuses("a blob that is there, without bytes", sample.put(), &Bytes::new()).await?;
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn at_once(lab: &Lab<'_>) -> RuleVerdict {
    for sample in lab.small_and_large() {
        let answers = join_all((0..8).map(|_| lab.write(&sample))).await;
        let answers = answers.into_iter().collect::<Result<Vec<_>, _>>()?;
        let new = answers.iter().filter(|received| received.was_new).count();
        if new != 1 {
            return fail(format!("the blob was new to {new} of 8 writers"));
        }
        lab.holds(&sample).await?;
    }
    Ok(())
}

async fn many(lab: &Lab<'_>) -> RuleVerdict {
    let samples: Vec<SampleBlob> = (0..300).map(|size| lab.sample(100 + size)).collect();
    for answer in join_all(samples.iter().map(|sample| lab.write(sample))).await {
        answer?;
    }
    if lab.info.abilities.stat {
        let refs: Vec<_> = samples.iter().map(|sample| sample.blob).collect();
        match lab.store.stat(&refs).await {
            Ok(found) if found.iter().map(|meta| meta.blob).collect::<HashSet<_>>().len() == refs.len() => {}
            Ok(found) => return fail(format!("{} of {} are there", found.len(), refs.len())),
            Err(error) => return fail(format!("stat fails: {error}")),
        }
    }
    Ok(())
}

async fn replace(lab: &Lab<'_>) -> RuleVerdict {
    lab.needs("replace")?;
    for sample in lab.small_and_large() {
        let put = Put { replace: true, ..sample.put() };
        if !lab.write_as(&sample, put.clone(), pieces(&sample.bytes, 1000)).await?.was_new {
            return fail("a replacement of nothing is not said to be new");
        }
        lab.refuses("a replacement with one wrong bit", put.clone(), &sample.spoiled()).await?;
        lab.holds(&sample).await?;
        if lab.write_as(&sample, put, pieces(&sample.bytes, 1000)).await?.was_new {
            return fail("a replacement of a blob that is there is said to be new");
        }
        lab.holds(&sample).await?;
    }
    Ok(())
}
