use std::fmt::Write as _;

use super::split::Doc;
use super::*;

const SERVICE: &str = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n";

fn names(text: &str, json: bool) -> Vec<(usize, String)> {
    let found = read(text, json).unwrap();
    found.objects.into_iter().map(|(doc, object)| (doc, object.key().to_string())).collect()
}

fn fault(text: &str, json: bool) -> (usize, usize, String) {
    let fault = read(text, json).unwrap_err();
    (fault.document, fault.line, fault.what)
}

#[test]
fn documents_are_taken_apart_and_counted() {
    // (text, documents as (number, line))
    let cases: &[(&str, &[(usize, usize)])] = &[
        ("", &[]),
        ("\n# nothing\n", &[]),
        ("a: 1\n", &[(1, 1)]),
        ("---\na: 1\n", &[(1, 1)]),
        ("# head\n---\na: 1\n---\nb: 1\n", &[(1, 1), (2, 4)]),
        ("%YAML 1.2\n---\na: 1\n", &[(1, 1)]),
        ("a: 1\n---\n---\n# empty\n---\nb: 1\n", &[(1, 1), (4, 5)]),
        ("a: 1\n...\nb: 1\n", &[(1, 1), (2, 3)]),
        ("a: 1\n...\n---\nb: 1\n...\n", &[(1, 1), (2, 3)]),
        ("--- {a: 1}\n--- {b: 1}", &[(1, 1), (2, 2)]),
        ("a: |\n  ---\n  text\n---x: 1\n", &[(1, 1)]),
        ("a: 1\r\n---\r\nb: 1\r\n", &[(1, 1), (2, 2)]),
    ];
    for (text, want) in cases {
        let got: Vec<_> = split(text).iter().map(|d| (d.number, d.line)).collect();
        assert_eq!(&got[..], *want, "{text:?}");
    }
}

#[test]
fn the_kind_is_seen_without_parsing_where_that_is_safe() {
    let cases = [
        ("apiVersion: v1\nkind: Service\n", Some(("v1", "Service"))),
        ("---\nspec:\n  kind: No\nkind: Pod  \napiVersion: apps/v1\r\n", Some(("apps/v1", "Pod"))),
        ("apiVersion: v1\nkind: \"Service\"\n", None),
        ("apiVersion: v1\nkind: Service # why\n", None),
        ("apiVersion: v1\nkind: &a Service\n", None),
        ("apiVersion: v1\nkind: 5\n", None),
        ("apiVersion: v1\nkind: Service\nkind: Pod\n", None),
        ("apiVersion: v1\nkind:\n  Service\n", None),
        ("apiVersion: v1\n", None),
        ("{apiVersion: v1, kind: Service}", None),
    ];
    for (text, want) in cases {
        let doc = Doc { number: 1, line: 1, text };
        assert_eq!(doc.sniff(), want, "{text:?}");
    }
}

#[test]
fn objects_are_found_in_documents_and_lists() {
    let list = "
apiVersion: v1
items:
- apiVersion: v1
  kind: Service
  metadata: {name: a}
- {apiVersion: apps/v1, kind: Deployment, metadata: {name: d}, spec: {selector: {matchLabels: {}}}}
- kind: Node
  metadata: {name: n}
  apiVersion: v1
- {apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: Pod, metadata: {name: p}}]}
kind: List
---
kind: ServiceList
apiVersion: v1
items: [{metadata: {name: b}}, {metadata: {name: c, namespace: x}}]
---
kind: SecretList
apiVersion: v1
items: [1, 2]
---
kind: List
apiVersion: v1
items: null
---
null
---
apiVersion: example.com/v1
kind: Whatever
items: {not: a list}
1: [a]
---
apiVersion: serving.knative.dev/v1
kind: Service
spec: 5
";
    let want = ["Service default/a", "Node n", "Pod default/p", "Service default/b", "Service x/c"];
    let got = names(list, false);
    assert_eq!(got.iter().map(|(_, name)| name.as_str()).collect::<Vec<_>>(), want);
    assert_eq!(got.iter().map(|(doc, _)| *doc).collect::<Vec<_>>(), [1, 1, 1, 2, 2]);
}

#[test]
fn json_may_hold_several_documents() {
    let text = "{\"apiVersion\":\"v1\",\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"}}\n\
        {\"items\":[{\"metadata\":{\"name\":\"b\"}}],\"kind\":\"PodList\",\"apiVersion\":\"v1\"}\n";
    let want = [(1, "Service default/a".to_owned()), (2, "Pod default/b".to_owned())];
    assert_eq!(names(text, true), want);
    assert_eq!(names(text.lines().next().unwrap(), false), want[..1], "JSON in a YAML file");
    assert_eq!(names("\u{feff}", true), []);
    assert_eq!(names(&format!("\u{feff}{SERVICE}"), false), want[..1]);
}

#[test]
fn faults_name_document_line_and_reason() {
    let second = |doc: &str| format!("{SERVICE}---\n# the second one\n{doc}");
    // (document, line in the file, part of the text)
    let cases = [
        (
            second("apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec:\n  ports:\n  - port: 99999\n"),
            11,
            "from 1 to 65535",
        ),
        (second("apiVersion: v1\nkind: Service\nmetadata: {}\n"), 8, "missing field `name`"),
        (second("apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: [1]\n"), 9, "mapping"),
        (
            second(
                "apiVersion: v1\nkind: Service\nmetadata: {name: b}\nspec: {clusterIP: 10.0.0.1, clusterIPs: [10.0.0.2]}\n",
            ),
            6,
            "differs",
        ),
        (second("a: b\n  c: d\n"), 7, "mapping values are not allowed"),
        (second("kind: Service\nmetadata: {name: b}\n"), 6, "apiVersion is missing"),
        (second("apiVersion: v1\nmetadata: {name: b}\n"), 6, "kind is missing"),
        (second("kind: [x]\napiVersion: v1\n"), 6, "kind is missing or not a text"),
        (second("just text\n"), 6, "not a Kubernetes object"),
        (second("- apiVersion: v1\n"), 6, "not a Kubernetes object"),
        (second("apiVersion: v1\nkind: List\nitems: [5]\n"), 6, "item 1: not a Kubernetes object"),
        (second("apiVersion: v1\nkind: Service\nkind: Pod\nmetadata: {name: b}\n"), 8, "duplicate"),
        (second("apiVersion: v1\nkind: Service\nmetadata: {name: b}\nmetadata: {name: c}\n"), 9, "duplicate"),
        (second("apiVersion: v1\nkind: Service\nmetadata: {name: *nowhere}\n"), 8, "anchor"),
    ];
    for (text, line, part) in cases {
        let got = fault(&text, false);
        assert_eq!((got.0, got.1), (2, line), "{text}\n{got:?}");
        assert!(got.2.contains(part), "{got:?}");
        assert!(!got.2.contains('\n') && !got.2.contains("column"), "{got:?}");
    }
}

#[test]
fn json_faults_have_lines_too() {
    let good = "{\"apiVersion\":\"v1\",\n\"kind\":\"Service\",\"metadata\":{\"name\":\"a\"}}\n";
    let port = format!(
        "{good}\n{{\"apiVersion\":\"v1\",\"kind\":\"Service\",\n\"metadata\":{{\"name\":\"b\"}},\n\"spec\":{{\"ports\":[{{\"port\":0}}]}}}}"
    );
    let got = fault(&port, true);
    assert_eq!((got.0, got.1), (2, 6));
    assert!(got.2.contains("from 1 to 65535") && !got.2.contains("column"), "{got:?}");
    let got = fault(&format!("{good}\n{{\"kind\":\"Service\"}}"), true);
    assert_eq!((got.0, got.1), (2, 4));
    let got = fault(&format!("{good}{{\"kind\": oops}}"), true);
    assert_eq!((got.0, got.1), (2, 3));
    assert_eq!(fault(&"[".repeat(100_000), true).0, 1, "no stack is deep enough for this");
}

#[test]
fn bombs_are_defused() {
    let mut laughs = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for n in 1..12 {
        let before = format!("*a{}", n - 1);
        let _ = writeln!(laughs, "a{n}: &a{n} [{}]", [before.as_str(); 10].join(", "));
    }
    let text = format!("{laughs}apiVersion: v1\nkind: Service\nmetadata: {{name: a}}\n");
    let started = std::time::Instant::now();
    fault(&text, false);
    fault(&"[".repeat(100_000), false);
    fault(&"{a: ".repeat(100_000), false);
    let big = "x".repeat(300_000);
    let copies = vec!["*a"; 900].join(", ");
    fault(
        &format!("apiVersion: v1\nkind: Service\nmetadata: {{name: a, x: &a {big}}}\ny: [{copies}]\n"),
        false,
    );
    assert!(started.elapsed() < std::time::Duration::from_secs(5), "took {:?}", started.elapsed());
}

#[test]
fn an_outdated_slice_is_mentioned() {
    let found = read("apiVersion: discovery.k8s.io/v1beta1\nkind: EndpointSlice\n", false).unwrap();
    assert!(found.objects.is_empty());
    assert!(found.warnings[0].contains("v1beta1"), "{:?}", found.warnings);
}

mod properties {
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "([a-z:{}\\[\\]&*#%'\"|>!-]|\n|  |---\n|kind: |v1){0,60}") {
            let _ = super::read(&text, false);
            let _ = super::read(&text, true);
        }

        #[test]
        fn parts_of_documents_are_parts_of_the_text(text in "(---|\\.\\.\\.|#|a: 1|%X|\n| ){0,30}") {
            let docs = super::split(&text);
            let mut last = 0;
            for doc in docs {
                prop_assert!(doc.number > last);
                last = doc.number;
                let before: usize = text.split_inclusive('\n').take(doc.line - 1).map(str::len).sum();
                prop_assert!(text[before..].starts_with(doc.text), "{:?}", doc);
            }
        }
    }
}

#[test]
fn a_json_key_that_stands_twice_is_a_fault_with_its_line() {
    let node = "{\"apiVersion\": \"v1\", \"kind\": \"Node\", \"metadata\": {\"name\": \"a\"}}\n";
    for (text, line) in [
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"Node\",\n\"metadata\": {\"name\": \"b\",\n\"name\": \"c\"}}",
            4,
        ),
        (
            "{\"apiVersion\": \"v1\", \"kind\": \"Node\",\n\"metadata\": {}, \"metadata\": {\"name\": \"c\"}}",
            3,
        ),
        ("{\"apiVersion\": \"v1\", \"kind\": \"List\",\n\"items\": [],\n\"ite\\u006ds\": []}", 4),
    ] {
        let fault = read(&format!("{node}{text}"), true).unwrap_err();
        assert_eq!((fault.document, fault.line), (2, line), "{}", fault.what);
        assert!(fault.what.contains("stands twice"), "{}", fault.what);
    }
    // Documents of other kinds are passed over, whatever they hold.
    let other = "{\"apiVersion\": \"v1\", \"kind\": \"ConfigMap\", \"data\": {\"a\": 1, \"a\": null}}";
    assert_eq!(read(&format!("{node}{other}"), true).unwrap().objects.len(), 1);
}
