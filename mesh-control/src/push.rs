//! One view per connected node.
