/** New events, that a plugin makes. */

import { column, headerColumn, listOf } from "./columns.js";

/** New events. Give each a time, or none: then it is the time of the call. One without has that of the one before it. */
export class Events {
  constructor() {
    this._bodies = [];
    this._times = [];
    this._headers = new Map();
  }

  get length() {
    return this._bodies.length;
  }

  /** Adds an event: text or bytes; time in nanoseconds as a BigInt; headers by name. */
  push(body, { time, headers = {} } = {}) {
    const row = this._bodies.push(body) - 1;
    this._times.push(time);
    for (const name in headers) {
      let values = this._headers.get(name);
      if (values === undefined) this._headers.set(name, (values = []));
      values[row] = headers[name];
    }
  }

  _wire() {
    const rows = this.length;
    // A row that was skipped is a hole: it becomes undefined.
    const header = ([name, values]) => headerColumn(name, Array.from({ length: rows }, (_, row) => values[row]), rows);
    return { rows, body: column(this._bodies), time: this._wireTimes(), headers: Array.from(this._headers, header) };
  }

  _wireTimes() {
    let last = this._times.find((time) => time !== undefined);
    if (last === undefined) return undefined;
    return listOf(BigInt64Array.from(this._times, (time) => (last = time ?? last)));
  }
}
