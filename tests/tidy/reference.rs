//! The references of `docs/`: tables made of the doc comments of the code that reads what they describe, so that they cannot lag.
//!
//! A table stands between `<!-- keys: FILE STRUCT -->` or `<!-- table: FILE FUNCTION -->` and `<!-- end -->`; `MESH_REGENERATE=1`
//! writes it anew. What a document says besides is prose, which is its author's.

use std::fs;

use super::{collect, root};

/// Every table of every document says what the code says.
#[test]
fn references_are_what_the_code_says() {
    let mut tables = 0;
    let mut files = Vec::new();
    collect(&root().join("docs"), "md", &mut files);
    for file in files {
        let made = refreshed(&file.text, &mut tables);
        if made == file.text {
            continue;
        }
        if std::env::var("MESH_REGENERATE").is_ok_and(|value| value == "1") {
            fs::write(root().join(&file.path), made).unwrap();
        } else {
            panic!(
                "{} does not say what the code says: run MESH_REGENERATE=1 cargo test --test tidy references",
                file.path
            );
        }
    }
    assert!(tables >= 8, "found only {tables} tables: are the marks broken?");
}

/// A document with its tables made anew.
fn refreshed(text: &str, tables: &mut usize) -> String {
    let mut out = String::new();
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        out.push_str(line);
        out.push('\n');
        let mark = line.strip_prefix("<!-- ").and_then(|rest| rest.strip_suffix(" -->"));
        let Some((kind, rest)) = mark.and_then(|mark| mark.split_once(": ")) else { continue };
        let Some((path, item)) = rest.split_once(' ') else { continue };
        let source = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        let table = match kind {
            "keys" => keys(&source, item),
            "table" => table(&source, item),
            _ => continue,
        };
        assert!(table.lines().count() > 2, "{path} has nothing to tell of {item}");
        *tables += 1;
        out.push('\n');
        out.push_str(&table);
        out.push('\n');
        let end = lines.by_ref().find(|line| *line == "<!-- end -->");
        assert!(end.is_some(), "the table of {item} has no end");
        out.push_str("<!-- end -->\n");
    }
    out
}

/// The fields of a struct, each with its doc comment.
fn keys(source: &str, name: &str) -> String {
    let start = source.find(&format!("struct {name} {{")).unwrap_or_else(|| panic!("no struct {name}"));
    let body = &source[start..];
    let body = &body[..body.find("\n}").unwrap()];
    let (mut out, mut doc) = (String::from("| key | meaning |\n|---|---|\n"), String::new());
    for line in body.lines().skip(1).map(str::trim) {
        if let Some(words) = line.strip_prefix("///") {
            doc.push_str(words);
        } else if !line.starts_with("#[") && line.contains(": ") {
            let field = line.split(':').next().unwrap().trim_start_matches("pub ").trim_start_matches("r#");
            assert!(!doc.is_empty(), "{name}.{field} is not documented");
            out.push_str(&format!("| `{field}` | {} |\n", sentence(&doc)));
            doc.clear();
        }
    }
    out
}

/// The table in the doc comment of a function.
fn table(source: &str, name: &str) -> String {
    let end = source.find(&format!("fn {name}(")).unwrap_or_else(|| panic!("no function {name}"));
    let doc: Vec<&str> = source[..end]
        .lines()
        .rev()
        .skip(1)
        .map(str::trim)
        .take_while(|line| line.starts_with("///") || line.starts_with("#["))
        .collect();
    let rows = doc.iter().rev().filter_map(|line| line.strip_prefix("/// ")).filter(|line| line.starts_with('|'));
    rows.map(|row| unlinked(row) + "\n").collect()
}

/// One line of a table: without links of rustdoc, without what ends a cell.
fn sentence(doc: &str) -> String {
    unlinked(doc.trim()).replace('|', "\\|")
}

/// `` [`name`](path) `` and `` [`name`] `` are `` `name` `` outside of rustdoc.
fn unlinked(doc: &str) -> String {
    let (mut out, mut rest) = (String::new(), doc);
    while let Some(at) = rest.find("[`") {
        let Some(length) = rest[at..].find("`]") else { break };
        out.push_str(&rest[..at]);
        out.push_str(&rest[at + 1..at + length + 1]);
        rest = &rest[at + length + 2..];
        if rest.starts_with('(') {
            rest = rest.find(')').map_or(rest, |end| &rest[end + 1..]);
        }
    }
    out + rest
}
