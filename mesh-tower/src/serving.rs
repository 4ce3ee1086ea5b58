//! Which ports of this process have the mesh's admission in front of them: what the admin port tells the control plane, which says
//! of others that they are unprotected.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

/// The ports served at the moment, and by how many servers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Serving(Arc<Mutex<BTreeMap<u16, usize>>>);

/// One server, as long as it lasts.
#[derive(Debug)]
pub(crate) struct Served {
    all: Serving,
    port: u16,
}

impl Serving {
    pub(crate) fn enter(&self, port: u16) -> Served {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(port).or_default() += 1;
        Served { all: self.clone(), port }
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let mut all = self.all.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = all.get_mut(&self.port) {
            *count -= 1;
            if *count == 0 {
                all.remove(&self.port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_served_as_long_as_one_serves_it() {
        let serving = Serving::default();
        let (one, two) = (serving.enter(80), serving.enter(80));
        let other = serving.enter(81);
        assert_eq!(serving.ports(), [80, 81]);
        drop((one, other));
        assert_eq!(serving.ports(), [80]);
        drop(two);
        assert!(serving.ports().is_empty());
    }
}
