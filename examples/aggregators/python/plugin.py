"""Counts events by the value of a header, in windows of event time.

In the state: under the end of a window (so that keys are in the order in which windows close) and the value, the count. A
window closes when an event behind its end comes, or when the clock is a whole window behind its end. What comes later still
is counted anew: the counts of a window and a value add up to its events.
"""

import struct
from collections import Counter

import flumen
from flumen import state

# Windows that are looked at in one go.
SCAN_MAX = 1_000
# Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536.
EVENTS_MAX = 32_768
# A key of the state has at most 1,024 bytes.
VALUE_BYTES_MAX = 1_000
TIME_MAX = 2**63 - 1


class Plugin(flumen.Aggregator):
    version = "0.1.0"
    summary = "Counts events by the value of a header, in windows of event time."
    options = {
        "type": "object",
        "additionalProperties": False,
        "required": ["by"],
        "properties": {
            "by": {"type": "string", "minLength": 1, "description": "The header whose values are counted."},
            "window_s": {
                "type": "integer",
                "minimum": 1,
                "maximum": 86400,
                "default": 60,
                "description": "Seconds of a window.",
            },
        },
    }

    def open(self, config):
        unknown = config.keys() - {"by", "window_s"}
        if unknown:
            raise flumen.ConfigError(f"config: unknown key `{min(unknown)}`; the keys are `by`, `window_s`")
        self.by = config.get("by", "")
        if not self.by:
            raise flumen.ConfigError("config: the key `by` is missing; add it")
        window_s = config.get("window_s", 60)
        self.window_ns = window_s * 1_000_000_000
        # Ten times in a window, and at least every ten seconds.
        self.tick_ms = min(window_s * 100, 10_000)
        self.reads = flumen.Reads(time=True, headers=[self.by])

    def process(self, batch, events):
        counts = Counter()
        for time, value in zip(batch.time, batch.headers[self.by]):
            value = "-" if value is None else value
            counts[key_of(self.end_of(time), value)] += 1
        before = state.get_many(counts)
        sums = [count + count_of(old) for count, old in zip(counts.values(), before)]
        state.put_many(counts, [struct.pack("<Q", count) for count in sums])
        self.close(max(batch.time), events)
        # The counts go on in place of the events.
        return flumen.Answer(rows=[])

    def tick(self, now, events):
        self.close(now - self.window_ns, events)

    def end_of(self, time):
        """The end of the window that a time is in."""
        return min((time // self.window_ns + 1) * self.window_ns, TIME_MAX)

    def close(self, time, events):
        """Emits the counts of all windows that end at a time or before it."""
        is_done = False
        while not is_done:
            closed = []
            for key, count in state.scan(limit=SCAN_MAX):
                end, value = read_key(key)
                if end > time:
                    break
                events.push(str(count_of(count)).encode(), end, {self.by: value})
                closed.append(key)
            if closed:
                state.remove_many(closed)
            is_done = len(closed) < SCAN_MAX or len(events) >= EVENTS_MAX


def count_of(value):
    return 0 if value is None else struct.unpack("<Q", value)[0]


def key_of(end, value):
    """Numbers in the order of their bytes, and the value."""
    return struct.pack(">Q", end + 2**63) + value.encode()[:VALUE_BYTES_MAX]


def read_key(key):
    return struct.unpack_from(">Q", key)[0] - 2**63, key[8:].decode(errors="ignore")
