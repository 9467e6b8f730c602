//! `blobferry adopt`: another store in the place of a known one.

use super::limits::ByArg;
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::client::Replicator;
use crate::pb::to_json;
use crate::pb::v1;
use crate::words;
use clap::Args;

/// Arguments of `adopt`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry adopt backup 8c1f2ad0b6634a71a7d1c0e2f7b5d9e3

`blobferry status` names the store's old and new id where another store answers than before. Adopt it only where you know \
why: an empty volume that was mounted by mistake looks the same.

Exit codes: 0 adopted; 1 the store tells another id; 2 unknown store; 3 the replicator or the store is unreachable.")]
pub(super) struct AdoptArgs {
    /// The store's configured name.
    store: String,
    /// The id that the store tells now.
    store_id: String,
    #[command(flatten)]
    by: ByArg,
    /// Print the answer as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn adopt(args: AdoptArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let request = v1::AdoptStoreRequest { store: args.store, store_id: args.store_id, adopted_by: args.by.name() };
    let answer = match Replicator::at(&address)?.adopt_store(request).await {
        Ok(answer) => answer,
        Err(error) => return Err(of_replicator(&address, error).await),
    };
    if args.json {
        output::line(&format!("{:#}", to_json("AdoptStoreResponse", &answer)?))?;
    } else {
        output::line(&said(&answer, &args.replicator.option()))?;
    }
    Ok(Exit::Ok)
}

fn said(answer: &v1::AdoptStoreResponse, at: &str) -> String {
    let [store, id, previous] =
        [&answer.store, &answer.store_id, &answer.previous_store_id].map(|t| words::plain(t, 200));
    if !answer.changed {
        return format!("{store} is {id}, as was known");
    }
    let before = if previous.is_empty() { String::new() } else { format!(", in place of {previous}") };
    format!(
        "{store} is {id} from now on{before}; a full sync copies what it lacks, and begins by itself (where \
         full_sync.on_start is \"off\": blobferry sync{at})"
    )
}

#[cfg(test)]
mod tests {
    use super::said;
    use crate::pb::v1::AdoptStoreResponse;

    #[test]
    fn an_adoption_says_what_to_do_next() {
        let mut answer = AdoptStoreResponse {
            store: "b".to_owned(),
            store_id: "2".to_owned(),
            previous_store_id: "1".to_owned(),
            changed: true,
        };
        assert_eq!(
            said(&answer, ""),
            "b is 2 from now on, in place of 1; a full sync copies what it lacks, and begins by itself (where \
             full_sync.on_start is \"off\": blobferry sync)"
        );
        answer.changed = false;
        assert_eq!(said(&answer, ""), "b is 2, as was known");
    }
}
