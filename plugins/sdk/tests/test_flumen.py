"""The SDK for Python without a sandbox: what a plugin says, and what crosses. `cargo xtask test` runs it, with the modules that
componentize-py generates. Whole plugins are tested by the cases of the examples."""

import unittest
from array import array
from types import SimpleNamespace

import flumen
from componentize_py_types import Err
from flumen import http, state, tcp
from wit_world.imports import egress
from wit_world.imports import http as wire_http
from wit_world.imports import state as wire_state
from wit_world.imports import tcp as wire_tcp
from wit_world.imports import types as wire


def u32(*numbers):
    return array("I", numbers).tobytes()


def i64(*numbers):
    return array("q", numbers).tobytes()


def column(*values):
    ends = [sum(map(len, values[:end])) for end in range(len(values) + 1)]
    return wire.BytesColumn(u32(*ends), b"".join(values))


def batch(*bodies, headers=()):
    return wire.Batch(len(bodies), column(*bodies), None, list(headers), None)


def opened(plugin_class, interface, config="{}"):
    export = flumen.exports(plugin_class)[interface]()
    return export, export.open(config)


class Exports(unittest.TestCase):
    def test_a_class_exports_what_its_kind_has(self):
        names = lambda base: set(flumen.exports(type("Plugin", (base,), {}))) - {"About"}
        self.assertEqual(names(flumen.Interceptor), {"Guest"})
        self.assertEqual(names(flumen.BatchInterceptor), {"Guest"})
        self.assertEqual(names(flumen.Aggregator), {"Aggregation"})
        self.assertEqual(names(flumen.Decoder), {"Decoding", "Encoding"})
        self.assertEqual(names(flumen.Codec), {"Decoding", "Encoding"})
        self.assertEqual(names(flumen.Sink), {"Delivery"})

    def test_an_exception_becomes_an_error_with_its_line(self):
        class Plugin(flumen.Interceptor):
            def intercept(self, event, edit):
                # It is raised in the SDK, and the plugin's line is what helps.
                event.header("x")

        guest, _ = opened(Plugin, "Guest")
        with self.assertRaises(Err) as raised:
            guest.process(batch(b"a"))
        self.assertRegex(raised.exception.value, r"^KeyError: 'x' \(test_flumen.py line \d+\)$")

    def test_a_wrong_configuration_is_told_as_it_is(self):
        class Plugin(flumen.Sink):
            def open(self, config):
                raise flumen.ConfigError(f"config: {sorted(config)}")

        with self.assertRaises(Err) as raised:
            opened(Plugin, "Delivery", '{"a": 1}')
        self.assertEqual(raised.exception.value, "config: ['a']")


class Events(unittest.TestCase):
    def made(self, push):
        class Plugin(flumen.Aggregator):
            reads = flumen.Reads(time=True, headers="*")
            tick_ms = 5

            def process(self, batch, events):
                return flumen.Answer(rows=[0])

            def tick(self, now, events):
                push(events)

        aggregation, opening = opened(Plugin, "Aggregation")
        self.assertEqual((opening.tick_ms, opening.reads.time, opening.reads.headers), (5, True, ["*"]))
        done = aggregation.process(batch(b"a", b"b"))
        self.assertEqual((done.rows.rows_from, done.emitted), (u32(0), None))
        return aggregation.tick(7)

    def test_headers_that_an_event_lacks_are_absent_and_times_go_on(self):
        def push(events):
            events.push(b"a", headers={"x": "1"})
            events.push(b"bb", 7, {"y": "2", "x": None})
            events.push(b"", 9)
            events.push(b"")

        made = self.made(push)
        self.assertEqual((made.rows, made.body, made.time), (4, column(b"a", b"bb", b"", b""), i64(7, 7, 9, 9)))
        self.assertEqual(
            made.headers,
            [
                wire.HeaderColumn("x", u32(0, 1, 1, 1, 1), b"1", b"\1"),
                wire.HeaderColumn("y", u32(0, 0, 1, 1, 1), b"2", b"\2"),
            ],
        )

    def test_without_any_there_is_nothing_and_without_times_there_are_none(self):
        self.assertIsNone(self.made(lambda events: None))
        self.assertIsNone(self.made(lambda events: events.push(b"a")).time)


class Codecs(unittest.TestCase):
    def test_what_is_found_and_what_is_consumed(self):
        class Plugin(flumen.Codec):
            def decode(self, data, is_last, out):
                out.event(2, data[:1], headers={"x": "1"})
                out.event(2, data[1:2])
                out.bad(2, 4, ValueError("no event"))
                if is_last:
                    out.consume(5)

        decoding, _ = opened(Plugin, "Decoding")
        decoded = decoding.decode(b"abcdef", False)
        self.assertEqual((decoded.consumed, decoded.ends, decoded.events.rows), (4, u32(2, 2), 2))
        self.assertEqual([(bad.begin, bad.end, bad.reason) for bad in decoded.bad], [(2, 4, "no event")])
        self.assertEqual(decoding.decode(b"abcdef", True).consumed, 5)

    def test_the_half_that_a_codec_lacks_does_not_open(self):
        for base, interface in [(flumen.Decoder, "Encoding"), (flumen.Encoder, "Decoding")]:
            with self.assertRaises(Err) as raised:
                opened(type("Plugin", (base,), {}), interface)
            self.assertIn("it is for", raised.exception.value)

    def test_payloads_and_the_ends_of_a_file(self):
        class Plugin(flumen.Codec):
            reads = flumen.Reads(body=True, headers="*")

            def begin(self, seed):
                return b"<%d" % seed

            def encode(self, batch, file, out):
                for event in batch:
                    if event.body:
                        out.push(b"%d %b %b" % (file or 0, event.body, repr(event.headers).encode()))
                    else:
                        out.reject(event.row, "empty")

        encoding, reads = opened(Plugin, "Encoding")
        self.assertEqual(reads.headers, ["*"])
        header = wire.HeaderColumn("h", u32(0, 1, 1, 2), b"xy", b"\5")
        encoded = encoding.encode(batch(b"a", b"", b"c", headers=[header]), 3)
        self.assertEqual(encoded.payloads, column(b"3 a {'h': 'x'}", b"3 c {'h': 'y'}"))
        self.assertEqual([(rejected.row, rejected.reason) for rejected in encoded.rejected], [(1, "empty")])
        self.assertEqual((encoding.begin(5), encoding.end(5)), (b"<5", b""))


class Sinks(unittest.TestCase):
    def delivered(self, outcome):
        class Plugin(flumen.Sink):
            recovers = True

            def recover(self):
                return b"cursor"

            def deliver(self, batch, cursor):
                return outcome

        delivery, opening = opened(Plugin, "Delivery")
        self.assertEqual((opening.recovers, delivery.recover()), (True, b"cursor"))
        return delivery.deliver(batch(b"a"), b"c")

    def test_outcomes(self):
        self.assertEqual(self.delivered(flumen.Delivered()).value, [])
        rejected = self.delivered(flumen.Delivered(rejected={0: "why"})).value
        self.assertEqual(rejected, [wire.Rejection(0, "why")])
        later = self.delivered(flumen.Retry("busy", 7)).value
        self.assertEqual((later.reason, later.after_ms), ("busy", 7))

    def test_silence_is_no_success(self):
        with self.assertRaises(Err) as raised:
            self.delivered(None)
        self.assertIn("return flumen.Delivered()", raised.exception.value)


class State(unittest.TestCase):
    def setUp(self):
        self.asked = []
        self.addCleanup(setattr, state, "host", state.host)

    def host(self, name, answer):
        def call(*arguments):
            self.asked.append(arguments)
            if isinstance(answer, Exception):
                raise answer
            return answer

        state.host = SimpleNamespace(**{name: call})

    def test_values_or_none_in_the_order_of_the_keys(self):
        self.host("get_many", wire_state.Values(u32(0, 1, 1, 1), b"v", b"\5"))
        self.assertEqual(state.get_many([b"a", "ü", b"c"]), [b"v", None, b""])
        self.assertEqual(self.asked, [(column(b"a", "ü".encode(), b"c"),)])

    def test_a_column_crosses_as_it_is(self):
        self.host("insert_if_absent", b"\1")
        keys = flumen.Column(u32(0, 1, 2), b"ab")
        self.assertEqual(state.insert_if_absent(keys, ttl_ms=9), [True, False])
        self.host("put_many", None)
        state.put_many(keys, [b"x", b"y"])
        self.host("remove_many", None)
        state.remove_many({b"a": 1})
        self.assertEqual(
            self.asked,
            [(column(b"a", b"b"), None, 9), (column(b"a", b"b"), column(b"x", b"y"), None), (column(b"a"),)],
        )

    def test_pairs_of_a_scan(self):
        self.host("scan", wire_state.Entries(column(b"a", b"b"), column(b"1", b"")))
        self.assertEqual(state.scan(b"p", after=b"q", limit=2), [(b"a", b"1"), (b"b", b"")])
        self.assertEqual(self.asked, [(b"p", b"q", 2)])

    def test_an_error_has_the_words_of_the_host(self):
        self.host("remove_many", Err("over the limit"))
        with self.assertRaisesRegex(state.StateError, "^over the limit$"):
            state.remove_many([b"a"])


class Http(unittest.TestCase):
    def setUp(self):
        self.addCleanup(setattr, wire_http, "send", wire_http.send)

    def test_a_request_and_its_answer(self):
        sent = []
        headers = [("retry-after", "7"), ("x", "1"), ("x", "2")]
        wire_http.send = lambda request: sent.append(request) or wire_http.Response(200, headers, b"ok \xff")
        answer = http.post("http://h/", b"body", {"authorization": ["Bearer ", http.Secret("token")]}, timeout_ms=5)
        self.assertEqual((answer.status, answer.headers["x"], answer.retry_after_ms()), (200, "1", 7_000))
        self.assertEqual(answer.excerpt(), "ok \ufffd")
        parts = [egress.Part_Text("Bearer "), egress.Part_Secret("token")]
        header = wire_http.Header("authorization", parts)
        body = [egress.Part_Bytes(b"body")]
        self.assertEqual(sent, [wire_http.Request("POST", "http://h/", [header], body, 5)])

    def test_each_failure_has_its_words(self):
        for failure, kind, words in [
            (egress.Failure_Denied("x"), "denied", "not allowed: x"),
            (egress.Failure_Invalid("x"), "invalid", "the request is wrong: x"),
            (egress.Failure_Unreachable("x"), "unreachable", "x"),
            (egress.Failure_TimedOut(), "timed-out", "no answer in time"),
            (egress.Failure_TooLarge(9), "too-large", "the answer has more than 9 bytes"),
        ]:
            def send(request):
                raise Err(failure)

            wire_http.send = send
            with self.assertRaises(http.Failure) as raised:
                http.get("http://h/")
            self.assertEqual((raised.exception.kind, str(raised.exception)), (kind, words))


class Tcp(unittest.TestCase):
    def setUp(self):
        self.addCleanup(setattr, tcp, "host", wire_tcp)

    def host(self, read):
        """A host whose connections note what they are asked, and read like this."""
        asked = []

        class Connection:
            @classmethod
            def connect(cls, *given):
                asked.append(("connect", *given))
                return cls()

            def write(self, data):
                asked.append(("write", data))

            def read(self, *given):
                asked.append(("read", *given))
                return read()

            def __exit__(self, *given):
                asked.append(("close",))

        tcp.host = SimpleNamespace(Connection=Connection)
        return asked

    def test_what_is_written_and_read_and_that_it_is_closed_once(self):
        asked = self.host(lambda: b"+OK")
        with tcp.connect("h", 6_379, tls=True) as connection:
            connection.write(["AUTH ", tcp.Secret("password"), b"\r\n"])
            self.assertEqual(connection.read(10, timeout_ms=5), b"+OK")
            connection.read()
            connection.close()
        parts = [egress.Part_Text("AUTH "), egress.Part_Secret("password"), egress.Part_Bytes(b"\r\n")]
        calls = [("connect", "h", 6_379, True), ("write", parts), ("read", 10, 5), ("read", 65_536, None), ("close",)]
        self.assertEqual(asked, calls)

    def test_a_failure_has_its_words_and_the_connection_is_closed(self):
        def fails():
            raise Err(egress.Failure_Unreachable("it broke"))

        asked = self.host(fails)
        with self.assertRaises(tcp.Failure) as raised, tcp.connect("h", 1) as connection:
            connection.read()
        self.assertEqual((raised.exception.kind, str(raised.exception)), ("unreachable", "it broke"))
        self.assertEqual(asked[-1], ("close",))
        self.assertIs(tcp.Failure, http.Failure)


if __name__ == "__main__":
    unittest.main()
