//! The replicated index.
