//! What the demo says. Pure.

use super::files::{Chosen, DemoFolders};
use super::lag::Lags;
use super::servers::Addresses;
use crate::client::upload::LocalFile;
use crate::telemetry::Tracer;
use crate::words;
use base64::prelude::{BASE64_STANDARD, Engine as _};
use std::time::Duration;

/// The figures of a run. Times are wall-clock.
#[derive(Default)]
pub(super) struct DemoReport {
    pub(super) files: u64,
    pub(super) skipped: u64,
    pub(super) ferried_blobs: u64,
    pub(super) ferried_bytes: u64,
    pub(super) ferry_took: Duration,
    pub(super) lags: Lags,
    pub(super) hidden: u64,
    /// Those of them that were cut from files, because no file was left for it.
    pub(super) pieces: u64,
    pub(super) compared: u64,
    pub(super) found: u64,
    pub(super) found_confirmed: u64,
    pub(super) sync_took: Duration,
    pub(super) total_blobs: u64,
    pub(super) total_bytes: u64,
    pub(super) verified_blobs: u64,
    pub(super) wrong_blobs: u64,
    pub(super) wrong: Vec<String>,
    pub(super) verify_took: Duration,
    /// A short blob for the command lines in the end.
    pub(super) sample: Option<LocalFile>,
}

/// What became of the servers' spans.
pub(super) fn traced(tracers: &[Tracer]) -> String {
    let tallies = tracers.iter().map(Tracer::tally);
    let (sent, lost) = tallies.fold((0, 0), |(sent, lost), tally| {
        (sent + tally.exported, lost + tally.dropped_queue_full + tally.dropped_export_failed)
    });
    format!("traces: {} sent, {} lost", words::several(sent, "span"), words::several(lost, "span"))
}

/// Before the first act.
pub(super) fn opening(at: &Addresses, chosen: &Chosen, place: &DemoFolders) -> String {
    let kept = if place.is_temporary() { "temporary, removed at the end" } else { "kept" };
    format!(
        "blobferry {version}: two stores and a replicator, on this machine

  source store       {source}
  destination store  {destination}
  replicator         {replicator}
  data               {place} ({kept})

Ferrying {what} ({files}, {bytes}).

",
        version = env!("CARGO_PKG_VERSION"),
        source = at.source.url(),
        destination = at.destination.url(),
        replicator = at.replicator.url(),
        place = place.path().display(),
        what = chosen.what,
        files = words::several(chosen.count(), "file"),
        bytes = words::bytes(chosen.bytes),
    )
}

impl DemoReport {
    pub(super) fn ferried(&self) -> String {
        format!(
            "1. {}, {} written, announced, copied and confirmed in {}\n",
            words::several(self.ferried_blobs, "distinct blob"),
            words::bytes(self.ferried_bytes),
            words::span(self.ferry_took),
        )
    }

    pub(super) fn synced(&self) -> String {
        format!(
            "2. {} written behind the replicator's back; a full sync compared {} and found {} in {}\n",
            words::several(self.hidden, "blob"),
            words::number(self.compared),
            words::number(self.found),
            words::span(self.sync_took),
        )
    }

    pub(super) fn verified(&self) -> String {
        let mut said = format!(
            "3. {} of {} read back from the destination, every digest compared, in {}\n",
            words::number(self.verified_blobs),
            words::several(self.total_blobs, "blob"),
            words::span(self.verify_took),
        );
        for wrong in &self.wrong {
            said.push_str(&format!("   WRONG: {}\n", words::plain(wrong, 400)));
        }
        said
    }

    /// Whether every blob arrived, and the full sync found exactly what was hidden.
    pub(super) fn is_proven(&self) -> bool {
        self.wrong_blobs == 0
            && self.verified_blobs == self.total_blobs
            && self.found == self.hidden
            && self.found_confirmed >= self.hidden
    }

    /// Why there may be more blobs than files.
    fn pieces_clause(&self) -> String {
        match self.pieces {
            0 => String::new(),
            pieces => format!(
                "; {} of the blobs, for the full sync to find, {} cut from them",
                words::number(pieces),
                if pieces == 1 { "is" } else { "are" },
            ),
        }
    }

    pub(super) fn closing(&self) -> String {
        let rate = |number| words::per_second(number, self.ferry_took);
        let mut lines = vec![
            (
                "ferried",
                format!(
                    "{}, {}, from {}{}",
                    words::several(self.total_blobs, "blob"),
                    words::bytes(self.total_bytes),
                    words::several(self.files - self.skipped.min(self.files), "file"),
                    self.pieces_clause(),
                ),
            ),
            (
                "rate",
                format!(
                    "{}, {}, from the first byte written to the last blob confirmed",
                    words::rate(rate(self.ferried_blobs)).replace("/s", " blobs/s"),
                    words::bytes_rate(rate(self.ferried_bytes)),
                ),
            ),
            (
                "lag",
                format!(
                    "p50 {}, p99 {}, from accepted to confirmed (seen every 50 ms)",
                    words::span(self.lags.p50),
                    words::span(self.lags.p99)
                ),
            ),
            ("full sync", format!("found {} of {} unannounced", words::number(self.found), words::number(self.hidden))),
            ("verified", format!("{} of {}", words::number(self.verified_blobs), words::number(self.total_blobs))),
        ];
        if self.skipped > 0 {
            lines.push(("skipped", format!("{} that could not be read", words::several(self.skipped, "file"))));
        }
        let mut said = String::from("\n");
        for (label, what) in lines {
            said.push_str(&format!("  {label:<10} {what}\n"));
        }
        said.push_str(if self.is_proven() {
            "\nEvery blob arrived, bit for bit.\n"
        } else if self.wrong_blobs > 0 {
            "\nFAILED: some blobs did not arrive as they were.\n"
        } else {
            "\nFAILED: the full sync did not find exactly what was hidden.\n"
        });
        said
    }
}

/// What a person can do with the servers that are left up.
pub(super) fn invitation(at: &Addresses, program: &str, sample: Option<&LocalFile>) -> String {
    let replicator = at.replicator.url();
    let host = |url: &str| url.trim_start_matches("http://").to_owned();
    let mut said = format!(
        "
The servers stay up until Ctrl-C. In another terminal:

  grpcurl -plaintext {host} blobferry.v1.ReplicationService/Status
  grpcurl -plaintext {host} blobferry.v1.ReplicationService/TriggerFullSync
",
        host = host(replicator),
    );
    if let Some((file, bytes)) = sample.and_then(|file| Some((file, file.kept_bytes()?))) {
        said.push_str(&format!(
            "  grpcurl -plaintext -d '{{\"header\": {{\"ref\": \"{blob}\", \"sizeBytes\": \"{size}\"}}}} {{\"chunk\": \"{chunk}\"}}' \\
    {host} blobferry.v1.BlobReceiverService/ReceiveBlob
  grpcurl -plaintext -d '{{\"ref\": \"{blob}\"}}' {destination} blobferry.v1.BlobReaderService/FetchBlob
",
            blob = file.meta.blob,
            size = file.meta.size,
            chunk = BASE64_STANDARD.encode(bytes),
            host = host(replicator),
            destination = host(at.destination.url()),
        ));
    }
    said.push_str(&format!(
        "  {program} status --watch --replicator {replicator}
  {program} ls --limit 5 --store {}

",
        at.destination.url(),
    ));
    said
}

#[cfg(test)]
mod tests {
    use super::DemoReport;
    use crate::demo::lag::Lags;
    use std::time::Duration;

    fn report() -> DemoReport {
        DemoReport {
            files: 500,
            ferried_blobs: 440,
            ferried_bytes: 2 << 20,
            ferry_took: Duration::from_secs(2),
            lags: Lags { p50: Duration::from_millis(50), p99: Duration::from_millis(250) },
            hidden: 10,
            compared: 450,
            found: 10,
            found_confirmed: 10,
            total_blobs: 450,
            total_bytes: 2 << 20,
            verified_blobs: 450,
            ..DemoReport::default()
        }
    }

    #[test]
    fn the_closing_words_have_all_figures() {
        let said = report().closing();
        for part in
            ["450 blobs", "2.00 MiB", "220 blobs/s", "p50 50 ms, p99 250 ms", "10 of 10", "450 of 450", "bit for"]
        {
            assert!(said.contains(part), "{part}: {said}");
        }
        assert!(!said.contains("skipped") && !said.contains("cut from"));
        let small = DemoReport { files: 9, hidden: 9, pieces: 9, ..report() }.closing();
        assert!(
            small.contains("from 9 files; 9 of the blobs, for the full sync to find, are cut from them"),
            "{small}"
        );
    }

    #[test]
    fn one_wrong_blob_or_one_not_found_is_a_failure() {
        let wrong = DemoReport { wrong_blobs: 1, verified_blobs: 449, ..report() };
        assert!(!wrong.is_proven() && wrong.closing().contains("FAILED"));
        let missed = DemoReport { found: 9, ..report() };
        assert!(!missed.is_proven() && missed.closing().contains("FAILED"));
        assert!(report().is_proven());
    }
}
