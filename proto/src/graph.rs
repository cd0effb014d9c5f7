//! The graph as Kiln sees it.
