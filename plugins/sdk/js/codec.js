/**
 * Codecs: bytes of a stream to events, events to payloads or to the bytes of files. A codec keeps nothing between two
 * calls: what was not consumed comes again, with more behind it.
 */

import { Batch, bytesOf, column, listOf } from "./columns.js";
import { Events } from "./events.js";
import { ConfigError, aboutOf, guarded, readsOf } from "./plugin.js";

/** What a decoder finds. Everything up to the end of the last event or bad bytes is consumed. */
export class Decoded {
  constructor() {
    this._events = new Events();
    this._ends = [];
    this._bad = [];
    this._consumed = 0;
  }

  /**
   * An event whose bytes end at `end` in the input; the rest as for `Events.push`. Several events of the same bytes have
   * the same end. Without any time it is when it was read.
   */
  event(end, body, more) {
    this._events.push(body, more);
    this._ends.push(end);
    this.consume(end);
  }

  /** Bytes that are no event: they go to quarantine with the reason. */
  bad(begin, end, reason) {
    this._bad.push({ begin, end, reason: String(reason) });
    this.consume(end);
  }

  /** Bytes up to here are done with, also if there is no event at their end. */
  consume(end) {
    if (end > this._consumed) this._consumed = end;
  }

  _wire() {
    const ends = listOf(Uint32Array.from(this._ends));
    return { consumed: this._consumed, events: this._events._wire(), ends, bad: this._bad };
  }
}

/** What an encoder makes. */
export class Payloads {
  constructor() {
    this._payloads = [];
    this._rejected = [];
  }

  /** The payload of the next row: text or bytes. */
  push(payload) {
    this._payloads.push(payload);
  }

  /** The row has no payload: it goes to quarantine with the reason. */
  reject(row, reason) {
    this._rejected.push({ row, reason: String(reason) });
  }
}

/** The exports of a codec, which may have one half alone: `export const { decoding, encoding, about } = codec({ ... })`. */
export const codec = (plugin) => ({
  about: aboutOf(plugin),
  decoding: guarded({
    open(config) {
      if (!plugin.decode) throw new ConfigError("this codec does not decode: it is for sinks only");
      plugin.open?.(JSON.parse(config));
    },
    decode(input, isLast) {
      const out = new Decoded();
      plugin.decode(input, isLast, out);
      return out._wire();
    },
  }),
  encoding: guarded({
    open(config) {
      if (!plugin.encode) throw new ConfigError("this codec does not encode: it is for sources only");
      return readsOf(plugin.open?.(JSON.parse(config)) ?? { body: true });
    },
    begin: (seed) => bytesOf(plugin.begin?.(seed) ?? ""),
    encode(wire, file) {
      const out = new Payloads();
      plugin.encode(new Batch(wire), file, out);
      return { payloads: column(out._payloads), rejected: out._rejected };
    },
    end: (seed) => bytesOf(plugin.end?.(seed) ?? ""),
  }),
});
