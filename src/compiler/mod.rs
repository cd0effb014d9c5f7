//! compiler
pub mod native;
