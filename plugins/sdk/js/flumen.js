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

// Columns often hold the same text again and again.
let lastText = "";
let lastBytes = encoder.encode("");
const bytesOf = (value) => {
  if (typeof value !== "string") return value;
  if (value !== lastText) {
    lastText = value;
    lastBytes = encoder.encode(value);
  }
  return lastBytes;
};

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
  constructor({ offsets, data }) {
    this.offsets = numbers(offsets, Uint32Array);
    this.data = data;
    this.rows = this.offsets.length - 1;
    this._text = undefined;
    this._sought = undefined;
    this._hits = undefined;
  }

  /** The bytes of a row. */
  get(row) {
    return this.data.subarray(this.offsets[row], this.offsets[row + 1]);
  }

  /** The row as text. */
  text(row) {
    const ascii = this._ascii();
    return ascii === null ? decoder.decode(this.get(row)) : ascii.slice(this.offsets[row], this.offsets[row + 1]);
  }

  /** All data as a string, if it is plain ASCII: then positions are those of the bytes. */
  _ascii() {
    if (this._text === undefined) {
      const text = decoder.decode(this.data);
      this._text = text.length === this.data.length ? text : null;
    }
    return this._text;
  }

  /**
   * Whether a row holds the text or bytes. The first question about a needle searches all rows at once: a call into the
   * engine for each row would cost more than the search.
   */
  contains(row, value) {
    if (this._sought !== value) {
      this._hits = this._hitsOf(value);
      this._sought = value;
    }
    return this._hits[row];
  }

  /** Whether each row holds the text or bytes. */
  _hitsOf(value) {
    const hits = new Array(this.rows).fill(false);
    for (const row of this.findRows(value)) hits[row] = true;
    return hits;
  }

  _search(needle, start) {
    const ascii = this._ascii();
    if (ascii === null) return needle.indexIn(this.data, start);
    return needle.isAscii ? ascii.indexOf(needle.text, start) : -1;
  }

  /** The rows that hold the text or bytes, in order: one search over the data of all rows. */
  findRows(value) {
    const needle = needleOf(value);
    const { offsets, rows } = this;
    const length = needle.bytes.length;
    const out = [];
    if (length === 0) {
      for (let row = 0; row < rows; row++) out.push(row);
      return out;
    }
    let row = 0;
    let hit = this._search(needle, 0);
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
      hit = this._search(needle, end);
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
    this._sought = undefined;
    this._hits = undefined;
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
    // Without the column: in the engine's interpreter calls are what costs, and then every step to a field.
    if (this._sought !== value) this._seek(value);
    return this._hits[this.row];
  }

  _seek(value) {
    this._hits = this.batch.body._hitsOf(value);
    this._sought = value;
  }

  /** The value of a header, or undefined. */
  header(name) {
    return this.batch.headers.get(name)?.value(this.row);
  }
}

const column = (values) => {
  const count = values.length;
  const parts = [];
  const offsets = new Uint32Array(count + 1);
  let end = 0;
  for (let i = 0; i < count; i++) {
    const part = bytesOf(values[i]);
    parts.push(part);
    offsets[i + 1] = end += part.length;
  }
  const data = new Uint8Array(end);
  for (let i = 0; i < count; i++) data.set(parts[i], offsets[i]);
  return { offsets: listOf(offsets), data };
};

const headerColumn = (name, values, rows) => {
  if (typeof values === "string") values = new Array(rows).fill(encoder.encode(values));
  let present;
  for (let row = 0; row < values.length; row++) {
    if (values[row] !== undefined && values[row] !== null) continue;
    if (present === undefined) {
      present = new Uint8Array((values.length + 7) >> 3).fill(255);
      values = values.slice();
    }
    present[row >> 3] &= ~(1 << (row & 7));
    values[row] = "";
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

/**
 * What happens to the event at hand; an event that nothing is said about goes on unchanged. (Its fields are plain ones: to
 * the engine's interpreter private ones are dear.)
 */
export class Edit {
  constructor(batch, event) {
    this._batch = batch;
    this._event = event;
    this._rows = [];
    this._rejected = new Map();
    // What was changed of any event: a header, BODY or TIME, with its column. Searched in order: they are few.
    this._fields = [];
    this._hasChanges = false;
    // Whether something was said of the event at hand, and the last row that was sent on.
    this._settled = false;
    this._emitted = -1;
    this._isPlain = true;
  }

  _change(name, value) {
    const fields = this._fields;
    let at = 0;
    while (at < fields.length && fields[at].name !== name) at++;
    if (at === fields.length) {
      const values = [];
      for (const row of this._rows) values.push(this._old(name, row));
      fields.push({ name, values, value: undefined, isSet: false });
    }
    fields[at].value = value;
    fields[at].isSet = this._hasChanges = true;
  }

  setBody(body) {
    if (!this._batch.body) throw new MistakeError("the body is changed but not read: answer open with { body: true }");
    this._change(BODY, body);
  }

  /** Nanoseconds since the Unix epoch, UTC, as a BigInt. */
  setTime(time) {
    if (!this._batch.time) throw new MistakeError("the time is changed but not read: answer open with { time: true }");
    this._change(TIME, time);
  }

  setHeader(name, value) {
    if (!this._batch.headers.has(name)) {
      throw new MistakeError(`header \`${name}\` is changed but not read: answer open with { headers: ["${name}"] }`);
    }
    this._change(name, value);
  }

  removeHeader(name) {
    this.setHeader(name, undefined);
  }

  /** The event goes no further. It is no error: it is counted as dropped. */
  drop() {
    this._settled = true;
    if (this._hasChanges) this._forget();
  }

  /** The event cannot be worked with, for this reason; the pipeline says where such events go. */
  reject(reason) {
    const { row } = this._event;
    if (this._emitted === row) throw new MistakeError("an event is rejected after a part of it was emitted");
    this._settled = true;
    this._forget();
    this._rejected.set(row, String(reason));
  }

  /** Sends the event on as it is now, and starts again from what came in: to make several events of one. */
  emit() {
    const { row } = this._event;
    if (this._settled) {
      if (this._rejected.has(row)) throw new MistakeError("an event is emitted after it was rejected");
      this._isPlain = false;
    }
    if (this._fields.length > 0) this._write();
    this._settled = true;
    this._emitted = row;
    this._rows.push(row);
    if (this._hasChanges) this._forget();
  }

  _write() {
    const fields = this._fields;
    for (let i = 0; i < fields.length; i++) {
      const field = fields[i];
      field.values.push(field.isSet ? field.value : this._old(field.name, this._event.row));
    }
  }

  _forget() {
    for (const field of this._fields) field.isSet = false;
    this._hasChanges = false;
  }

  _old(field, row) {
    if (field === BODY) return this._batch.body.get(row);
    return field === TIME ? this._batch.time[row] : this._batch.headers.get(field).value(row);
  }

  _answer() {
    // Each row that was not rejected, once.
    const isPlain = this._isPlain && this._rows.length + this._rejected.size === this._batch.rows;
    const answer = { rows: isPlain ? undefined : this._rows, headers: new Map(), rejected: this._rejected };
    for (const { name, values } of this._fields) {
      if (name === BODY) answer.body = values;
      else if (name === TIME) answer.time = values;
      else answer.headers.set(name, values);
    }
    return answer;
  }
}

const each = (plugin, batch) => {
  const event = new Event(batch);
  const edit = new Edit(batch, event);
  const { rows } = batch;
  const { _rows: kept, _fields: fields } = edit;
  for (let row = 0; row < rows; row++) {
    event.row = row;
    plugin.intercept(event, edit);
    if (edit._settled) {
      edit._settled = false;
      // What is said of an event after it was sent on is not about the next one.
      if (edit._hasChanges) edit._forget();
    } else if (fields.length > 0) {
      edit.emit();
      edit._settled = false;
    } else {
      kept.push(row);
    }
  }
  return edit._answer();
};

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
          return difference(batch, plugin.process ? plugin.process(batch) : each(plugin, batch));
        } catch (error) {
          throw told(error);
        }
      },
    },
  };
};
