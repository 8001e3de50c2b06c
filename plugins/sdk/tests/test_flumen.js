// The SDK for JavaScript without a sandbox: what a plugin says, and what crosses. `cargo xtask test` bundles it with host.js in
// place of the host, and runs it. Whole plugins are tested by the cases of the examples.
import assert from "node:assert/strict";
import test from "node:test";

import * as http from "flumen/http";
import * as state from "flumen/state";
import * as tcp from "flumen/tcp";
import { Column, ConfigError, aggregator, codec, delivered, interceptor, retry, sink } from "flumen";

import { host } from "./host.js";

const bytes = (text) => new TextEncoder().encode(text);
const u32 = (...numbers) => new Uint8Array(Uint32Array.from(numbers).buffer);
const i64 = (...numbers) => new Uint8Array(BigInt64Array.from(numbers).buffer);
const column = (...values) => {
  const ends = [0];
  for (const value of values) ends.push(ends.at(-1) + bytes(value).length);
  return { offsets: u32(...ends), data: bytes(values.join("")) };
};
const batch = (bodies, headers = []) => ({ rows: bodies.length, body: column(...bodies), headers });
/** What a call throws as its error, which is no Error. */
const thrown = (call) => {
  try {
    call();
  } catch (error) {
    return error;
  }
  assert.fail("nothing was thrown");
};

test("an exception becomes an error with its words", () => {
  const { guest } = interceptor({
    open: (config) => {
      if (config.a) throw new ConfigError("config: a");
    },
    intercept() {
      throw new TypeError("x");
    },
  });
  assert.equal(thrown(() => guest.open('{"a":1}')), "config: a");
  assert.deepEqual(guest.open("{}"), { body: true, time: false, identity: false, headers: [] });
  assert.equal(thrown(() => guest.process(batch(["a"]))), "TypeError: x");
});

const made = (push) => {
  const { aggregation } = aggregator({
    open: () => ({ time: true, headers: "*", tickMs: 5 }),
    process: () => ({ rows: [0] }),
    tick: (now, events) => push(events),
  });
  const { reads, tickMs } = aggregation.open("{}");
  assert.deepEqual([reads.time, reads.headers, tickMs], [true, ["*"], 5]);
  const { rows, emitted } = aggregation.process(batch(["a", "b"]));
  assert.deepEqual([rows.rowsFrom, emitted], [u32(0), undefined]);
  return aggregation.tick(7n);
};

/** What becomes of these events: `say` is called with each and its edit. */
const said = (bodies, say) => {
  const { guest } = interceptor({ open: () => ({ body: true, headers: ["h"] }), intercept: say });
  guest.open("{}");
  const none = { name: "h", ...column(...bodies.map(() => "")), present: new Uint8Array((bodies.length + 7) >> 3) };
  return guest.process(batch(bodies, [none]));
};

test("what is said of an event is said of no other", () => {
  const { rowsFrom, setHeaders, rejected } = said(["a", "n", "b", "n", "c", "d", "e"], (event, edit) => {
    const { text } = event;
    if (text === "n") return;
    edit.setHeader("h", text);
    if (text === "a") edit.drop();
    if (text === "b") edit.reject("why");
    if (text === "c") edit.emit();
    if (text === "d") edit.removeHeader("h");
    if ("ab".includes(text)) edit.setHeader("h", "late");
  });
  assert.deepEqual([rowsFrom, rejected], [u32(1, 3, 4, 5, 6), [{ row: 2, reason: "why" }]]);
  assert.deepEqual(setHeaders, [{ name: "h", ...column("", "", "c", "", "e"), present: Uint8Array.of(0b11110100) }]);
  const plain = said(["a", "b"], (event, edit) => event.text === "b" && edit.emit());
  assert.deepEqual([plain.rowsFrom, plain.setHeaders], [undefined, []]);
});

test("rows that hold a text, of any lengths and borders", () => {
  let seed = 7;
  const random = (below) => (seed = (seed * 48271) % 0x7fffffff) % below;
  for (let round = 0; round < 300; round++) {
    // One row in ten is long, and one in twelve has what is rare: it is looked for far from where it would be.
    const text = () => "xay".repeat(random(random(10) ? 5 : 99)).slice(random(3)) + (random(12) ? "" : "z");
    const rows = Array.from({ length: 1 + random(60) }, text);
    const found = new Column(column(...rows));
    for (const needle of ["ay", "yx", "a", "z", "nothing"]) {
      const expected = rows.flatMap((text, row) => (text.includes(needle) ? [row] : []));
      assert.deepEqual(found.findRows(needle), expected, rows.join("|"));
      assert.deepEqual(rows.flatMap((_, row) => (found.contains(row, needle) ? [row] : [])), expected);
    }
  }
});

test("texts that are asked for in turn are searched for once each", () => {
  let searches = 0;
  class Counted extends Column {
    findRows(value) {
      searches++;
      return super.findRows(value);
    }
  }
  const found = new Counted(column("ab", "b", "c"));
  const of = (row) => ["a", "b", "c"].filter((text) => found.contains(row, text)).join("");
  assert.deepEqual([of(0), of(1), of(2), searches], ["ab", "b", "c", 3]);
});

test("texts become bytes, plain or not", () => {
  const made = (...values) => said(values.map(() => "x"), (event, edit) => edit.setHeader("h", values[event.row])).setHeaders;
  for (const values of [["a", "", "bc"], ["ä", "b"], ["\u{1f600}", "\ud800"]]) {
    const bytesOf = values.map(bytes);
    const ends = bytesOf.reduce((ends, value) => [...ends, ends.at(-1) + value.length], [0]);
    const data = Uint8Array.from(bytesOf.flatMap((value) => [...value]));
    assert.deepEqual(made(...values), [{ name: "h", offsets: u32(...ends), data, present: undefined }]);
  }
});

test("headers that an event lacks are absent, and times go on", () => {
  const { rows, body, time, headers } = made((events) => {
    events.push("a", { headers: { x: "1" } });
    events.push(bytes("bb"), { time: 7n, headers: { y: "2", x: undefined } });
    events.push("", { time: 9n });
    events.push("");
  });
  assert.deepEqual([rows, body, time], [4, column("a", "bb", "", ""), i64(7n, 7n, 9n, 9n)]);
  const [x, y] = headers;
  assert.deepEqual([x.name, x.offsets, x.data, x.present[0] & 15], ["x", u32(0, 1, 1, 1, 1), bytes("1"), 1]);
  assert.deepEqual([y.name, y.offsets, y.data, y.present[0] & 15], ["y", u32(0, 0, 1, 1, 1), bytes("2"), 2]);
});

test("without events there is nothing, and without times there are none", () => {
  assert.equal(made(() => {}), undefined);
  assert.equal(made((events) => events.push("a")).time, undefined);
});

test("what is found, and what is consumed", () => {
  const { decoding } = codec({
    decode(input, isLast, out) {
      out.event(2, input.subarray(0, 1), { headers: { x: "1" } });
      out.event(2, "b");
      out.bad(2, 4, new Error("no event").message);
      if (isLast) out.consume(5);
    },
  });
  assert.equal(decoding.open("{}"), undefined);
  const { consumed, ends, events, bad } = decoding.decode(bytes("abcdef"), false);
  assert.deepEqual([consumed, ends, events.rows, events.body], [4, u32(2, 2), 2, column("a", "b")]);
  assert.deepEqual(bad, [{ begin: 2, end: 4, reason: "no event" }]);
  assert.equal(decoding.decode(bytes("abcdef"), true).consumed, 5);
});

test("the half that a codec lacks does not open", () => {
  assert.match(thrown(() => codec({ encode() {} }).decoding.open("{}")), /for sinks only/);
  assert.match(thrown(() => codec({ decode() {} }).encoding.open("{}")), /for sources only/);
});

test("payloads, and the ends of a file", () => {
  const { encoding } = codec({
    open: () => ({ body: true, headers: "*" }),
    begin: (seed) => `<${seed}`,
    encode(batch, file, out) {
      for (const { row, text, headers } of batch) {
        if (text) out.push(`${file} ${text} ${JSON.stringify(headers)}`);
        else out.reject(row, "empty");
      }
    },
  });
  assert.deepEqual(encoding.open("{}").headers, ["*"]);
  const header = { name: "h", offsets: u32(0, 1, 1, 2), data: bytes("xy"), present: Uint8Array.of(5) };
  const { payloads, rejected } = encoding.encode(batch(["a", "", "c"], [header]), 3n);
  assert.deepEqual(payloads, column('3 a {"h":"x"}', '3 c {"h":"y"}'));
  assert.deepEqual(rejected, [{ row: 1, reason: "empty" }]);
  assert.deepEqual([encoding.begin(5n), encoding.end(5n)], [bytes("<5"), bytes("")]);
});

const deliver = (outcome) => {
  const { delivery } = sink({
    open: () => ({ body: true, recovers: true }),
    recover: () => bytes("cursor"),
    deliver: () => outcome,
  });
  assert.equal(delivery.open("{}").recovers, true);
  assert.deepEqual(delivery.recover(), bytes("cursor"));
  return delivery.deliver(batch(["a"]), bytes("c"));
};

test("outcomes", () => {
  assert.deepEqual(deliver(delivered()), { tag: "delivered", val: [] });
  assert.deepEqual(deliver(delivered(new Map([[0, "why"]]))).val, [{ row: 0, reason: "why" }]);
  assert.deepEqual(deliver(retry("busy", 7)), { tag: "retry", val: { reason: "busy", afterMs: 7 } });
});

test("silence is no success", () => {
  assert.match(thrown(() => deliver(undefined)), /return delivered\(\)/);
  const { delivery } = sink({ open: () => ({ recovers: true }), deliver: delivered });
  assert.match(thrown(() => delivery.open("{}")), /define recover\(\)/);
});

const asked = (answer, call) => {
  host.asked = [];
  host.answer = answer;
  const given = call();
  return [given, host.asked];
};

test("state: values or nothing, in the order of the keys", () => {
  const values = { offsets: u32(0, 1, 1, 1), data: bytes("v"), present: Uint8Array.of(5) };
  const [given, calls] = asked(values, () => state.getMany(["a", bytes("ü"), "c"]));
  assert.deepEqual(given, [bytes("v"), undefined, bytes("")]);
  assert.deepEqual(calls, [["getMany", column("a", "ü", "c")]]);
});

test("state: a column crosses as it is", () => {
  const keys = new Column(column("a", "b"));
  const [given, calls] = asked(Uint8Array.of(1), () => state.insertIfAbsent(keys, undefined, 9));
  assert.deepEqual(given, [true, false]);
  assert.deepEqual(calls, [["insertIfAbsent", column("a", "b"), undefined, 9n]]);
  assert.deepEqual(asked(undefined, () => state.putMany(keys, ["x", "y"]))[1], [
    ["putMany", column("a", "b"), column("x", "y"), undefined],
  ]);
  assert.deepEqual(asked(undefined, () => state.removeMany(new Set(["a"])))[1], [["removeMany", column("a")]]);
});

test("state: pairs of a scan, and errors", () => {
  const entries = { keys: column("a", "b"), values: column("1", "") };
  const [given, calls] = asked(entries, () => state.scan({ prefix: "p", after: "q", limit: 2 }));
  assert.deepEqual(given, [
    [bytes("a"), bytes("1")],
    [bytes("b"), bytes("")],
  ]);
  assert.deepEqual(calls, [["scan", bytes("p"), bytes("q"), 2]]);
  const full = new Error("", { cause: "over the limit" });
  assert.throws(() => asked(full, () => state.removeMany(["a"])), { name: "StateError", message: "over the limit" });
});

test("http: a request and its answer", () => {
  const headers = [["retry-after", "7"], ["x", "1"], ["x", "2"]];
  const authorization = ["Bearer ", http.secret("token"), "!"];
  const [answer, [[, sent]]] = asked({ status: 200, headers, body: Uint8Array.of(111, 107, 255) }, () =>
    http.post("http://h/", ["bo", bytes("dy")], { headers: { authorization }, timeoutMs: 5 }),
  );
  assert.deepEqual([answer.status, answer.headers.get("x"), answer.retryAfterMs()], [200, "1", 7000]);
  assert.deepEqual([answer.text(), answer.excerpt()], ["ok\ufffd", "ok\ufffd"]);
  const value = [
    { tag: "bytes", val: bytes("Bearer ") },
    { tag: "secret", val: "token" },
    { tag: "bytes", val: bytes("!") },
  ];
  assert.deepEqual(sent, {
    method: "POST",
    url: "http://h/",
    headers: [{ name: "authorization", value }],
    body: [{ tag: "bytes", val: bytes("body") }],
    timeoutMs: 5,
  });
});

test("http: each failure has its words", () => {
  for (const [payload, message] of [
    [{ tag: "denied", val: "x" }, "not allowed: x"],
    [{ tag: "invalid", val: "x" }, "the request is wrong: x"],
    [{ tag: "unreachable", val: "x" }, "x"],
    [{ tag: "timed-out" }, "no answer in time"],
    [{ tag: "too-large", val: 9n }, "the answer has more than 9 bytes"],
  ]) {
    const failing = () => asked(new Error("", { cause: payload }), () => http.get("http://h/"));
    assert.throws(failing, { name: "Failure", kind: payload.tag, message });
  }
});

test("tcp: what is written and read, and that it is closed once", () => {
  const [read, calls] = asked(bytes("+OK"), () => {
    const connection = tcp.connect("h", 6379, { tls: true });
    connection.write(["AUTH ", tcp.secret("password"), bytes("\r\n")]);
    const read = connection.read(10, 5);
    connection.read();
    connection.close();
    connection.close();
    return read;
  });
  assert.deepEqual(read, bytes("+OK"));
  const parts = [
    { tag: "bytes", val: bytes("AUTH ") },
    { tag: "secret", val: "password" },
    { tag: "bytes", val: bytes("\r\n") },
  ];
  assert.deepEqual(calls, [
    ["connect", "h", 6379, true],
    ["h.write", parts],
    ["h.read", 10, 5],
    ["h.read", 65536, undefined],
    ["h.close"],
  ]);
});

test("tcp: a failure has its words, and what is no failure stays what it is", () => {
  const failing = (cause) => () => asked(new Error("", { cause }), () => tcp.connect("h", 1));
  assert.throws(failing({ tag: "unreachable", val: "it broke" }), { name: "Failure", message: "it broke" });
  assert.throws(failing(undefined), { name: "Error", message: "host" });
  assert.equal(tcp.Failure, http.Failure);
});
