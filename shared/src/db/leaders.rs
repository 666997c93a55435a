//! Leadership as a lease row: one worker at a time does the housekeeping of a role.
//!
//! Everything a leader does is safe to be done by two at once; the row only saves the work of doing it twice. A process
//! that stands still loses its role with its lease, which no lock of a session would do.

use std::time::Duration;

use sea_orm::FromQueryResult;
use sea_orm::prelude::*;

use super::{Db, execute, micros, statement};

/// Takes or renews the role for `lease` and returns its generation, which grows with every change of the owner; `None`
/// while somebody else holds it.
pub async fn lead(db: &Db, role: &str, owner: Uuid, lease: Duration) -> Result<Option<i64>, DbErr> {
    #[derive(FromQueryResult)]
    struct Row {
        generation: i64,
    }
    let sql = "INSERT INTO leaders (role, owner, generation, expires_at) VALUES ($1, $2, 1, {now} + $3)
        ON CONFLICT (role) DO UPDATE SET owner = excluded.owner, expires_at = excluded.expires_at,
            generation = leaders.generation + CASE WHEN leaders.owner = excluded.owner THEN 0 ELSE 1 END
        WHERE leaders.owner = excluded.owner OR leaders.expires_at < {now}
        RETURNING generation";
    let values = [role.into(), owner.into(), micros(lease).into()];
    let row = Row::find_by_statement(statement(&db.write, sql, values)).one(&db.write).await?;
    Ok(row.map(|r| r.generation))
}

/// Gives the role back before its lease ends.
pub async fn resign(db: &Db, role: &str, owner: Uuid) -> Result<(), DbErr> {
    execute(&db.write, "DELETE FROM leaders WHERE role = $1 AND owner = $2", [role.into(), owner.into()]).await?;
    Ok(())
}
