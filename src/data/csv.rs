//! A small reader of comma or tab separated text with quotes (RFC 4180).

/// One record: the line on which it starts (from 1) and its fields.
pub(super) type Record = (usize, Vec<String>);

/// Splits `text` into records. Blank lines are skipped; a quoted field may hold separators, line ends and doubled
/// quotes.
///
/// # Errors
/// A message with the line number if a quote is never closed or text follows a closing quote.
pub(super) fn parse(text: &str, separator: char) -> Result<Vec<Record>, String> {
    let mut records = Vec::new();
    let mut chars = text.chars().peekable();
    let (mut line, mut start) = (1, 1);
    let (mut fields, mut field) = (Vec::new(), String::new());
    let mut quoted = false;
    while let Some(c) = chars.next() {
        match c {
            '"' if field.is_empty() && !quoted => {
                let opened = line;
                quoted = true;
                loop {
                    match chars.next() {
                        Some('"') if chars.peek() == Some(&'"') => {
                            chars.next();
                            field.push('"');
                        }
                        Some('"') => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            field.push(c);
                        }
                        None => return Err(format!("line {opened}: a quote is never closed")),
                    }
                }
            }
            '\r' if chars.peek() == Some(&'\n') => {}
            '\n' => {
                line += 1;
                if quoted || !field.is_empty() || !fields.is_empty() {
                    fields.push(std::mem::take(&mut field));
                    records.push((start, std::mem::take(&mut fields)));
                }
                (quoted, start) = (false, line);
            }
            c if c == separator => {
                fields.push(std::mem::take(&mut field));
                quoted = false;
            }
            _ if quoted => return Err(format!("line {line}: text follows a closing quote")),
            c => field.push(c),
        }
    }
    if quoted || !field.is_empty() || !fields.is_empty() {
        fields.push(field);
        records.push((start, fields));
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(text: &str) -> Vec<Vec<String>> {
        parse(text, ',').unwrap().into_iter().map(|(_, fields)| fields).collect()
    }

    #[test]
    fn plain_and_quoted_fields() {
        assert_eq!(fields("a,b\n1,2\n"), [["a", "b"], ["1", "2"]]);
        assert_eq!(fields("a,b\r\n1,2"), [["a", "b"], ["1", "2"]]);
        assert_eq!(fields("\"x, y\",\"say \"\"hi\"\"\""), [["x, y", "say \"hi\""]]);
        assert_eq!(fields(",\n\n\"\"\n"), [vec!["", ""], vec![""]]);
        assert_eq!(fields("a\"b,c"), [["a\"b", "c"]]);
        assert!(fields("\n\n").is_empty());
        assert_eq!(parse("a\tb", '\t').unwrap()[0].1, ["a", "b"]);
    }

    #[test]
    fn line_numbers_count_line_ends_inside_quotes() {
        let records = parse("h\n\"two\nlines\"\nx\n", ',').unwrap();
        assert_eq!(records.iter().map(|record| record.0).collect::<Vec<_>>(), [1, 2, 4]);
    }

    #[test]
    fn errors_name_the_line() {
        assert_eq!(parse("a\n\"b\n", ',').unwrap_err(), "line 2: a quote is never closed");
        assert_eq!(parse("\"a\"b", ',').unwrap_err(), "line 1: text follows a closing quote");
    }
}
