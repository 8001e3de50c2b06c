/** Interceptors: a batch in, the difference out. */

import { Batch, Event, column, headerColumn, listOf } from "./columns.js";
import { MistakeError, aboutOf, guarded, readsOf } from "./plugin.js";

/**
 * What becomes of a batch; undefined leaves it as it is. `rows`: the input row of each output row. `body`, `time`, and the
 * lists in `headers` have one entry for each output row; a string in `headers` is for all rows. `remove`: names of
 * headers. `rejected`: a Map of row to reason.
 */
export const difference = (batch, answer = {}) => {
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
    // Whether it is said what becomes of the event.
    this._isSettled = false;
    // The last row that was sent on.
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
    this._isSettled = true;
    this._isPlain = false;
  }

  /** The event cannot be worked with, for this reason; the pipeline says where such events go. */
  reject(reason) {
    const { row } = this._event;
    if (this._emitted === row) throw new MistakeError("an event is rejected after a part of it was emitted");
    this._isSettled = true;
    this._rejected.set(row, String(reason));
  }

  /** Sends the event on as it is now, and starts again from what came in: to make several events of one. */
  emit() {
    if (this._fields.length > 0) this._write();
    const { row } = this._event;
    if (this._emitted === row) this._isPlain = false;
    this._isSettled = true;
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
    const fields = this._fields;
    for (let i = 0; i < fields.length; i++) fields[i].isSet = false;
    this._hasChanges = false;
  }

  _old(field, row) {
    if (field === BODY) return this._batch.body.get(row);
    return field === TIME ? this._batch.time[row] : this._batch.headers.get(field).value(row);
  }

  _answer() {
    const answer = { rows: this._isPlain ? undefined : this._rows, headers: new Map(), rejected: this._rejected };
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
    if (!edit._isSettled) {
      if (fields.length === 0) {
        kept.push(row);
        continue;
      }
      edit.emit();
    }
    edit._isSettled = false;
    // Of an event that goes no further, or after it was sent on.
    if (edit._hasChanges) edit._forget();
  }
  return edit._answer();
};

/** The exports of an interceptor: `export const { guest, about } = interceptor({ ... })`. */
export const interceptor = (plugin) => ({
  about: aboutOf(plugin),
  guest: guarded({
    open: (config) => readsOf(plugin.open?.(JSON.parse(config)) ?? { body: true }),
    process(wire) {
      const batch = new Batch(wire);
      return difference(batch, plugin.process ? plugin.process(batch) : each(plugin, batch));
    },
  }),
});
