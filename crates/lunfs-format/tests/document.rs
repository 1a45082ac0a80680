//! The tables of docs/format.md say where the fields lie in the code.

use lunfs_format::layout::{ALL, Field, Layout, MAP_ENTRY};

/// A table of the document: the section that it stands in, its column titles, its rows.
struct Table {
    section: String,
    columns: Vec<String>,
    rows: Vec<Vec<String>>,
}

/// What the document says of a field.
#[derive(Debug, PartialEq)]
struct Row {
    name: String,
    offset: usize,
    size: usize,
    reserved: bool,
}

#[test]
fn every_table_of_fields_is_that_of_the_code() {
    let tables = tables();
    let documented = tables.iter().filter(|table| table.columns[0] == "offset");
    let mut layouts = ALL.iter().filter(|layout| layout.structure != "Entry value");
    for table in documented {
        let layout = layouts.next().expect("the code has a structure for each table");
        assert!(
            layout.structure.starts_with(&table.section),
            "the table of {} stands in section {}",
            layout.structure,
            table.section
        );
        assert_eq!(table.columns, ["offset", "size", "field", "meaning"], "{}", table.section);
        let rows: Vec<Row> = table.rows.iter().map(|row| documented_row(row)).collect();
        assert_eq!(rows, coded_rows(layout), "{}", layout.structure);
    }
    assert_eq!(layouts.next(), None, "a structure has no table");
}

#[test]
fn fields_leave_no_gap() {
    for layout in ALL {
        let mut end = 0;
        for field in layout.fields {
            assert_eq!(field.offset, end, "{}: {}", layout.structure, field.name);
            end += field.size;
        }
        assert_eq!(end, layout.size, "{}", layout.structure);
    }
}

#[test]
fn the_table_of_map_entry_bits_is_that_of_the_code() {
    let table = table("Map entry", "bits");
    for (row, (name, first, end)) in table.rows.iter().zip(MAP_ENTRY) {
        let bits = if end == first + 1 { first.to_string() } else { format!("{first}..{end}") };
        assert_eq!(row[..2], [bits, name.to_owned()]);
    }
    assert_eq!(table.rows.len(), MAP_ENTRY.len());
}

#[test]
fn a_directory_entry_is_that_of_the_code() {
    let table = table("Descriptor", "tree");
    let row = table.rows.iter().find(|row| row[0] == "entries").unwrap();
    let layout = ALL.iter().find(|layout| layout.structure == "Entry value").unwrap();
    let coded: Vec<String> =
        layout.fields.iter().map(|field| format!("{} {}", name(field), field.size)).collect();
    assert_eq!(row[2], coded.join(", "));
}

fn coded_rows(layout: &Layout) -> Vec<Row> {
    let own_fields = layout.fields.iter().filter(|field| field.name != "header");
    own_fields
        .map(|field| Row {
            name: name(field).to_owned(),
            offset: field.offset,
            size: field.size,
            reserved: field.reserved,
        })
        .collect()
}

fn documented_row(row: &[String]) -> Row {
    Row {
        offset: row[0].parse().expect("an offset is a number"),
        size: row[1].parse().expect("a size is a number"),
        name: row[2].clone(),
        reserved: row[3] == "zero" || row[3].starts_with("reserved"),
    }
}

fn name(field: &Field) -> &'static str {
    field.name.trim_start_matches("r#")
}

fn table(section: &str, first_column: &str) -> Table {
    let matches = |table: &Table| table.section == section && table.columns[0] == first_column;
    tables().into_iter().find(matches).expect("the document has the table")
}

fn tables() -> Vec<Table> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/format.md");
    let document = std::fs::read_to_string(path).expect("the document is readable");
    let mut tables: Vec<Table> = Vec::new();
    let mut section = String::new();
    let mut in_table = false;
    for line in document.lines() {
        if let Some(title) = line.strip_prefix("## ") {
            section = title.to_owned();
        }
        let Some(cells) = line.strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            in_table = false;
            continue;
        };
        let cells: Vec<String> =
            cells.split('|').map(|cell| cell.trim().replace('`', "")).collect();
        if !in_table {
            tables.push(Table { section: section.clone(), columns: cells, rows: Vec::new() });
        } else if !cells[0].starts_with("---") {
            tables.last_mut().expect("a row follows its titles").rows.push(cells);
        }
        in_table = true;
    }
    tables
}
