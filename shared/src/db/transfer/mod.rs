//! What a collection's export reads, and what an import writes.

mod clusters;
mod erased;
pub mod export;
mod faces;
mod images;
pub mod import;
mod persons;

#[cfg(test)]
mod tests;
