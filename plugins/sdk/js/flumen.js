/**
 * Flumen plugins in JavaScript and TypeScript.
 *
 *     import { interceptor } from "flumen";
 *
 *     export const { guest, about } = interceptor({
 *       about: { version: "0.1.0", summary: "Keeps errors." },
 *       open: (config) => ({ body: true }),
 *       intercept(event, edit) {
 *         if (!event.contains(" 503 ")) edit.drop();
 *       },
 *     });
 *
 * `process(batch)` instead of `intercept` sees the columns of a whole batch at once. Host powers (log, metrics, clock,
 * state, http, ...) are modules like "flumen:plugin/log@0.2.0"; name them in plugin.toml (`imports = ["log"]`), and let
 * the pipeline grant them.
 */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** What is wrong with the configuration, for the user: name the key and the fix. */
export class ConfigError extends Error {}

/** A plugin that does what it cannot. */
class MistakeError extends Error {}

const bytesOf = (value) => (typeof value === "string" ? encoder.encode(value) : value);

// Lists cross as typed arrays whose place in memory need not fit wider numbers.
const numbers = (list, Type) =>
  list.byteOffset % Type.BYTES_PER_ELEMENT === 0
    ? new Type(list.buffer, list.byteOffset, list.byteLength / Type.BYTES_PER_ELEMENT)
    : new Type(list.slice().buffer);

const listOf = (typed) => new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength);

/**
 * A text to search for, prepared once.
 *
 * The engine runs this code in an interpreter, and its own functions natively: bytes that are plain ASCII are searched
 * as a string, in which a position is the position of the byte.
 */
export class Needle {
  constructor(value) {
    this.bytes = bytesOf(value);
    this.text = decoder.decode(this.bytes);
    this.isAscii = this.bytes.every((byte) => byte < 128);
  }

  /** Where it begins in `data`, from `start` on, or -1. */
  indexIn(data, start = 0) {
    const { bytes } = this;
    const last = data.length - bytes.length;
    if (bytes.length === 0) return start <= data.length ? start : -1;
    for (let at = data.indexOf(bytes[0], start); at >= 0 && at <= last; at = data.indexOf(bytes[0], at + 1)) {
      let i = 1;
      while (i < bytes.length && data[at + i] === bytes[i]) i++;
      if (i === bytes.length) return at;
    }
    return -1;
  }
}

const needles = new Map();
const needleOf = (value) => {
  if (value instanceof Needle) return value;
  let needle = needles.get(value);
  if (needle === undefined) needles.set(value, (needle = new Needle(value)));
  return needle;
};

/** A column of byte strings: row i is data[offsets[i] .. offsets[i + 1]]. */
export class Column {
  #text;
  constructor({ offsets, data }) {
    this.offsets = numbers(offsets, Uint32Array);
    this.data = data;
    this.rows = this.offsets.length - 1;
  }

  /** The bytes of a row. */
  get(row) {
    return this.data.subarray(this.offsets[row], this.offsets[row + 1]);
  }

  /** The row as text. */
  text(row) {
    const ascii = this.#ascii();
    return ascii === null ? decoder.decode(this.get(row)) : ascii.slice(this.offsets[row], this.offsets[row + 1]);
  }

  /** All data as a string, if it is plain ASCII: then positions are those of the bytes. */
  #ascii() {
    if (this.#text === undefined) {
      const text = decoder.decode(this.data);
      this.#text = text.length === this.data.length ? text : null;
    }
    return this.#text;
  }

  /** Whether a row holds the text or bytes. */
  contains(row, value) {
    const needle = needleOf(value);
    const end = this.offsets[row + 1];
    const hit = this.#search(needle, this.offsets[row], end);
    return hit >= 0 && hit + needle.bytes.length <= end;
  }

  #search(needle, start, end) {
    const ascii = this.#ascii();
    if (ascii === null) return needle.indexIn(end < this.data.length ? this.data.subarray(0, end) : this.data, start);
    if (!needle.isAscii) return -1;
    if (end === this.data.length) return ascii.indexOf(needle.text, start);
    const at = ascii.slice(start, end).indexOf(needle.text);
    return at < 0 ? -1 : start + at;
  }

  /** The rows that hold the text or bytes, in order: one search over the data of all rows. */
  findRows(value) {
    const needle = needleOf(value);
    const { offsets, rows, data } = this;
    const length = needle.bytes.length;
    const out = [];
    if (length === 0) {
      for (let row = 0; row < rows; row++) out.push(row);
      return out;
    }
    let row = 0;
    let hit = this.#search(needle, 0, data.length);
    while (hit >= 0) {
      // The first row that ends behind the hit, by halving: a row per step would cost more than the search.
      let low = row;
      let high = rows - 1;
      while (low < high) {
        const middle = (low + high) >> 1;
        if (offsets[middle + 1] > hit) high = middle;
        else low = middle + 1;
      }
      row = low;
      const end = offsets[row + 1];
      // A hit that spans the border between two rows does not count; nothing more in this row can.
      if (hit + length <= end) out.push(row);
      hit = this.#search(needle, end, data.length);
    }
    return out;
  }
}

/** The column of one header. */
export class Header extends Column {
  constructor(name, column) {
    super(column);
    this.name = name;
    this.present = column.present;
  }

  has(row) {
    return this.present === undefined || ((this.present[row >> 3] >> (row & 7)) & 1) === 1;
  }

  /** The value of a row, or undefined. */
  value(row) {
    return this.has(row) ? this.text(row) : undefined;
  }
}

/** A table of events, one column per field. What `open` did not name is undefined. */
export class Batch {
  constructor(wire, reads) {
    this.rows = wire.rows;
    this.body = wire.body && new Column(wire.body);
    this.time = wire.time && numbers(wire.time, BigInt64Array);
    this.stream = wire.identity && numbers(wire.identity.stream, BigUint64Array);
    this.position = wire.identity && numbers(wire.identity.position, BigUint64Array);
    this.headers = new Map(wire.headers.map((column, i) => [reads.headers[i], new Header(reads.headers[i], column)]));
  }

  /** The events, one after the other. The same object is used again: keep what it says, not itself. */
  *[Symbol.iterator]() {
    const event = new Event(this);
    for (; event.row < this.rows; event.row++) yield event;
  }
}

/** One row of a batch. */
export class Event {
  constructor(batch) {
    this.batch = batch;
    this.row = 0;
  }

  /** The body as bytes. */
  get body() {
    return this.batch.body.get(this.row);
  }

  /** The body as text. */
  get text() {
    return this.batch.body.text(this.row);
  }

  /** Nanoseconds since the Unix epoch, UTC, as a BigInt. */
  get time() {
    return this.batch.time[this.row];
  }

  /** Whether the body holds the text or bytes. */
  contains(value) {
    return this.batch.body.contains(this.row, value);
  }

  /** The value of a header, or undefined. */
  header(name) {
    return this.batch.headers.get(name)?.value(this.row);
  }
}

const column = (values) => {
  const parts = values.map(bytesOf);
  const offsets = new Uint32Array(parts.length + 1);
  for (let i = 0; i < parts.length; i++) offsets[i + 1] = offsets[i] + parts[i].length;
  const data = new Uint8Array(offsets[parts.length]);
  for (let i = 0; i < parts.length; i++) data.set(parts[i], offsets[i]);
  return { offsets: listOf(offsets), data };
};

const headerColumn = (name, values, rows) => {
  if (typeof values === "string") values = new Array(rows).fill(encoder.encode(values));
  let present;
  if (values.some((value) => value === undefined || value === null)) {
    present = new Uint8Array((values.length + 7) >> 3);
    values = values.map((value, row) => {
      if (value === undefined || value === null) return "";
      present[row >> 3] |= 1 << (row & 7);
      return value;
    });
  }
  return { name, ...column(values), present };
};

/**
 * What becomes of a batch; undefined leaves it as it is. `rows`: the input row of each output row. `body`, `time`, and the
 * lists in `headers` have one entry for each output row; a string in `headers` is for all rows. `remove`: names of
 * headers. `rejected`: a Map of row to reason.
 */
const difference = (batch, answer = {}) => {
  const { rows, body, time, headers = {}, remove = [], rejected = new Map() } = answer;
  const count = rows === undefined ? batch.rows - rejected.size : rows.length;
  const entries = headers instanceof Map ? [...headers] : Object.entries(headers);
  return {
    rowsFrom: rows && listOf(Uint32Array.from(rows)),
    body: body && column(body),
    time: time && listOf(BigInt64Array.from(time)),
    setHeaders: entries.map(([name, values]) => headerColumn(name, values, count)),
    removeHeaders: remove,
    rejected: [...rejected].map(([row, reason]) => ({ row, reason })),
  };
};

const BODY = Symbol("body");
const TIME = Symbol("time");

/** What happens to the event at hand; an event that nothing is said about goes on unchanged. */
export class Edit {
  #batch;
  #rows = [];
  #rejected = new Map();
  #changes = new Map();
  #columns = new Map();
  #row = 0;
  #isSettled = false;
  #isEmitted = false;
  #isPlain = true;

  constructor(batch) {
    this.#batch = batch;
  }

  setBody(body) {
    if (!this.#batch.body) throw new MistakeError("the body is changed but not read: answer open with { body: true }");
    this.#changes.set(BODY, body);
  }

  /** Nanoseconds since the Unix epoch, UTC, as a BigInt. */
  setTime(time) {
    if (!this.#batch.time) throw new MistakeError("the time is changed but not read: answer open with { time: true }");
    this.#changes.set(TIME, time);
  }

  setHeader(name, value) {
    if (!this.#batch.headers.has(name)) {
      throw new MistakeError(`header \`${name}\` is changed but not read: answer open with { headers: ["${name}"] }`);
    }
    this.#changes.set(name, value);
  }

  removeHeader(name) {
    this.setHeader(name, undefined);
  }

  /** The event goes no further. It is no error: it is counted as dropped. */
  drop() {
    this.#isSettled = true;
    this.#isPlain = false;
    this.#forget();
  }

  /** The event cannot be worked with, for this reason; the pipeline says where such events go. */
  reject(reason) {
    if (this.#isEmitted) throw new MistakeError("an event is rejected after a part of it was emitted");
    this.#isSettled = true;
    this.#forget();
    this.#rejected.set(this.#row, String(reason));
  }

  /** Sends the event on as it is now, and starts again from what came in: to make several events of one. */
  emit() {
    for (const field of this.#changes.keys()) {
      if (!this.#columns.has(field)) this.#columns.set(field, this.#rows.map((row) => this.#old(field, row)));
    }
    for (const [field, values] of this.#columns) {
      values.push(this.#changes.has(field) ? this.#changes.get(field) : this.#old(field, this.#row));
    }
    if (this.#isEmitted) this.#isPlain = false;
    this.#isSettled = this.#isEmitted = true;
    this.#rows.push(this.#row);
    this.#forget();
  }

  #forget() {
    if (this.#changes.size > 0) this.#changes.clear();
  }

  #old(field, row) {
    if (field === BODY) return this.#batch.body.get(row);
    return field === TIME ? this.#batch.time[row] : this.#batch.headers.get(field).value(row);
  }

  static run(plugin, batch) {
    const edit = new Edit(batch);
    const event = new Event(batch);
    for (let row = 0; row < batch.rows; row++) {
      event.row = edit.#row = row;
      edit.#isSettled = edit.#isEmitted = false;
      plugin.intercept(event, edit);
      if (!edit.#isSettled) edit.emit();
    }
    const body = edit.#columns.get(BODY);
    const time = edit.#columns.get(TIME);
    edit.#columns.delete(BODY);
    edit.#columns.delete(TIME);
    const rows = edit.#isPlain ? undefined : edit.#rows;
    return { rows, body, time, headers: edit.#columns, rejected: edit.#rejected };
  }
}

// Without WASI an exception that leaves the plugin is a trap without words: so it becomes an error that has them.
const told = (error) => {
  if (error instanceof ConfigError) return error.message;
  if (error instanceof MistakeError) return `a mistake in the plugin: ${error.message}`;
  return error instanceof Error ? `${error.name}: ${error.message}` : String(error);
};

/** The exports of a plugin: `export const { guest, about } = interceptor({ ... })`. */
export const interceptor = (plugin) => {
  let reads;
  return {
    about: {
      describe() {
        const { version = "0.1.0", summary = "", options } = plugin.about ?? {};
        return { version, summary, options: options === undefined ? "" : JSON.stringify(options) };
      },
    },
    guest: {
      open(config) {
        try {
          const wanted = plugin.open?.(JSON.parse(config)) ?? { body: true };
          reads = { body: false, time: false, identity: false, headers: [], ...wanted };
          return reads;
        } catch (error) {
          throw told(error);
        }
      },
      process(wire) {
        try {
          const batch = new Batch(wire, reads);
          return difference(batch, plugin.process ? plugin.process(batch) : Edit.run(plugin, batch));
        } catch (error) {
          throw told(error);
        }
      },
    },
  };
};
