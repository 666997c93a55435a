//! Many rows in one statement: they travel as one JSON parameter, so that a statement has the same text, and the same
//! prepared plan, whatever their number.

use sea_orm::prelude::*;

use super::is_postgres;

/// The type of a column of [`Rows`].
#[derive(Clone, Copy, Debug)]
pub(crate) enum Column {
    Id,
    Text,
    Integer,
    Real,
    Vector,
}

/// Rows to be read by one statement: JSON objects with these columns.
pub(crate) struct Rows {
    columns: &'static [(&'static str, Column)],
    rows: Vec<serde_json::Value>,
}

impl Rows {
    pub(crate) fn new(columns: &'static [(&'static str, Column)], rows: Vec<serde_json::Value>) -> Self {
        Self { columns, rows }
    }

    /// The parameter, to be bound as `$1`.
    pub(crate) fn value(self) -> Value {
        serde_json::Value::Array(self.rows).to_string().into()
    }

    /// What stands after `FROM`: the rows under the name `r`, in their order, out of the parameter `$1`.
    ///
    /// Where a table is joined that a constant narrows too (`collection_id = $2`), write `CROSS JOIN` and all conditions after
    /// `WHERE`: `SQLite` then begins with these rows. Left to itself it takes what the constant leaves for the smaller part, and
    /// reads all of these rows for each row of the collection.
    pub(crate) fn table(&self, conn: &impl ConnectionTrait) -> String {
        let list = |column: fn(&str, Column) -> String| {
            self.columns.iter().map(|(name, kind)| column(name, *kind)).collect::<Vec<_>>().join(", ")
        };
        if is_postgres(conn) {
            return format!("json_to_recordset($1::json) AS r ({})", list(postgres));
        }
        // Without the order `SQLite` is free to take them as it likes.
        format!("(SELECT {} FROM json_each($1) ORDER BY key) AS r", list(sqlite))
    }
}

/// An id, or a missing one, as [`Column::Id`] wants it.
pub(crate) fn id(id: impl Into<Option<Uuid>>) -> serde_json::Value {
    id.into().map_or(serde_json::Value::Null, |id| id.simple().to_string().into())
}

/// A vector as [`Column::Vector`] wants it.
pub(crate) fn vector(conn: &impl ConnectionTrait, vector: &crate::embedding::Embedding) -> serde_json::Value {
    if is_postgres(conn) {
        let numbers: Vec<String> = vector.as_slice().iter().map(f32::to_string).collect();
        return format!("[{}]", numbers.join(",")).into();
    }
    crate::digest::hex(&vector.to_bytes()).into()
}

fn postgres(name: &str, kind: Column) -> String {
    let sql = match kind {
        Column::Id => "uuid",
        Column::Text => "text",
        Column::Integer => "bigint",
        Column::Real => "real",
        Column::Vector => "vector",
    };
    format!("{name} {sql}")
}

fn sqlite(name: &str, kind: Column) -> String {
    match kind {
        Column::Id | Column::Vector => format!("unhex(value ->> '{name}') AS {name}"),
        Column::Text | Column::Integer | Column::Real => format!("value ->> '{name}' AS {name}"),
    }
}
