//! `face-id-services`: starts and stops real services for trying face-id out.

fn main() {}
