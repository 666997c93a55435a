//! Whether the secret key is the one that the database was first used with.

use sea_orm::FromQueryResult;

use super::{Db, execute, statement};
use crate::secret_key::{SecretKey, SecretKeyError};

/// Refuses a key with which what is encrypted cannot be read. The first key that comes is the one.
///
/// # Errors
/// It is another key, or the database does not answer.
pub async fn check(db: &Db, key: &SecretKey) -> Result<(), SecretKeyError> {
    #[derive(FromQueryResult)]
    struct Row {
        fingerprint: String,
    }
    let sql = "INSERT INTO secret_key_check (id, fingerprint) VALUES (1, $1) ON CONFLICT DO NOTHING";
    execute(&db.write, sql, [key.fingerprint().into()]).await?;
    let sql = "SELECT fingerprint FROM secret_key_check WHERE id = 1";
    let row = Row::find_by_statement(statement(&db.write, sql, [])).one(&db.write).await?;
    match row {
        Some(row) if row.fingerprint == key.fingerprint() => Ok(()),
        _ => Err(SecretKeyError::Wrong),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{databases, secret_key};

    #[tokio::test]
    async fn another_key_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for db in databases(folder.path()).await {
            check(&db, &secret_key(1)).await.unwrap();
            check(&db, &secret_key(1)).await.unwrap();
            assert!(matches!(check(&db, &secret_key(2)).await, Err(SecretKeyError::Wrong)));
        }
    }
}
