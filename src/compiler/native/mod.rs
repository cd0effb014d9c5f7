//! compiler/native
