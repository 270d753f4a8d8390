//! The actions of a rule, from compiled to bound to a table.
//!
//! Owns what each kind of action carries. It must not know rows. Invariant: an action has exactly
//! one name, and what it may ever remove or write follows from that name alone.

use std::sync::Arc;
use std::time::Duration;

use super::folding::Folding;
use super::message::MessageTemplate;
use super::template::Template;
use crate::config::Spanned;
use crate::plan::{ActionKind, Removal};

/// What a rule does. `T` is its templates and `C` its columns: as the file has them, or bound to
/// the columns of a table.
#[derive(Clone, Debug)]
pub(super) enum Action<T, C> {
    Set { key: T, columns: Vec<C>, ttl: Duration },
    Delete(T),
    Pattern(T),
    Tag(T),
    Bump(T),
    Publish { channel: T, data: MessageTemplate<T> },
    Stream { name: T, data: MessageTemplate<T>, maxlen: u64 },
}

/// An action as the file has it.
pub(super) type RuleAction = Action<Spanned<Template>, Spanned<String>>;

impl<T, C> Action<T, C> {
    pub(super) const fn kind(&self) -> ActionKind {
        match self {
            Self::Set { .. } => ActionKind::Set,
            Self::Delete(_) => ActionKind::Delete,
            Self::Pattern(_) => ActionKind::Pattern,
            Self::Tag(_) => ActionKind::Tag,
            Self::Bump(_) => ActionKind::Bump,
            Self::Publish { .. } => ActionKind::Publish,
            Self::Stream { .. } => ActionKind::Stream,
        }
    }

    /// The template that names what is affected.
    pub(super) const fn name(&self) -> &T {
        match self {
            Self::Delete(name) | Self::Pattern(name) | Self::Tag(name) | Self::Bump(name) => name,
            Self::Set { key: name, .. } | Self::Publish { channel: name, .. } | Self::Stream { name, .. } => name,
        }
    }

    fn name_mut(&mut self) -> &mut T {
        match self {
            Self::Delete(name) | Self::Pattern(name) | Self::Tag(name) | Self::Bump(name) => name,
            Self::Set { key: name, .. } | Self::Publish { channel: name, .. } | Self::Stream { name, .. } => name,
        }
    }

    /// The message that it sends, if any.
    pub(super) const fn data(&self) -> Option<&MessageTemplate<T>> {
        match self {
            Self::Publish { data, .. } | Self::Stream { data, .. } => Some(data),
            Self::Set { .. } | Self::Delete(_) | Self::Pattern(_) | Self::Tag(_) | Self::Bump(_) => None,
        }
    }

    /// The columns that it writes.
    pub(super) fn columns(&self) -> &[C] {
        match self {
            Self::Set { columns, .. } => columns,
            Self::Delete(_)
            | Self::Pattern(_)
            | Self::Tag(_)
            | Self::Bump(_)
            | Self::Publish { .. }
            | Self::Stream { .. } => &[],
        }
    }

    /// The same action over other templates and columns.
    pub(super) fn map<U, D>(
        &self,
        template: &mut impl FnMut(&T) -> U,
        column: &mut impl FnMut(&C) -> D,
    ) -> Action<U, D> {
        match self {
            Self::Set { key, columns, ttl } => {
                Action::Set { key: template(key), columns: columns.iter().map(column).collect(), ttl: *ttl }
            }
            Self::Delete(key) => Action::Delete(template(key)),
            Self::Pattern(pattern) => Action::Pattern(template(pattern)),
            Self::Tag(tag) => Action::Tag(template(tag)),
            Self::Bump(key) => Action::Bump(template(key)),
            Self::Publish { channel, data } => Action::Publish { channel: template(channel), data: data.map(template) },
            Self::Stream { name, data, maxlen } => {
                Action::Stream { name: template(name), data: data.map(template), maxlen: *maxlen }
            }
        }
    }
}

impl RuleAction {
    /// Folds case in names of keys as this database does. Messages and their channels fold by
    /// Unicode's rules: they name nothing that a query finds.
    pub(super) fn fold_as(&mut self, folding: &Arc<Folding>) {
        if self.kind().touches_keys() {
            self.name_mut().value.fold_as(folding);
        }
    }

    /// The removal of everything that it may ever remove or write.
    pub(super) fn removal(&self) -> Option<Removal> {
        match self {
            Self::Set { key: name, .. } | Self::Delete(name) | Self::Pattern(name) | Self::Bump(name) => {
                Some(Removal::Keys(name.value.glob()))
            }
            Self::Tag(name) => Some(Removal::Tags(name.value.glob())),
            Self::Publish { .. } | Self::Stream { .. } => None,
        }
    }
}
