//! The applied objects, their versions and their persistence.
