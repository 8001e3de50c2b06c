/** Batches: a table of events, one column per field. */

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** Whether the bit of a row is set: least significant first. */
export const bit = (bits, row) => ((bits[row >> 3] >> (row & 7)) & 1) === 1;

// Columns often hold the same text again and again.
let lastText = "";
let lastBytes = encoder.encode("");
export const bytesOf = (value) => {
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

export const listOf = (typed) => new Uint8Array(typed.buffer, typed.byteOffset, typed.byteLength);

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

// Needles that are kept, and those whose hits are kept for a column: more than a plugin has that does not make them up.
const NEEDLES_MAX = 1000;
const SOUGHT_MAX = 32;
const keep = (map, key, value, max) => {
  if (map.size >= max) map.clear();
  map.set(key, value);
  return value;
};

const needles = new Map();
const needleOf = (value) => {
  if (value instanceof Needle) return value;
  return needles.get(value) ?? keep(needles, value, new Needle(value), NEEDLES_MAX);
};

/**
 * The first row from `low` to `high` that ends behind a place in the data. It is looked for near `guess`, where it is if rows are of
 * one length, in steps that double, and then by halving: a row per step would cost more than the search for the place.
 */
const rowAt = (offsets, place, low, high, guess) => {
  const at = guess < low ? low : guess > high ? high : guess;
  let step = 1;
  if (offsets[at + 1] > place) {
    high = at;
    while (high > low && offsets[high] > place) {
      const next = high - step;
      step *= 2;
      if (next < low) break;
      if (offsets[next + 1] > place) {
        high = next;
        continue;
      }
      low = next + 1;
      break;
    }
    if (offsets[high] <= place) return high;
  } else {
    low = at + 1;
    while (low < high && offsets[low + 1] <= place) {
      const next = low + step;
      step *= 2;
      if (next > high) break;
      if (offsets[next + 1] <= place) {
        low = next + 1;
        continue;
      }
      high = next;
      break;
    }
  }
  while (low < high) {
    const middle = (low + high) >> 1;
    if (offsets[middle + 1] > place) high = middle;
    else low = middle + 1;
  }
  return low;
};

/** A column of byte strings: row i is data[offsets[i] .. offsets[i + 1]]. */
export class Column {
  constructor({ offsets, data }) {
    this.offsets = numbers(offsets, Uint32Array);
    this.data = data;
    this.rows = this.offsets.length - 1;
    this._text = undefined;
    // What was asked for last and its hits, and all that was.
    this._sought = undefined;
    this._hits = undefined;
    this._found = new Map();
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
    if (this._sought !== value) this._seek(value);
    return this._hits[row] === 1;
  }

  _seek(value) {
    let hits = this._found.get(value);
    if (hits === undefined) {
      hits = new Uint8Array(this.rows);
      const rows = this.findRows(value);
      for (let i = 0; i < rows.length; i++) hits[rows[i]] = 1;
      keep(this._found, value, hits, SOUGHT_MAX);
    }
    this._hits = hits;
    this._sought = value;
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
    const perByte = rows / this.data.length;
    let row = 0;
    let hit = this._search(needle, 0);
    while (hit >= 0) {
      row = rowAt(offsets, hit, row, rows - 1, Math.floor(hit * perByte));
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
  constructor(column) {
    super(column);
    this.name = column.name;
    this.present = column.present;
  }

  has(row) {
    return this.present === undefined || bit(this.present, row);
  }

  /** The value of a row, or undefined. */
  value(row) {
    return this.has(row) ? this.text(row) : undefined;
  }
}

/** A table of events, one column per field. What `open` did not name is undefined. */
export class Batch {
  constructor(wire) {
    this.rows = wire.rows;
    this.body = wire.body && new Column(wire.body);
    this.time = wire.time && numbers(wire.time, BigInt64Array);
    this.stream = wire.identity && numbers(wire.identity.stream, BigUint64Array);
    this.position = wire.identity && numbers(wire.identity.position, BigUint64Array);
    this.headers = new Map(wire.headers.map((column) => [column.name, new Header(column)]));
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
    // Without a call of the column's, and with what it found at hand: to an interpreter each step is dear.
    if (this._sought !== value) this._seek(value);
    return this._hits[this.row] === 1;
  }

  _seek(value) {
    const { body } = this.batch;
    if (body._sought !== value) body._seek(value);
    this._hits = body._hits;
    this._sought = value;
  }

  /** The value of a header, or undefined. */
  header(name) {
    return this.batch.headers.get(name)?.value(this.row);
  }

  /** The stream, and the position in it, as BigInts. */
  get identity() {
    return [this.batch.stream[this.row], this.batch.position[this.row]];
  }

  /** The headers that the event has and the plugin reads, by name. */
  get headers() {
    const found = {};
    for (const [name, column] of this.batch.headers) if (column.has(this.row)) found[name] = column.text(this.row);
    return found;
  }
}

/** The column of these texts or byte strings. */
export const column = (values) => plainColumn(values) ?? bytesColumn(values);

/** If all are texts of plain ASCII: they are encoded in one call. */
const plainColumn = (values) => {
  const count = values.length;
  const offsets = new Uint32Array(count + 1);
  let end = 0;
  for (let i = 0; i < count; i++) {
    const value = values[i];
    if (typeof value !== "string") return undefined;
    offsets[i + 1] = end += value.length;
  }
  const data = encoder.encode(values.join(""));
  return data.length === end ? { offsets: listOf(offsets), data } : undefined;
};

const bytesColumn = (values) => {
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

/** The column of a header: a value or nothing for each row, or one text for all. */
export const headerColumn = (name, values, rows) => {
  if (typeof values === "string") values = new Array(rows).fill(values);
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
