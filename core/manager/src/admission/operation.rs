//! Asking an operation to end.

use tandem_contract::OpId;

use crate::core::Core;
use crate::denied::Denied;
use crate::model::Operation;

impl Core {
    /// Asks an unfinished operation to end. Asking again changes nothing.
    pub(crate) async fn cancel(&self, id: OpId) -> Result<Operation, Denied> {
        let share = self.store.operation(id).await?.ok_or(Denied::NoOperation(id))?.share_id;
        self.change(share, |draft| {
            let op = draft.unfinished().into_iter().find(|o| o.id == id).ok_or(Denied::Ended(id))?;
            draft.request_cancel(&op);
            Ok(Operation { cancel: true, ..op })
        })
        .await
    }
}
