//! What of a table a grant shows, as a condition on the column that names the collection.

use sea_orm::Condition;
use sea_orm::prelude::*;

use super::placeholders;
use crate::access::{Grant, Reach};

/// For a query that is written: the condition, and its values `$first ..`.
pub(crate) fn sql(grant: &Grant, column: &str, first: usize) -> (String, Vec<Value>) {
    match grant.reach() {
        Reach::All => ("TRUE".to_owned(), Vec::new()),
        Reach::Only(collections) if collections.is_empty() => ("FALSE".to_owned(), Vec::new()),
        Reach::Only(collections) => (
            format!("{column} IN ({})", placeholders(first, collections.len())),
            collections.iter().map(|id| Value::from(*id)).collect(),
        ),
    }
}

/// For a query that is built.
pub(crate) fn filter(grant: &Grant, column: impl ColumnTrait) -> Condition {
    match grant.reach() {
        Reach::All => Condition::all(),
        // Without one, the condition is false.
        Reach::Only(collections) => Condition::all().add(column.is_in(collections.iter().copied())),
    }
}
