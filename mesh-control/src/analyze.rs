//! What is wrong among several objects that are each well-formed.
