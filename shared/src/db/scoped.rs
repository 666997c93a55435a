//! What of a table a grant shows, as a condition on the column that names the collection.

use sea_orm::prelude::*;
use sea_orm::{Condition, QuerySelect as _, QueryTrait as _};

use super::entity::collection;
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

/// For a query that is built. What is being erased is in no grant.
pub(crate) fn filter(grant: &Grant, column: impl ColumnTrait) -> Condition {
    let erased = collection::Entity::find().select_only().column(collection::Column::Id);
    let erased = erased.filter(collection::Column::ErasedAt.is_not_null()).into_query();
    let there = column.not_in_subquery(erased);
    match grant.reach() {
        // What is of no collection is in none that is being erased, and NULL is never "not in" what has rows.
        Reach::All => Condition::any().add(column.is_null()).add(there),
        // Without one, the condition is false.
        Reach::Only(collections) => Condition::all().add(there).add(column.is_in(collections.iter().copied())),
    }
}
