//! `blobferry drop`: the end of a route that left the configuration.

use super::limits::ByArg;
use super::{CommandError, Exit, ReplicatorArg, of_replicator, output};
use crate::client::Replicator;
use crate::pb::to_json;
use crate::pb::v1;
use crate::words;
use clap::Args;

/// Arguments of `drop`.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  blobferry drop old_to_backup --count-only
  blobferry drop old_to_backup

Only for routes that left the configuration and have entries still; `blobferry status` shows them as ORPHANED. Their \
entries are deleted without being copied.

Exit codes: 0 done; 1 the route is configured; 2 unknown route; 3 unreachable; 4 it has no entries.")]
pub(super) struct DropArgs {
    /// The orphaned route.
    route: String,
    /// Delete nothing, only count.
    #[arg(long)]
    count_only: bool,
    #[command(flatten)]
    by: ByArg,
    /// Print the counts as JSON, as grpcurl does.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    replicator: ReplicatorArg,
}

pub(super) async fn drop_route(args: DropArgs) -> Result<Exit, CommandError> {
    let address = args.replicator.address()?;
    let mut replicator = Replicator::at(&address)?;
    let (count_only, by) = (args.count_only, args.by.name());
    let request = v1::DropRouteRequest { route: args.route, count_only, dropped_by: by };
    let mut all = v1::DropRouteResponse::default();
    loop {
        let answer = match replicator.drop_route(request.clone()).await {
            Ok(answer) => answer,
            Err(error) => return Err(of_replicator(&address, error).await),
        };
        let step = answer.dropped_entries();
        all = v1::DropRouteResponse {
            route: answer.route.clone(),
            dropped_entries: Some(all.dropped_entries() + step),
            dropped_bytes: Some(all.dropped_bytes().saturating_add(answer.dropped_bytes())),
            remaining_entries: answer.remaining_entries,
        };
        // As many as one call takes; where it takes none, there is no end to wait for.
        if count_only || step == 0 || answer.remaining_entries() == 0 {
            break;
        }
    }
    if args.json {
        output::line(&format!("{:#}", to_json("DropRouteResponse", &all)?))?;
    } else {
        output::line(&said(&all, count_only))?;
    }
    let touched = all.dropped_entries() + all.remaining_entries();
    Ok(if touched == 0 { Exit::No } else { Exit::Ok })
}

fn said(answer: &v1::DropRouteResponse, count_only: bool) -> String {
    let route = words::plain(&answer.route, 200);
    let entries = |number| words::several(number, "entry");
    if count_only {
        return format!("{route} has {}", entries(answer.remaining_entries()));
    }
    let bytes = words::bytes(answer.dropped_bytes());
    let left = match answer.remaining_entries() {
        0 => String::new(),
        left => format!(", {} left", entries(left)),
    };
    format!("{} of {route} deleted ({bytes}){left}", entries(answer.dropped_entries()))
}

#[cfg(test)]
mod tests {
    use super::said;
    use crate::pb::v1::DropRouteResponse;

    #[test]
    fn counts_are_said() {
        let answer = DropRouteResponse {
            route: "a_to_b".to_owned(),
            dropped_entries: Some(1),
            dropped_bytes: Some(2048),
            remaining_entries: Some(4212),
        };
        assert_eq!(said(&answer, true), "a_to_b has 4,212 entries");
        assert_eq!(said(&answer, false), "1 entry of a_to_b deleted (2.00 KiB), 4,212 entries left");
    }
}
