//! What all decoders share: errors that gather their path on the way out, the report of what is ignored, opening an `Any`.

use std::collections::BTreeSet;

use bytes::Bytes;
use prost::{Message, Name};

use crate::{
    profile::{Context, Profile},
    proto::{Any, fields},
};

/// What is wrong with a field. The path grows at its front while the error travels up; good input never pays for it.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) field: String,
    pub(super) message: String,
}

/// `field` is wrong because of `message`.
pub(super) fn wrong(field: impl Into<String>, message: impl Into<String>) -> Wrong {
    Wrong { field: field.into(), message: message.into() }
}

/// Puts the place of a message in front of the path of an error within it.
pub(super) trait Within<T> {
    fn within(self, place: impl FnOnce() -> String) -> Result<T, Wrong>;

    fn under(self, place: &str) -> Result<T, Wrong>;
}

impl<T> Within<T> for Result<T, Wrong> {
    fn within(self, place: impl FnOnce() -> String) -> Self {
        self.map_err(|wrong| {
            let place = place();
            let field = if wrong.field.is_empty() { place } else { format!("{place}.{}", wrong.field) };
            Wrong { field, message: wrong.message }
        })
    }

    fn under(self, place: &str) -> Self {
        self.within(|| place.to_owned())
    }
}

/// The place of a list's element that has a name: `routes[3 "default"]`.
pub(super) fn element(list: &str, index: usize, name: &str) -> String {
    if name.is_empty() { format!("{list}[{index}]") } else { format!("{list}[{index} {name:?}]") }
}

/// The fields of one resource that have no effect here, and whose rules it is read by.
#[derive(Debug, Default)]
pub(super) struct Ignored {
    fields: BTreeSet<String>,
    context: Context,
}

impl Ignored {
    /// Nothing yet, by these rules.
    pub(super) fn by(context: &Context) -> Self {
        Self { fields: BTreeSet::new(), context: context.clone() }
    }

    /// Whose rules it is read by.
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// By gRPC's rules?
    pub(super) fn is_grpc(&self) -> bool {
        self.context.profile == Profile::Grpc
    }

    /// Has this field been noted?
    pub(super) fn has(&self, place: &str, field: &str) -> bool {
        self.fields.contains(&join(place, field))
    }

    /// Reads a message, noting what is dropped, refusing what must not be.
    pub(super) fn read<M: Message + Name + Default>(&mut self, bytes: &Bytes, place: &str) -> Result<M, Wrong> {
        let message = M::decode(bytes.clone()).map_err(|error| wrong("", format!("is no {}: {error}", M::NAME)))?;
        let dropped = fields::dropped(&M::full_name(), bytes);
        if let Some(field) = dropped.refused.into_iter().next() {
            return Err(wrong(
                field,
                "is not supported, and ignoring it would change what is let through; leave it out",
            ));
        }
        self.fields.extend(dropped.ignored.into_iter().map(|field| join(place, &field)));
        Ok(message)
    }

    /// Opens an `Any` that must be of one type.
    pub(super) fn open<M: Message + Name + Default>(&mut self, any: &Any, place: &str) -> Result<M, Wrong> {
        if !any.is::<M>() {
            return Err(wrong(
                "",
                format!("is of type {:?}, only {} is supported", any.message_name(), M::full_name()),
            ));
        }
        self.read(&any.value, place)
    }

    /// Notes that a field has no effect.
    pub(super) fn add(&mut self, place: &str, field: &str) {
        self.fields.insert(join(place, field));
    }

    pub(super) fn into_list(self) -> Vec<String> {
        self.fields.into_iter().collect()
    }
}

fn join(place: &str, field: &str) -> String {
    if place.is_empty() { field.to_owned() } else { format!("{place}.{field}") }
}
