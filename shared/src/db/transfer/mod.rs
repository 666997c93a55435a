//! What a collection's export reads, and what an import writes.

pub mod export;
pub mod import;
mod persons;

#[cfg(test)]
mod tests;
