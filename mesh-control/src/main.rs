//! `meshctl`: parses the command line and calls one function per verb.

fn main() {}
