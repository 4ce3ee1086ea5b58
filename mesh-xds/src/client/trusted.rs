//! What the control plane says is to be trusted, put together from its secrets.
//!
//! It is asked for on the stream that everything else comes on, so that what is revoked is known as soon as any other change. A control
//! plane that has no such secrets, as istiod has none for sidecars, is not waited for.

use std::{collections::BTreeSet, sync::Arc};

use mesh_core::{config::Name, identity::SpiffeId};

use crate::{
    bootstrap::Bootstrap,
    translate::{ROOTS, Secret, TRUST, Told, Validation},
};

/// The secrets held, and whether somebody is to be told of them.
#[derive(Debug, Default)]
pub(super) struct Trusted {
    own: String,
    validation: Option<Validation>,
    rest: Option<Told>,
    news: bool,
}

impl Trusted {
    pub(super) fn of(bootstrap: &Bootstrap) -> Self {
        let id: Option<SpiffeId> = bootstrap.node.identity().parse().ok();
        Self { own: id.map(|id| id.trust_domain().to_owned()).unwrap_or_default(), ..Self::default() }
    }

    /// What is asked for.
    pub(super) fn names() -> BTreeSet<Name> {
        [ROOTS.into(), TRUST.into()].into()
    }

    /// Takes one in. What is taken away later stays in force: nothing is trusted again because a list is gone.
    pub(super) fn take(&mut self, name: &Name, secret: Secret) {
        match secret {
            Secret::Validation(validation) if **name == *ROOTS => self.validation = Some(validation),
            Secret::Told(told) if **name == *TRUST => self.rest = Some(*told),
            _ => return,
        }
        self.news = true;
    }

    /// All of it, if there is something new to say.
    pub(super) fn poll(&mut self) -> Option<Arc<Told>> {
        if !std::mem::take(&mut self.news) {
            return None;
        }
        let plain = || Told { trust_domain: self.own.clone(), ..Told::default() };
        let told = self.rest.clone().unwrap_or_else(plain);
        Some(Arc::new(told.with(self.validation.as_ref()?)))
    }
}
