//! The hostile set: files that are no plugins, plugins that do not open, and plugins that open and then do harm.

use super::*;

/// What has to come of a guest.
#[derive(Debug, Clone, Copy)]
pub enum Fate {
    /// It is refused when it is loaded or opened: the error's code, and a part of its text.
    Refused(&'static str, &'static str),
    /// It opens; every row goes to quarantine with this in the reason.
    Fails(&'static str),
    /// It opens and does its work, whatever else it tries.
    Works,
}

pub struct Hostile {
    pub name: &'static str,
    pub bytes: Vec<u8>,
    pub grants: &'static [&'static str],
    pub fate: Fate,
}

use Fate::{Fails, Refused, Works};

/// Makes the compiler's or the optimiser's life no easier, and never ends.
const LOOP: &str =
    "(loop $l (global.set $free (i32.add (global.get $free) (i32.const 1))) (br $l)) (unreachable)";
const LOG: &str = "(import \"flumen:plugin/log@0.1.0\" \"write\" (func $log (param i32 i32 i32)))";
const METRICS: &str = "(import \"flumen:plugin/metrics@0.1.0\" \"add\" (func $add (param i32 i32 i64)))";
const CLOCK: &str = "(import \"flumen:plugin/clock@0.1.0\" \"now\" (func $now (result i64)))";

pub fn all() -> Vec<Hostile> {
    let mut set = Vec::new();
    no_plugins(&mut set);
    bombs(&mut set);
    shapes(&mut set);
    opening(&mut set);
    processing(&mut set);
    memory(&mut set);
    lies(&mut set);
    host_calls(&mut set);
    set
}

fn add(set: &mut Vec<Hostile>, name: &'static str, bytes: Vec<u8>, fate: Fate) {
    set.push(Hostile { name, bytes, grants: &[], fate });
}

fn good() -> Forge {
    Forge::good()
}

fn wat(text: &str) -> Vec<u8> {
    wat::parse_str(text).unwrap()
}

fn no_plugins(set: &mut Vec<Hostile>) {
    let (module, component) = (good().module(), good().component());
    let cut = |bytes: &[u8], at: usize| bytes[..at].to_vec();
    add(set, "empty", Vec::new(), Refused("plugin-damaged", "it is empty"));
    add(set, "script", b"#!/bin/sh\n\x1b[31mrm".to_vec(), Refused("plugin-not-wasm", "\\x1b[31mr"));
    add(set, "magic-alone", b"\0asm".to_vec(), Refused("plugin-damaged", "within its first 8 bytes"));
    add(set, "future-version", b"\0asm\x02\0\0\0".to_vec(), Refused("plugin-damaged", "unknown version"));
    add(set, "module-cut", cut(&module, module.len() / 2), Refused("plugin-damaged", "guest.wasm"));
    add(set, "component-cut", cut(&component, component.len() / 2), Refused("plugin-damaged", "guest.wasm"));
    add(
        set,
        "component-cut-by-a-byte",
        cut(&component, component.len() - 1),
        Refused("plugin-damaged", "guest.wasm"),
    );
    let noise: Vec<u8> = (0..4_096_u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    add(set, "module-noise", [CORE, &noise].concat(), Refused("plugin-damaged", "guest.wasm"));
    add(set, "component-noise", [COMPONENT, &noise].concat(), Refused("plugin-damaged", "guest.wasm"));
    add(set, "module-of-nothing", CORE.to_vec(), Refused("plugin-wrong-world", "none"));
    add(set, "component-of-nothing", COMPONENT.to_vec(), Refused("plugin-wrong-world", "none"));
    let claims = [CORE, &[1], leb(u64::from(u32::MAX)).as_slice()].concat();
    add(set, "section-of-4-gib", claims, Refused("plugin-damaged", "guest.wasm"));
    let metadata = [module.clone(), section(0, b"\x0fcomponent-type:\xff\xff\xff")].concat();
    add(set, "metadata-damaged", metadata, Refused("plugin-not-a-plugin", "guest.wasm"));
    let name = section(0, &[leb(3), b"\x1b[m".to_vec()].concat());
    add(set, "section-name-with-control-characters", [good().component(), name].concat(), Works);
}

fn bombs(set: &mut Vec<Hostile>) {
    let types = |count: u64| {
        let list = [leb(count), [0x60, 0, 0].repeat(count as usize)].concat();
        [CORE, &section(1, &list)].concat()
    };
    add(set, "types-by-the-million", types(1_200_000), Refused("plugin-damaged", "types count"));
    add(set, "types-just-allowed", types(900_000), Refused("plugin-wrong-world", "none"));
    let mut nested = COMPONENT.to_vec();
    for _ in 0..2_000 {
        nested = [COMPONENT, &section(4, &nested)].concat();
    }
    add(set, "components-2000-deep", nested, Refused("plugin-damaged", "more than 32 deep"));
    let list_of = |count: u64| {
        let first = vec![0x73_u8];
        let rest = (1..count).flat_map(|at| [vec![0x70], sleb(at - 1)].concat());
        [COMPONENT, &section(7, &[leb(count), first, rest.collect()].concat())].concat()
    };
    add(set, "lists-of-lists-5000-deep", list_of(5_000), Refused("plugin-damaged", "nesting is too deep"));
    let segments = |count: u32, step: u32| {
        let one = |at: u32| format!("(data (i32.const {}) \"x\")", HEAP_AT + at * step);
        Forge { memory: "950", extra: (0..count).map(one).collect(), ..good() }.module()
    };
    add(set, "data-segments-all-over-60-mib", segments(20_000, 3_000), Works);
    add(set, "data-segments-100001", segments(100_001, 1), Refused("plugin-damaged", "data segments count"));
    let far = Forge { extra: "(data (i32.const 0x7fffff00) \"x\")".into(), ..good() };
    add(set, "data-segment-outside", far.module(), Refused("plugin-open", "out of bounds"));
    let many = (0..5).map(|at| format!("(memory $m{at} 1)")).collect();
    add(set, "memories-six", Forge { extra: many, ..good() }.module(), Refused("plugin-compile", "memories"));
    let huge = Forge { memory: "65536", ..good() };
    add(set, "memory-of-4-gib", huge.module(), Refused("plugin-open", "its limit is 67108864"));
    let tables = (0..80).map(|at| format!("(table $t{at} 1 funcref)")).collect();
    add(
        set,
        "tables-eighty",
        Forge { extra: tables, ..good() }.module(),
        Refused("plugin-compile", "tables"),
    );
    let table = Forge { extra: "(table 10000000 funcref)".into(), ..good() };
    add(set, "table-of-10-million", table.module(), Refused("plugin-compile", "table"));
    // A hundred instances of its first module, behind everything else.
    let instances = [leb(100), [0, 0, 0].repeat(100)].concat();
    let instances = [good().component(), section(2, &instances)].concat();
    add(set, "core-instances-hundred", instances, Refused("plugin-compile", "instances"));
    let blocks = format!("{} {} (i32.const {ANSWER_AT})", "(block ".repeat(2_000), ")".repeat(2_000));
    add(set, "blocks-2000-deep", Forge { process: blocks, ..good() }.module(), Works);
    let targets = "0 ".repeat(60_000);
    let switch = format!("(block (br_table {targets} (i32.const 7))) (i32.const {ANSWER_AT})");
    add(set, "switch-of-60000", Forge { process: switch, ..good() }.module(), Works);
    let locals = format!("(local {}) (i32.const {ANSWER_AT})", "i64 ".repeat(49_000));
    add(set, "locals-49000", Forge { process: locals, ..good() }.module(), Works);
    let atomic = Forge { extra: "(memory 1 1 shared)".into(), ..good() };
    add(set, "shared-memory", atomic.module(), Refused("plugin-damaged", "shared"));
    let wide = Forge { extra: "(memory i64 1)".into(), ..good() };
    add(set, "memory-of-64-bits", wide.module(), Refused("plugin-compile", "memories"));
}

fn shapes(set: &mut Vec<Hostile>) {
    let guest = |functions: &str, exports: &str| {
        wat(&format!(
            "(component
               (core module $m (memory (export \"memory\") 1)
                 (func (export \"f\") (param i32) (result i32) (local.get 0)))
               (core instance $i (instantiate $m))
               {functions}
               (instance $g {exports})
               (export \"flumen:plugin/guest@0.1.0\" (instance $g)))"
        ))
    };
    let number = "(func $f (param \"config\" u32) (result u32) (canon lift (core func $i \"f\")))";
    let both = "(export \"open\" (func $f)) (export \"process\" (func $f))";
    add(set, "open-of-other-types", guest(number, both), Refused("plugin-wrong-shape", "#open"));
    let one = "(export \"open\" (func $f))";
    add(set, "one-function-only", guest(number, one), Refused("plugin-wrong-shape", "guest.wasm"));
    let instance = "(instance $n) ";
    let no_function = "(export \"open\" (instance $n)) (export \"process\" (instance $n))";
    add(
        set,
        "open-is-no-function",
        guest(instance, no_function),
        Refused("plugin-wrong-shape", "not a function"),
    );
    add(set, "interface-of-nothing", guest("", ""), Refused("plugin-wrong-shape", "missing"));
    let evil = wat("(component (import \"evil\" (func)))");
    add(set, "unknown-import", evil, Refused("plugin-wrong-world", "none"));
    let import = |interface: &str, ty: &str| {
        let good = wat::parse_bytes(&good().component()).unwrap().into_owned();
        // An import before everything else, in a section of its own.
        let text = format!("(component (import \"{interface}\" (instance {ty})))");
        let with = wat(&text);
        [&with[..], &good[8..]].concat()
    };
    add(set, "import-of-nobody", import("wicked:thing/api", ""), Refused("plugin-damaged", "guest.wasm"));
    let newer = "(component (type $t (instance (export \"now\" (func (result s64)))))
        (import \"flumen:plugin/clock@9.9.0\" (instance (type $t))) (instance $g)
        (export \"flumen:plugin/guest@0.1.0\" (instance $g)))";
    add(set, "power-of-another-release", wat(newer), Refused("plugin-wrong-shape", "missing"));
    let asks = Forge {
        world: "interceptor",
        imports: CLOCK.into(),
        extra: "(func (drop (call $now)))".into(),
        ..good()
    };
    add(set, "power-not-granted", asks.module(), Refused("plugin-not-granted", "clock"));
    let control = "(module (import \"\\1b[31m\" \"\\07\" (func)))";
    add(
        set,
        "import-name-with-control-characters",
        wat(control),
        Refused("plugin-not-a-plugin", "guest.wasm"),
    );
}

fn opening(set: &mut Vec<Hostile>) {
    let open = |code: &str| Forge { open: code.into(), ..good() }.module();
    let start =
        |code: &str| Forge { extra: format!("(func $start {code}) (start $start)"), ..good() }.module();
    let recursion = "(func $deep (param i64) (result i64) (i64.add (call $deep (i64.add (local.get 0) (i64.const 1))) (i64.const 1)))";
    add(set, "start-loops", start(LOOP), Refused("plugin-open", "took longer than"));
    add(set, "start-traps", start("(unreachable)"), Refused("plugin-open", "unreachable"));
    let deep = Forge {
        extra: format!("{recursion} (func $start (drop (call $deep (i64.const 0)))) (start $start)"),
        ..good()
    };
    add(set, "start-recurses", deep.module(), Refused("plugin-open", "stack exhausted"));
    add(set, "open-loops", open(LOOP), Refused("plugin-open", "took longer than"));
    add(set, "open-traps", open("(unreachable)"), Refused("plugin-open", "unreachable"));
    let deep = Forge {
        open: "(drop (call $deep (i64.const 0))) (unreachable)".into(),
        extra: recursion.into(),
        ..good()
    };
    add(set, "open-recurses", deep.module(), Refused("plugin-open", "stack exhausted"));
    let grow = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)";
    add(set, "open-eats-memory", open(grow), Refused("plugin-open", "its limit is 67108864"));
    add(set, "open-answers-outside", open("(i32.const -16)"), Refused("plugin-open", "ABI"));
    add(
        set,
        "open-answers-between",
        open(&format!("(i32.const {})", OPEN_AT + 1)),
        Refused("plugin-open", "ABI"),
    );
    let with = |words: &[u32], more: &[u8]| {
        Forge { open_data: [numbers(words), more.to_vec()].concat(), ..good() }.module()
    };
    let behind = OPEN_AT + 16;
    add(set, "open-answers-neither", with(&[7, 1, 0, 0], b""), Refused("plugin-open", "ABI"));
    add(
        set,
        "open-reads-2-billion-headers",
        with(&[0, 1, behind, 1 << 31], b""),
        Refused("plugin-open", "ABI"),
    );
    let names = |bytes: &[u8], times: u32| {
        let list = numbers(&[behind + 8 * times, bytes.len() as u32]).repeat(times as usize);
        with(&[0, 1, behind, times], &[list, bytes.to_vec()].concat())
    };
    add(set, "open-reads-no-name", names(b"", 1), Refused("plugin-open", "empty"));
    add(set, "open-reads-bad-utf8", names(b"\xff\xfe", 1), Refused("plugin-open", "ABI"));
    add(set, "open-reads-twice", names(b"host", 2), Refused("plugin-open", "twice"));
    add(set, "open-reads-control-characters", names(b"\x1b[31m\0\n", 1), Works);
    let error = |bytes: &[u8]| with(&[1, behind, bytes.len() as u32, 0], bytes);
    add(
        set,
        "open-refuses-with-control-characters",
        error(b"\x1b[31mno\x07\r\nerror: all is well"),
        Refused("plugin-refused", "\\u{1b}[31mno\\u{7}"),
    );
    add(set, "open-refuses-in-bad-utf8", error(b"\xff\xff\xff"), Refused("plugin-open", "ABI"));
    let long = with(&[1, 0, 131_072, 0], b"");
    add(set, "open-refuses-in-128-kib", long, Refused("plugin-refused", "guest.wasm"));
}

fn processing(set: &mut Vec<Hostile>) {
    let process = |code: &str| Forge { process: code.into(), ..good() }.module();
    add(set, "process-loops", process(LOOP), Fails("took longer than"));
    add(set, "process-traps", process("(unreachable)"), Fails("unreachable"));
    let zero = Forge {
        process: "(i32.div_u (i32.const 1) (global.get $zero))".into(),
        extra: "(global $zero (mut i32) (i32.const 0))".into(),
        ..good()
    };
    add(set, "process-divides-by-zero", zero.module(), Fails("divide by zero"));
    let deep = Forge { process: "(call $process (local.get 0) (local.get 1) (local.get 2) (local.get 3) (local.get 4) (local.get 5) (local.get 6) (local.get 7) (local.get 8) (local.get 9) (local.get 10) (local.get 11) (local.get 12) (local.get 13) (local.get 14) (local.get 15)) (drop) (unreachable)".into(), ..good() };
    add(set, "process-recurses", deep.module(), Fails("stack exhausted"));
    let indirect = Forge {
        process: "(call_indirect (result i32) (i32.const 9))".into(),
        extra: "(table 2 funcref)".into(),
        ..good()
    };
    add(set, "process-calls-outside-its-table", indirect.module(), Fails("table"));
    let wild = process("(i32.load (i32.const 0x7ffffff0))");
    add(set, "process-reads-outside-its-memory", wild, Fails("out of bounds"));
    let realloc = |code: &str| Forge { realloc: code.into(), ..good() }.module();
    // The first call of it is the configuration's, at `open`.
    add(set, "realloc-loops", realloc(LOOP), Refused("plugin-open", "took longer than"));
    add(set, "realloc-traps", realloc("(unreachable)"), Refused("plugin-open", "unreachable"));
    add(set, "realloc-answers-outside", realloc("(i32.const -8)"), Refused("plugin-open", "ABI"));
    let realloc_later = |code: &str| {
        let code = format!(
            "(if (result i32) (i32.lt_u (local.get $size) (i32.const 8)) (then (i32.const {HEAP_AT})) (else {code}))"
        );
        realloc(&code)
    };
    add(set, "realloc-answers-outside-later", realloc_later("(i32.const -8)"), Fails("ABI"));
    add(set, "realloc-loops-later", realloc_later(LOOP), Fails("took longer than"));
    let post = |code: &str| Forge { post: code.into(), ..good() }.module();
    add(set, "post-return-loops", post(LOOP), Fails("took longer than"));
    add(set, "post-return-traps", post("(unreachable)"), Fails("unreachable"));
}

fn memory(set: &mut Vec<Hostile>) {
    let process = |code: &str| Forge { process: code.into(), ..good() };
    let grow = "(loop $l (br_if $l (i32.ne (memory.grow (i32.const 16)) (i32.const -1)))) (unreachable)";
    add(set, "process-eats-memory", process(grow).module(), Fails("its limit is 67108864"));
    let all =
        "(if (i32.eq (memory.grow (i32.const 65000)) (i32.const -1)) (then (unreachable))) (unreachable)";
    add(set, "process-wants-4-gib-at-once", process(all).module(), Fails("its limit is 67108864"));
    let two = "(loop $l (br_if $l (i32.ne (memory.grow $b (i32.const 16)) (i32.const -1)))) (unreachable)";
    let two = Forge { extra: "(memory $b 1)".into(), ..process(two) };
    add(set, "process-eats-a-second-memory", two.module(), Refused("plugin-compile", "memories"));
    let table = "(loop $l (br_if $l (i32.ne (table.grow (ref.null func) (i32.const 1000)) (i32.const -1)))) (unreachable)";
    let table = Forge { extra: "(table 1 funcref)".into(), ..process(table) };
    add(set, "process-grows-a-table", table.module(), Fails("unreachable"));
    let fill =
        "(loop $l (memory.fill (i32.const 65536) (i32.const 1) (i32.const 65536)) (br $l)) (unreachable)";
    add(set, "process-fills-for-ever", process(fill).module(), Fails("took longer than"));
    // Twice as much as before for each batch that comes.
    let leak = format!("(drop (memory.grow (memory.size))) (i32.const {ANSWER_AT})");
    add(set, "process-leaks", process(&leak).module(), Works);
}

fn lies(set: &mut Vec<Hostile>) {
    let answer = |answer: Answer| Forge::answering(answer).module();
    let blank = Answer::unchanged;
    let words = |pairs: &[(usize, u32)]| {
        let mut answer = blank();
        pairs.iter().for_each(|(at, word)| answer.words[*at] = *word);
        answer
    };
    let at = |place: u32| Forge { process: format!("(i32.const {place})"), ..good() }.module();
    add(set, "answer-outside", at(0xffff_ff00), Fails("ABI"));
    add(set, "answer-between", at(ANSWER_AT + 2), Fails("ABI"));
    add(set, "answer-at-the-end-of-memory", at(131_072 - 8), Fails("ABI"));
    add(set, "answer-is-neither", answer(words(&[(word::RESULT, 9)])), Fails("ABI"));
    add(set, "option-is-neither", answer(words(&[(word::BODY, 2)])), Fails("ABI"));
    add(set, "rows-from-outside", answer(words(&[(1, 1), (2, 0xffff_0000), (3, 4)])), Fails("ABI"));
    add(set, "rows-from-2-gib", answer(words(&[(1, 1), (2, DATA_AT), (3, 1 << 31)])), Fails("answer"));
    add(
        set,
        "rows-from-in-halves",
        answer(blank().some(word::ROWS_FROM, b"\0\0\0\0\0\0")),
        Fails("6 bytes are not a list"),
    );
    add(
        set,
        "rows-from-of-nobody",
        answer(blank().some(word::ROWS_FROM, &numbers(&[77]))),
        Fails("names row 77"),
    );
    add(
        set,
        "rows-from-of-minus-one",
        answer(blank().some(word::ROWS_FROM, &numbers(&[u32::MAX]))),
        Fails("names row 4294967295"),
    );
    // 70,000 rows out of one.
    let many =
        Forge { memory: "8", ..Forge::answering(words(&[(1, 1), (2, HEAP_AT + 65_536), (3, 280_000)])) };
    add(set, "rows-from-too-many", many.module(), Fails("a batch has at most 65536"));
    add(set, "body-begins-late", answer(blank().body(&[1, 1], b"x")), Fails("the first offset is 1"));
    add(set, "body-ends-late", answer(blank().body(&[0, 9], b"x")), Fails("the last offset is 9"));
    add(set, "body-ends-early", answer(blank().body(&[0, 1], b"xyz")), Fails("the last offset is 1"));
    add(
        set,
        "body-of-minus-one",
        answer(blank().body(&[0, u32::MAX], b"x")),
        Fails("the last offset is 4294967295"),
    );
    add(set, "body-of-two-rows", answer(blank().body(&[0, 1, 1], b"x")), Fails("12 bytes of offsets"));
    let falling = blank().some(word::ROWS_FROM, &numbers(&[0, 0])).body(&[0, 3, 2], b"xy");
    add(set, "body-falls", answer(falling), Fails("less than the one before"));
    add(
        set,
        "time-too-short",
        answer(blank().some(word::TIME, b"\0\0\0\0")),
        Fails("4 bytes for 1 rows of 8"),
    );
    let headers = |headers: &[Header<'_>]| answer(blank().headers(headers));
    add(set, "header-without-a-name", headers(&[(b"", &[0, 1], b"x", None)]), Fails("is empty or over"));
    let long: &'static [u8] = &[b'n'; 256];
    add(set, "header-name-too-long", headers(&[(long, &[0, 1], b"x", None)]), Fails("is empty or over"));
    add(set, "header-name-in-bad-utf8", headers(&[(b"\xc3\x28", &[0, 1], b"x", None)]), Fails("ABI"));
    add(
        set,
        "header-name-with-control-characters",
        headers(&[(b"\x1b[31m\0\n", &[0, 1], b"x", None)]),
        Works,
    );
    let twice: [Header<'_>; 2] = [(b"a", &[0, 1], b"x", None), (b"a", &[0, 1], b"y", None)];
    add(set, "header-twice", headers(&twice), Fails("is given twice"));
    add(set, "header-in-bad-utf8", headers(&[(b"a", &[0, 2], b"\xff\xfe", None)]), Fails("is not UTF-8"));
    let split =
        blank().some(word::ROWS_FROM, &numbers(&[0, 0])).headers(&[(b"a", &[0, 1, 2], "é".as_bytes(), None)]);
    add(set, "header-cuts-a-character", answer(split), Fails("is not UTF-8"));
    add(
        set,
        "header-present-too-long",
        headers(&[(b"a", &[0, 1], b"x", Some(b"\x01\x01"))]),
        Fails("2 bytes of presence"),
    );
    add(
        set,
        "header-absent-with-a-value",
        headers(&[(b"a", &[0, 1], b"x", Some(b"\0"))]),
        Fails("is not present but has a value"),
    );
    let crowd: Vec<Vec<u8>> = (0..1_100).map(|at| format!("h{at}").into_bytes()).collect();
    let crowd: Vec<Header<'_>> =
        crowd.iter().map(|name| (name.as_slice(), &[0, 0][..], &b""[..], None)).collect();
    add(set, "headers-by-the-thousand", answer(blank().headers(&crowd)), Fails("a batch has at most"));
    add(
        set,
        "headers-2-billion",
        answer(words(&[(word::SET_HEADERS, DATA_AT), (word::SET_HEADERS + 1, 1 << 31)])),
        Fails("ABI"),
    );
    // The same 30 MiB of memory as the value of a hundred headers.
    let mut alias = blank();
    let mut list = Vec::new();
    (0..100_u32).for_each(|_| list.extend(numbers(&[DATA_AT, 1, DATA_AT, 8, 65_536, 30 << 20, 0, 0, 0])));
    let place = alias.store(&list);
    (alias.words[word::SET_HEADERS], alias.words[word::SET_HEADERS + 1]) = (place, 100);
    let alias = Forge { memory: "512", ..Forge::answering(alias) };
    add(set, "headers-that-share-30-mib", alias.module(), Fails("larger than its limit"));
    add(set, "rejects-nobody", answer(blank().rejected(&[(5, b"x")])), Fails("names row 5"));
    add(
        set,
        "rejects-more-than-there-are",
        answer(blank().rejected(&[(0, b"x"), (0, b"y")])),
        Fails("2 rejections of 1 rows"),
    );
    let both = blank().some(word::ROWS_FROM, &numbers(&[0])).rejected(&[(0, b"x")]);
    add(set, "rejects-what-it-keeps", answer(both), Fails("row 0"));
    add(set, "rejects-in-bad-utf8", answer(blank().rejected(&[(0, b"\xff")])), Fails("ABI"));
    let mut text = words(&[(word::RESULT, 1)]);
    let place = text.store(b"\x1b]0;owned\x07");
    (text.words[1], text.words[2]) = (place, 10);
    add(
        set,
        "error-with-control-characters",
        answer(text),
        Fails("the plugin failed: \\u{1b}]0;owned\\u{7}"),
    );
    let remove = words(&[(word::REMOVE_HEADERS, DATA_AT), (word::REMOVE_HEADERS + 1, 0x2000_0001)]);
    add(set, "removes-half-a-billion-headers", answer(remove), Fails("ABI"));
}

fn host_calls(set: &mut Vec<Hostile>) {
    const GRANTS: &[&str] = &["log", "metrics", "clock"];
    let mut granted = |name, imports: String, part: &str, code: &str, fate| {
        let mut guest = Forge { world: "interceptor", imports, ..good() };
        match part {
            "realloc" => guest.realloc = code.into(),
            "post" => guest.post = code.into(),
            _ => guest.process = code.into(),
        }
        set.push(Hostile { name, bytes: guest.module(), grants: GRANTS, fate });
    };
    let times = |count: u32, call: &str| {
        format!(
            "(local $n i32) (loop $l {call} (local.set $n (i32.add (local.get $n) (i32.const 1)))
             (br_if $l (i32.lt_u (local.get $n) (i32.const {count})))) (i32.const {ANSWER_AT})"
        )
    };
    let log = |at: u32, len: u32| format!("(call $log (i32.const 3) (i32.const {at}) (i32.const {len}))");
    granted("log-floods", LOG.into(), "process", &times(200_000, &log(OPEN_AT, 8)), Works);
    granted("log-of-100-kib-each", LOG.into(), "process", &times(2_000, &log(0, 100_000)), Works);
    granted(
        "log-floods-for-ever",
        LOG.into(),
        "process",
        &times(u32::MAX, &log(OPEN_AT, 8)),
        Fails("took longer than"),
    );
    granted(
        "log-outside",
        LOG.into(),
        "process",
        &format!("{} (i32.const {ANSWER_AT})", log(0xffff_0000, 99)),
        Fails("ABI"),
    );
    let level = format!("(call $log (i32.const 99) (i32.const 0) (i32.const 1)) (i32.const {ANSWER_AT})");
    granted("log-of-no-level", LOG.into(), "process", &level, Fails("ABI"));
    let metric = "(i32.store8 (i32.const 512) (i32.add (i32.const 97) (i32.rem_u (local.get $n) (i32.const 26))))
        (i32.store8 (i32.const 513) (i32.add (i32.const 97) (i32.rem_u (i32.div_u (local.get $n) (i32.const 26)) (i32.const 26))))
        (call $add (i32.const 512) (i32.const 2) (i64.const 1))";
    granted("metrics-of-676-names", METRICS.into(), "process", &times(2_000, metric), Works);
    let bad = "(i32.store (i32.const 512) (i32.const 0x6d335b1b)) (call $add (i32.const 512) (i32.const 4) (i64.const -1))";
    granted("metric-name-with-control-characters", METRICS.into(), "process", &times(1, bad), Works);
    let bad = "(i32.store (i32.const 512) (i32.const 0xffffff)) (call $add (i32.const 512) (i32.const 3) (i64.const 1))";
    granted("metric-name-in-bad-utf8", METRICS.into(), "process", &times(1, bad), Fails("ABI"));
    granted(
        "clock-for-ever",
        CLOCK.into(),
        "process",
        &times(u32::MAX, "(drop (call $now))"),
        Fails("took longer than"),
    );
    // The host must not be entered while it is at work in the guest.
    let inside = format!("{} (i32.const {HEAP_AT})", log(OPEN_AT, 8));
    granted("realloc-calls-the-host", LOG.into(), "realloc", &inside, Refused("plugin-open", "leave"));
    granted("post-return-calls-the-host", LOG.into(), "post", &log(OPEN_AT, 8), Fails("leave"));
}
