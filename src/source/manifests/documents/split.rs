//! A YAML stream → the texts of its documents.

/// One document of a YAML file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Doc<'a> {
    /// From 1.
    pub(super) number: usize,
    /// The line of the file on which `text` starts, from 1.
    pub(super) line: usize,
    pub(super) text: &'a str,
}

impl Doc<'_> {
    /// The first line that holds something.
    pub(super) fn first_content(&self) -> usize {
        self.line + self.text.lines().position(|l| !is_filler(l)).unwrap_or(0)
    }
}

impl<'a> Doc<'a> {
    /// `apiVersion` and `kind`, where they can be told without a parser: plain words on lines of their own at the
    /// left margin, each once, as all tools write them. `None` where the parser must decide. The document is parsed
    /// as what is found here, so that a wrong guess can only fail.
    pub(super) fn sniff(&self) -> Option<(&'a str, &'a str)> {
        let (mut version, mut kind) = (None, None);
        for line in self.text.lines() {
            let slot = match line.split_once(':') {
                Some(("apiVersion", value)) => Some((&mut version, value)),
                Some(("kind", value)) => Some((&mut kind, value)),
                _ => None,
            };
            let Some((slot, value)) = slot else { continue };
            let word = value.strip_prefix(' ')?.trim();
            let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'/');
            let letter = word.bytes().next().is_some_and(|b| b.is_ascii_alphabetic());
            if !letter || !word.bytes().all(plain) || slot.replace(word).is_some() {
                return None;
            }
        }
        version.zip(kind)
    }
}

/// A line that is no part of a document's content: blank, a comment, a directive or a bare marker.
fn is_filler(line: &str) -> bool {
    let rest = line.strip_prefix("---").unwrap_or(line).trim();
    rest.is_empty() || rest.starts_with('#') || line.starts_with('%')
}

/// Takes a YAML stream apart at its document markers. YAML forbids `---` and `...` at the start of a line inside of
/// any content, so that no parser is needed for this. Documents without content are counted and left out.
pub(super) fn split(text: &str) -> Vec<Doc<'_>> {
    let marker = |line: &str, mark| {
        line.strip_prefix(mark)
            .is_some_and(|rest: &str| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']))
    };
    let mut docs = Vec::new();
    let mut current = Doc { number: 1, line: 1, text: "" };
    let (mut start, mut offset, mut opened, mut content) = (0, 0, false, false);
    let mut line_number = 0;
    for line in text.split_inclusive('\n') {
        line_number += 1;
        let begins = marker(line, "---");
        let ends = marker(line, "...");
        if (begins && (opened || content)) || ends {
            if content {
                docs.push(Doc { text: &text[start..offset], ..current });
            }
            if content || opened {
                current.number += 1;
            }
            (start, current.line, opened, content) = (offset, line_number, false, false);
        }
        if ends {
            start = offset + line.len();
            current.line = line_number + 1;
        } else {
            opened |= begins;
            content |= !is_filler(line);
        }
        offset += line.len();
    }
    if content {
        docs.push(Doc { text: &text[start..], ..current });
    }
    docs
}
