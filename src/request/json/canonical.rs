//! The canonical form of JSON: the same bytes for every spelling of the same JSON.

use std::borrow::Cow;
use std::ops::Range;

use serde_json::value::RawValue;
use smallvec::SmallVec;

use super::Pointer;

/// The maximum nesting depth. Deeper bodies have no canonical form, because the writer below calls
/// itself for each level.
const MAX_DEPTH: usize = 64;

/// The maximum length. It leaves room for the escapes that the writer may add.
const MAX_LEN: usize = u32::MAX as usize / 6;

/// Returns the same bytes for every spelling of the same JSON. White space is removed, members are
/// sorted by name, and strings are escaped uniformly. Numbers stay as they are written. The values
/// at the pointers in `without` are left out.
///
/// Returns `None` if a body has no single canonical form: it is not JSON, contains a string that is
/// not Unicode, contains an object in which a member appears more than once, is nested deeper than
/// [`MAX_DEPTH`], or is longer than [`MAX_LEN`].
///
/// Each byte is read twice, once to check the grammar and once to write the canonical form. After
/// that, each byte is moved at most once, however deeply it is nested.
pub(crate) fn canonical(body: &[u8], without: &[Pointer]) -> Option<Vec<u8>> {
    if body.len() > MAX_LEN {
        return None;
    }
    // This call checks the grammar and the UTF-8 encoding without recursion, so the code below can
    // assume that the text is JSON.
    let raw: &RawValue = serde_json::from_slice(body).ok()?;
    work::done(body.len());
    let mut writer = Writer {
        text: raw.get(),
        at: 0,
        out: Vec::with_capacity(body.len()),
        open: Vec::new(),
        sorted: Vec::new(),
        unsorted: Vec::new(),
    };
    let ways: Ways<'_> = without.iter().map(Pointer::tokens).collect();
    writer.value(MAX_DEPTH, &ways)?;
    Some(writer.finish())
}

/// For each pointer whose path includes a value, the tokens that remain after that value.
type Ways<'p> = SmallVec<[&'p [String]; 4]>;

/// Writes the members in the order in which they appear, and records their sorted order. At the
/// end, all bytes are put in order in one step. Sorting each object separately would move a byte
/// once for each object that contains it.
struct Writer<'a> {
    text: &'a str,
    at: usize,
    out: Vec<u8>,
    /// The members of the objects that are not closed yet.
    open: Vec<Member<'a>>,
    /// For each unsorted object, the ranges of its members in `out`, in the order of their names.
    sorted: Vec<Span>,
    unsorted: Vec<Unsorted>,
}

/// A range, with small numbers: a body of many short members needs a range for every few bytes.
#[derive(Clone, Copy)]
struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// Returns `None` if the range is beyond the numbers. [`MAX_LEN`] prevents this.
    fn new(start: usize, end: usize) -> Option<Self> {
        Some(Self {
            start: start.try_into().ok()?,
            end: end.try_into().ok()?,
        })
    }

    fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }
}

struct Member<'a> {
    name: Cow<'a, str>,
    /// The range of the name and the value in `out`. The range is empty if the member was left out.
    span: Span,
}

/// An object whose members were not written in the order of their names.
struct Unsorted {
    /// The range of the object in `out`, including the braces.
    span: Span,
    /// The range of the object's members in `sorted`.
    members: Span,
}

impl<'a> Writer<'a> {
    fn value(&mut self, depth: usize, ways: &[&[String]]) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match self.next()? {
            b'{' => self.object(depth, ways),
            b'[' => self.array(depth, ways),
            b'"' => {
                let (raw, escaped) = self.string()?;
                self.write_string(raw, escaped).map(|_| ())
            }
            _ => {
                let rest = &self.text[self.at..];
                let is_end = |c| matches!(c, ',' | ']' | '}' | ' ' | '\t' | '\n' | '\r');
                let literal = &rest[..rest.find(is_end).unwrap_or(rest.len())];
                self.step(literal.len());
                self.write(literal.as_bytes());
                Some(())
            }
        }
    }

    fn object(&mut self, depth: usize, ways: &[&[String]]) -> Option<()> {
        let (start, first) = (self.out.len(), self.open.len());
        let mut in_order = true;
        let mut more = self.opens(b'}');
        self.write(b"{");
        while more {
            let before = (self.out.len(), self.unsorted.len());
            if before.0 > start + 1 {
                self.write(b",");
            }
            let member = self.out.len();
            self.next()?;
            let (raw, escaped) = self.string()?;
            let name = self.write_string(raw, escaped)?;
            self.next()?;
            self.step(b":".len());
            self.write(b":");
            let further: Ways<'_> = ways
                .iter()
                .filter_map(|way| way.split_first().filter(|(token, _)| **token == *name))
                .map(|(_, further)| further)
                .collect();
            self.value(depth, &further)?;
            if further.iter().any(|way| way.is_empty()) {
                self.out.truncate(before.0);
                self.unsorted.truncate(before.1);
            }
            let span = Span::new(member.min(self.out.len()), self.out.len())?;
            in_order &= self.open[first..].last().is_none_or(|last| last.name < name);
            if self.open.len() == self.open.capacity() {
                // By half instead of doubling, because this is most of the memory that a body of
                // many short members takes.
                self.open.reserve_exact(self.open.len() / 2 + 4);
            }
            self.open.push(Member { name, span });
            more = self.goes_on()?;
        }
        self.write(b"}");
        if !in_order {
            let members = &mut self.open[first..];
            members.sort_unstable_by(|one, other| one.name.cmp(&other.name));
            if members.windows(2).any(|two| two[0].name == two[1].name) {
                return None;
            }
            let from = self.sorted.len();
            let kept = members.iter().map(|member| member.span);
            self.sorted.extend(kept.filter(|span| span.start < span.end));
            self.unsorted.push(Unsorted {
                span: Span::new(start, self.out.len())?,
                members: Span::new(from, self.sorted.len())?,
            });
        }
        self.open.truncate(first);
        Some(())
    }

    fn array(&mut self, depth: usize, ways: &[&[String]]) -> Option<()> {
        let start = self.out.len();
        let mut more = self.opens(b']');
        self.write(b"[");
        let ways: SmallVec<[(usize, &[String]); 4]> = ways
            .iter()
            .filter_map(|way| way.split_first())
            .filter_map(|(token, further)| Some((Pointer::index(token)?, further)))
            .collect();
        for at in 0.. {
            if !more {
                break;
            }
            let before = (self.out.len(), self.unsorted.len());
            if before.0 > start + 1 {
                self.write(b",");
            }
            let further: Ways<'_> = ways
                .iter()
                .filter(|(index, _)| *index == at)
                .map(|(_, way)| *way)
                .collect();
            self.value(depth, &further)?;
            if further.iter().any(|way| way.is_empty()) {
                self.out.truncate(before.0);
                self.unsorted.truncate(before.1);
            }
            more = self.goes_on()?;
        }
        self.write(b"]");
        Some(())
    }

    /// Skips white space, and returns the next byte.
    fn next(&mut self) -> Option<u8> {
        let rest = &self.text.as_bytes()[self.at..];
        let space = rest
            .iter()
            .take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))
            .count();
        self.step(space);
        rest.get(space).copied()
    }

    /// Returns whether the object or array that opens here is non-empty. If it is empty, also reads
    /// the closing bracket.
    fn opens(&mut self, close: u8) -> bool {
        self.step(1);
        let empty = self.next() == Some(close);
        if empty {
            self.step(1);
        }
        !empty
    }

    /// Reads the next byte, and returns whether it is a comma. Any other byte closes the object or
    /// array.
    fn goes_on(&mut self) -> Option<bool> {
        let byte = self.next()?;
        self.step(1);
        Some(byte == b',')
    }

    /// Reads the string at this position. Returns the string with its quotes, and whether it
    /// contains escapes.
    fn string(&mut self) -> Option<(&'a str, bool)> {
        let rest = &self.text[self.at..];
        let bytes = rest.as_bytes();
        let (mut end, mut escaped) = (1, false);
        loop {
            match bytes.get(end)? {
                b'"' => break,
                b'\\' => {
                    escaped = true;
                    end += 2;
                }
                _ => end += 1,
            }
        }
        self.step(end + 1);
        Some((&rest[..=end], escaped))
    }

    /// Writes a string, and returns its text, or `None` if its escapes are not valid Unicode.
    fn write_string(&mut self, raw: &'a str, escaped: bool) -> Option<Cow<'a, str>> {
        if !escaped {
            self.write(raw.as_bytes());
            return Some(Cow::Borrowed(&raw[1..raw.len() - 1]));
        }
        let text: String = serde_json::from_str(raw).ok()?;
        work::done(raw.len());
        serde_json::to_writer(&mut self.out, &text).ok()?;
        Some(Cow::Owned(text))
    }

    fn step(&mut self, bytes: usize) {
        self.at += bytes;
        work::done(bytes);
    }

    fn write(&mut self, bytes: &[u8]) {
        self.out.extend_from_slice(bytes);
        work::done(bytes.len());
    }

    fn finish(mut self) -> Vec<u8> {
        if self.unsorted.is_empty() {
            return self.out;
        }
        // An object is recorded when it closes, after the objects inside it.
        self.unsorted.sort_unstable_by_key(|object| object.span.start);
        // The names are not needed any more, and take more memory than the result.
        self.open = Vec::new();
        let mut ordered = Vec::with_capacity(self.out.len());
        self.put_in_order(0..self.out.len(), &mut ordered);
        ordered
    }

    /// Copies a range of `out`, with the members of each object in the order of their names.
    fn put_in_order(&self, range: Range<usize>, ordered: &mut Vec<u8>) {
        let mut at = range.start;
        loop {
            let next = self.unsorted.partition_point(|object| object.span.range().start < at);
            let Some(object) = self.unsorted.get(next) else { break };
            let whole = object.span.range();
            if whole.start >= range.end {
                break;
            }
            copy(&self.out[at..=whole.start], ordered);
            for (i, member) in self.sorted[object.members.range()].iter().enumerate() {
                if i > 0 {
                    ordered.push(b',');
                }
                self.put_in_order(member.range(), ordered);
            }
            ordered.push(b'}');
            at = whole.end;
        }
        copy(&self.out[at..range.end], ordered);
    }
}

fn copy(bytes: &[u8], ordered: &mut Vec<u8>) {
    ordered.extend_from_slice(bytes);
    work::done(bytes.len());
}

/// Counts the bytes that were read, written or moved. The tests compare this count instead of
/// measuring time.
mod work {
    #[cfg(test)]
    std::thread_local! {
        static DONE: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
    }

    #[cfg(test)]
    pub(super) fn done(bytes: usize) {
        DONE.set(DONE.get() + bytes);
    }

    #[cfg(not(test))]
    pub(super) fn done(_: usize) {}

    #[cfg(test)]
    pub(super) fn of(what: impl FnOnce()) -> usize {
        let before = DONE.get();
        what();
        DONE.get() - before
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canon(text: &str) -> Option<String> {
        canonical(text.as_bytes(), &[]).map(|v| String::from_utf8(v).unwrap())
    }

    fn canon_without(pointers: &[&str], text: &str) -> Option<String> {
        let pointers: Vec<_> = pointers.iter().map(|text| Pointer::parse("", text).unwrap()).collect();
        canonical(text.as_bytes(), &pointers).map(|v| String::from_utf8(v).unwrap())
    }

    #[test]
    fn canonical_form_ignores_order_space_and_escapes_only() {
        assert_eq!(
            canon(" { \"b\" : [ 1 , {\"y\":null,\"x\":true} ] , \"a\" : \"\\u0041\" } ").unwrap(),
            r#"{"a":"A","b":[1,{"x":true,"y":null}]}"#
        );
        assert_ne!(canon("1.0"), canon("1"));
        assert_ne!(canon("12345678901234567890123"), canon("12345678901234567890124"));
        assert_ne!(canon("[1,2]"), canon("[2,1]"));
        assert_eq!(canon(r#"{"a":1,"a":1}"#), None);
        assert_eq!(canon("{"), None);
    }

    /// Stored fingerprints depend on this form.
    #[test]
    fn golden_canonical_forms() {
        for (text, expected) in [
            ("0", "0"),
            (" -1.50E+3 ", "-1.50E+3"),
            ("\t[ ]\n", "[]"),
            ("{ }", "{}"),
            ("[[],{},[{}]]", "[[],{},[{}]]"),
            (r#""\u0041\/\"\\\n\u0001é\ud83d\ude00""#, r#""A/\"\\\n\u0001é😀""#),
            (r##"{"":1,"\"":2,"!":3,"#":4}"##, r##"{"":1,"!":3,"\"":2,"#":4}"##),
            (
                r#"{"b":{"d":1,"c":{"f":[],"e":2}},"a":{"z":0,"y":0}}"#,
                r#"{"a":{"y":0,"z":0},"b":{"c":{"e":2,"f":[]},"d":1}}"#,
            ),
            (
                r#"[{"b":1,"a":2},{"a":1,"b":2},{"b":3,"a":{"d":4,"c":5}}]"#,
                r#"[{"a":2,"b":1},{"a":1,"b":2},{"a":{"c":5,"d":4},"b":3}]"#,
            ),
            (r#"{"é":1,"z":2,"\u0061":3}"#, r#"{"a":3,"z":2,"é":1}"#),
        ] {
            assert_eq!(canon(text).as_deref(), Some(expected), "{text}");
            assert_eq!(canon(expected).as_deref(), Some(expected), "the form is stable");
        }
    }

    #[test]
    fn contract_5_4_what_cannot_be_read_has_no_canonical_form() {
        for text in [
            "",
            " ",
            "{",
            "[1,]",
            "1 2",
            "01",
            "'a'",
            "\"a\nb\"",
            r#""\ud800""#,
            r#"{"\udc00":1}"#,
            r#"[{"a":"\ud800\u0041"}]"#,
            r#"{"b":1,"a":2,"b":3}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"x":{"a":1,"a":1}}]"#,
        ] {
            assert_eq!(canon(text), None, "{text}");
        }
        assert_eq!(canonical(b"\"\xff\"", &[]), None);
        // A value that is left out must have a canonical form as well.
        assert_eq!(canon_without(&["/a"], r#"{"a":"\ud800"}"#), None);
        assert_eq!(canon_without(&["/a"], r#"{"a":1,"a":2}"#), None);
    }

    #[test]
    fn contract_5_4_values_are_left_out_wherever_they_are() {
        for (pointers, text, expected) in [
            (&["/a"][..], r#"{"a":1,"b":2}"#, r#"{"b":2}"#),
            (&["/a"], r#"{"b":2,"a":1}"#, r#"{"b":2}"#),
            (&["/a"], r#"{"a":{"x":[1,{"z":1,"y":2}]}}"#, "{}"),
            (&["/a", "/c"], r#"{"d":4,"c":3,"b":2,"a":1}"#, r#"{"b":2,"d":4}"#),
            (
                &["/b/x"],
                r#"{"b":{"y":2,"x":1},"a":{"x":1}}"#,
                r#"{"a":{"x":1},"b":{"y":2}}"#,
            ),
            (&["/0"], "[1,2,3]", "[2,3]"),
            (&["/0", "/2"], "[1,2,3]", "[2]"),
            (&["/1/a"], r#"[{"a":1},{"a":1,"b":2}]"#, r#"[{"a":1},{"b":2}]"#),
            (&["/0"], r#"{"1":"y","0":"x"}"#, r#"{"1":"y"}"#),
            (&["/00", "/-", "/+1"], "[1,2]", "[1,2]"),
            (&["/a", "/a/b"], r#"{"a":{"b":1}}"#, "{}"),
            (&["/a~1b", "/c~0d"], r#"{"a/b":1,"c~d":2,"e":3}"#, r#"{"e":3}"#),
            (&["/a"], r#"{"\u0061":1,"b":2}"#, r#"{"b":2}"#),
            (&["/a/b"], r#"{"a":7}"#, r#"{"a":7}"#),
            (&["/a"], "7", "7"),
        ] {
            assert_eq!(
                canon_without(pointers, text).as_deref(),
                Some(expected),
                "{pointers:?} {text}"
            );
        }
    }

    #[test]
    fn nesting_beyond_the_limit_is_refused_without_recursing_further() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert!(canonical(nested(MAX_DEPTH).as_bytes(), &[]).is_some());
        assert!(canonical(nested(MAX_DEPTH + 1).as_bytes(), &[]).is_none());
        assert!(canonical(nested(100_000).as_bytes(), &[]).is_none());
    }

    /// The body is 2 MB long and nested 62 levels deep. In the worst case, the members are in the
    /// wrong order at each level.
    #[test]
    fn contract_5_4_a_nested_body_costs_as_much_as_a_flat_one() {
        const SIZE: usize = 2_000_000;
        let flat: String = (0..SIZE / 16).map(|n| format!(r#","{n:010}":1"#)).collect();
        let flat = format!("{{{}}}", &flat[1..]);
        let within = |open: &str, close: &str, inner: &str| format!("{}{inner}{}", open.repeat(62), close.repeat(62));
        let filling = format!("\"{}\"", "x".repeat(SIZE));
        let cost = |body: &str| {
            work::of(|| {
                canon(body).unwrap();
            })
        };
        let of_flat = cost(&flat) as f64 / flat.len() as f64;
        for (open, close) in [
            ("[", "]"),
            (r#"{"a":"#, "}"),
            (r#"{"b":"#, r#","a":1}"#),
            (r#"{"b":[],"a":"#, "}"),
        ] {
            let nested = within(open, close, &filling);
            let of_nested = cost(&nested) as f64 / nested.len() as f64;
            assert!(of_nested <= 1.5 * of_flat, "{open} {of_nested} {of_flat}");
        }
        assert!(
            of_flat <= 4.0,
            "each byte is checked, read, written and moved at most once: {of_flat}"
        );
    }

    /// Compares the form with a model that builds the value with sorted members.
    #[test]
    fn the_form_agrees_with_a_parsed_value() {
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..2000 {
            let text = value(&mut random, 4);
            let parsed: serde_json::Value = serde_json::from_str(&text).unwrap();
            // serde_json's map is sorted by name.
            assert_eq!(canon(&text), Some(parsed.to_string()), "{text}");
        }
    }

    fn value(random: &mut fastrand::Rng, depth: usize) -> String {
        let space = [" ", "", "\n"][random.usize(..3)];
        let inner = |random: &mut fastrand::Rng| value(random, depth - 1);
        let text = match random.usize(..if depth == 0 { 3 } else { 6 }) {
            0 => random.u16(..).to_string(),
            1 => format!("\"{}\"", random.alphabetic()),
            2 => ["true", "null", "false"][random.usize(..3)].to_owned(),
            3 => {
                let values: Vec<_> = (0..random.usize(..4)).map(|_| inner(random)).collect();
                format!("[{}]", values.join(","))
            }
            _ => {
                let mut names: Vec<_> = ('a'..'f').collect();
                random.shuffle(&mut names);
                let members: Vec<_> = names[..random.usize(..5)]
                    .iter()
                    .map(|name| format!("\"{name}\"{space}:{}", inner(random)))
                    .collect();
                format!("{{{}}}", members.join(","))
            }
        };
        format!("{space}{text}{space}")
    }
}
