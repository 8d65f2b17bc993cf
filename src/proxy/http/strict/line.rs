//! Single lines: where one ends, and what a header, a number or a first line may look like.

use super::Fault;

/// What each byte may be part of.
const TABLE: [u8; 256] = table();
/// A token (RFC 9110, section 5.6.2).
const TOKEN: u8 = 1;
/// A header's value.
const VALUE: u8 = 2;
/// A request's target.
const TARGET: u8 = 4;

const fn table() -> [u8; 256] {
    let mut table = [0; 256];
    let mut b = 0;
    while b < 256 {
        #[expect(clippy::cast_possible_truncation, reason = "it is less than 256")]
        let byte = b as u8;
        let mut classes = 0;
        if byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            )
        {
            classes |= TOKEN;
        }
        if byte == b'\t' || byte >= b' ' && byte != 0x7f {
            classes |= VALUE;
        }
        if byte > b' ' && byte != 0x7f {
            classes |= TARGET;
        }
        table[b] = classes;
        b += 1;
    }
    table
}

fn all(bytes: &[u8], class: u8) -> bool {
    // Without an early end: nearly all are good, and this way the compiler can take many at a time.
    bytes.iter().fold(class, |known, b| known & TABLE[usize::from(*b)]) != 0
}

/// Whether `bytes` are a token.
pub(super) fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && all(bytes, TOKEN)
}

/// Whether `bytes` have no control character but the tab.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    all(bytes, VALUE)
}

/// The first line of `bytes`, and how many bytes it takes with its end. `None`: it has no end yet. What ends at a bare
/// LF is a fault.
pub(super) fn split(bytes: &[u8]) -> Result<Option<(&[u8], usize)>, Fault> {
    let Some(newline) = memchr::memchr(b'\n', bytes) else { return Ok(None) };
    let Some(line) = bytes[..newline].strip_suffix(b"\r") else {
        return Err(Fault::Malformed("a line ends with LF alone"));
    };
    Ok(Some((line, newline + 1)))
}

/// Where the name of a header ends, and where its value stands within `line`.
pub(super) fn field(line: &[u8]) -> Result<(usize, std::ops::Range<usize>), Fault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(Fault::Malformed("a header is folded"));
    }
    let Some(colon) = memchr::memchr(b':', line) else {
        return Err(Fault::Malformed("a header without a colon"));
    };
    if !is_token(&line[..colon]) {
        return Err(Fault::Malformed("a header's name is no token"));
    }
    let (mut from, mut to) = (colon + 1, line.len());
    while from < to && matches!(line[from], b' ' | b'\t') {
        from += 1;
    }
    while from < to && matches!(line[to - 1], b' ' | b'\t') {
        to -= 1;
    }
    // CR and NUL are control characters too.
    if !is_text(&line[from..to]) {
        return Err(Fault::Malformed("a control character in a header"));
    }
    Ok((colon, from..to))
}

/// `method SP target SP version`, with nothing else between or around: where the method and the target end, and
/// whether the version is HTTP/1.0.
pub(super) fn request(line: &[u8]) -> Result<(usize, usize, bool), Fault> {
    let shape = Fault::Malformed("a request line is not method, target and version");
    let method = memchr::memchr(b' ', line).ok_or(shape)?;
    let target = method + 1 + memchr::memchr(b' ', &line[method + 1..]).ok_or(shape)?;
    let http_10 = match &line[target + 1..] {
        b"HTTP/1.1" => false,
        b"HTTP/1.0" => true,
        _ => return Err(Fault::Malformed("a version other than HTTP/1.1 and HTTP/1.0")),
    };
    if !is_token(&line[..method]) {
        return Err(Fault::Malformed("a method is no token"));
    }
    if target == method + 1 || !all(&line[method + 1..target], TARGET) {
        return Err(Fault::Malformed("a request target with a control character"));
    }
    Ok((method, target, http_10))
}

/// `version SP status [SP reason]`: the status, and whether the version is HTTP/1.0.
pub(super) fn status(line: &[u8]) -> Result<(u16, bool), Fault> {
    let http_10 = match line.get(..9) {
        Some(b"HTTP/1.1 ") => false,
        Some(b"HTTP/1.0 ") => true,
        _ => return Err(Fault::Malformed("a status line does not begin with HTTP/1.1 or HTTP/1.0")),
    };
    let digits = line.get(9..12).filter(|digits| digits.iter().all(u8::is_ascii_digit));
    let Some(&[a, b, c]) = digits else { return Err(Fault::Malformed("a status that is no number")) };
    let [a, b, c] = [a, b, c].map(|digit| u16::from(digit - b'0'));
    let code = a * 100 + b * 10 + c;
    let behind = &line[12..];
    if !(100..1000).contains(&code) || !(behind.is_empty() || behind[0] == b' ' && is_text(behind)) {
        return Err(Fault::Malformed("a status line is not version, status and reason"));
    }
    Ok((code, http_10))
}

/// RFC 9110: digits, nothing else. Not a list of equal numbers either, which it allows and nobody sends in earnest.
pub(super) fn content_length(value: &[u8]) -> Result<u64, Fault> {
    if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Fault::Malformed("a Content-Length that is no number"));
    }
    Ok(value.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0')))
}
