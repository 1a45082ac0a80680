//! What to do, done: the file is asked, and errors of the core become codes.

use lunfs_core::{Error, Kind};

use super::reply::Outcome;
use super::request::{Action, Code, Refusal};
use crate::export::file::ExportedFile;

/// Runs of one answer to `BLOCK_STATUS`; the client asks on from where it ends.
const EXTENTS_MAX: usize = 1024;

/// Does what was asked; `payload` is what came with a write.
pub async fn run(
    file: &ExportedFile,
    action: Action,
    payload: Vec<Vec<u8>>,
) -> Result<Outcome, Refusal> {
    done(file, action, payload).await.map_err(refusal)
}

async fn done(
    file: &ExportedFile,
    action: Action,
    payload: Vec<Vec<u8>>,
) -> lunfs_core::Result<Outcome> {
    let is_durable = match action {
        Action::Read { at, len, in_one } => {
            let pieces = file.read(at, len).await?;
            return Ok(Outcome::Read { at, pieces, in_one });
        }
        Action::Status { at, len, only_first } => {
            let count_max = if only_first { 1 } else { EXTENTS_MAX };
            let mut extents = file.extents(at, len.into(), count_max).await?;
            extents.truncate(count_max);
            return Ok(Outcome::Status(extents));
        }
        Action::Write { at, is_durable } => {
            file.write(at, payload).await?;
            is_durable
        }
        Action::Trim { at, len, is_durable } => {
            file.punch(at, len.into()).await?;
            is_durable
        }
        Action::Zero { at, len, in_place, is_durable } => {
            match in_place {
                true => file.zero_in_place(at, len.into()).await?,
                false => file.punch(at, len.into()).await?,
            }
            is_durable
        }
        Action::Flush => true,
    };
    if is_durable {
        file.sync().await?;
    }
    Ok(Outcome::Done)
}

/// The one place where errors of the core become codes; what an operator should hear of is logged.
fn refusal(error: Error) -> Refusal {
    if matches!(error.kind, Kind::Corrupt | Kind::Io | Kind::Stale) {
        tracing::error!(event = "operation_failed", kind = ?error.kind, "{error}");
    }
    let code = match error.kind {
        Kind::NoSpace => Code::NoSpace,
        Kind::ReadOnly => Code::NotPermitted,
        Kind::Invalid | Kind::TooLong => Code::Invalid,
        Kind::Unsupported => Code::Unsupported,
        Kind::Stopped => Code::Shutdown,
        Kind::NotFound
        | Kind::Exists
        | Kind::IsDirectory
        | Kind::NotDirectory
        | Kind::NotEmpty
        | Kind::Busy
        | Kind::Stale
        | Kind::TooManyLinks
        | Kind::NoAttribute
        | Kind::Corrupt
        | Kind::Io => Code::Io,
    };
    Refusal { code, why: error.what }
}
