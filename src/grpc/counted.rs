//! Calls, counted.

use super::calls::{CallObserver, EndedCall};
use crate::metrics::CallMetrics;

impl CallObserver for CallMetrics {
    fn connected(&self) {
        Self::connected(self);
    }

    fn disconnected(&self) {
        Self::disconnected(self);
    }

    fn refused(&self) {
        Self::refused(self);
    }

    fn began(&self, method: &'static str) {
        Self::began(self, method);
    }

    fn ended(&self, call: &EndedCall) {
        Self::ended(self, call.method, call.code.into(), call.took);
    }
}
