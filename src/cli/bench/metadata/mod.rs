//! `odoshi bench metadata`: what agents' reports cost a PostgreSQL database, and what an outage costs.

mod args;
mod load;
mod node;
mod outage;
mod steady;

use crate::cli::scratch_store::ScratchStore;
pub(super) use args::Args;
use std::error::Error;
use std::path::Path;

pub(super) async fn run(args: &Args, folder: &Path) -> Result<(), Box<dyn Error>> {
    let place = ScratchStore::at(Some(&args.store)).await?;
    let ScratchStore::Schema(scratch) = &place else {
        return Err("metadata is measured on PostgreSQL: --store postgres://…".into());
    };
    let ended = async {
        steady::run(args, scratch, &folder.join("steady")).await?;
        load::run(args, scratch, &folder.join("load")).await?;
        outage::run(scratch, &folder.join("outage")).await
    }
    .await;
    place.leave().await?;
    ended
}
