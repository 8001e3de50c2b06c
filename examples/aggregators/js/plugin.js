// Counts events by the value of a header, in windows of event time.
//
// In the state: under the end of a window (so that keys are in the order in which windows close) and the value, the count. A
// window closes when an event behind its end comes, or when the clock is a whole window behind its end. What comes later still
// is counted anew: the counts of a window and a value add up to its events.
import { ConfigError, aggregator } from "flumen";
import * as state from "flumen/state";

// Windows that are looked at in one go.
const SCAN_MAX = 1000;
// Events that are made in one go: what is left follows with the next batch or tick. A batch has at most 65,536.
const EVENTS_MAX = 32_768;
// A key of the state has at most 1,024 bytes, and a letter up to 3 of them.
const VALUE_LETTERS_MAX = 333;
const TIME_MAX = 2n ** 63n - 1n;

const options = {
  type: "object",
  additionalProperties: false,
  required: ["by"],
  properties: {
    by: { type: "string", minLength: 1, description: "The header whose values are counted." },
    window_s: { type: "integer", minimum: 1, maximum: 86400, default: 60, description: "Seconds of a window." },
  },
};

let by, windowNs;

export const { aggregation, about } = aggregator({
  about: { version: "0.1.0", summary: "Counts events by the value of a header, in windows of event time.", options },

  open(config) {
    const unknown = Object.keys(config).find((key) => !(key in options.properties));
    if (unknown) throw new ConfigError(`config: unknown key \`${unknown}\`; the keys are \`by\`, \`window_s\``);
    const { window_s = 60 } = config;
    by = config.by;
    if (!by) throw new ConfigError("config: the key `by` is missing; add it");
    windowNs = BigInt(window_s) * 1_000_000_000n;
    // Ten times in a window, and at least every ten seconds.
    return { time: true, headers: [by], tickMs: Math.min(window_s * 100, 10_000) };
  },

  process(batch, events) {
    const counts = new Map();
    const values = batch.headers.get(by);
    let latest = batch.time[0];
    batch.time.forEach((time, row) => {
      const key = keyOf(endOf(time), values.value(row) ?? "-");
      counts.set(key, (counts.get(key) ?? 0n) + 1n);
      if (time > latest) latest = time;
    });
    const before = state.getMany(counts.keys());
    const sums = Array.from(counts.values(), (count, row) => String(count + countOf(before[row])));
    state.putMany(counts.keys(), sums);
    close(latest, events);
    // The counts go on in place of the events.
    return { rows: [] };
  },

  tick: (now, events) => close(now - windowNs, events),
});

/** The end of the window that a time is in. */
const endOf = (time) => {
  const since = ((time % windowNs) + windowNs) % windowNs;
  const end = time - since + windowNs;
  return end < TIME_MAX ? end : TIME_MAX;
};

/** Emits the counts of all windows that end at a time or before it. */
const close = (time, events) => {
  let closed;
  do {
    closed = [];
    for (const [key, count] of state.scan({ limit: SCAN_MAX })) {
      const [end, value] = readKey(key);
      if (end > time) break;
      events.push(String(countOf(count)), { time: end, headers: { [by]: value } });
      closed.push(key);
    }
    if (closed.length > 0) state.removeMany(closed);
  } while (closed.length === SCAN_MAX && events.length < EVENTS_MAX);
};

const decoder = new TextDecoder();

const countOf = (bytes) => (bytes === undefined ? 0n : BigInt(decoder.decode(bytes)));

/** Numbers in the order of their digits, and the value. */
const keyOf = (end, value) => String(end + 2n ** 63n).padStart(20, "0") + value.slice(0, VALUE_LETTERS_MAX);

const readKey = (key) => {
  const text = decoder.decode(key);
  return [BigInt(text.slice(0, 20)) - 2n ** 63n, text.slice(20)];
};
