//! A finding that points at file, line and column.
