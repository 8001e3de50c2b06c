/**
 * What a plugin remembers: keys and values that survive restarts, crashes and swaps (`grant = ["state"]`).
 *
 * The writes of a batch are in the same commit as its events: if the batch comes again, the state is as it was before. Batches
 * of a plugin with state come one at a time, in order. A call costs more than a row: gather the keys of a batch and ask once.
 *
 * Keys are 1 to 1,024 bytes, values up to 1 MiB. Both are given as an array of texts or bytes, or as a Column.
 */

import * as host from "flumen:plugin/state@0.2.0";

import { Column, bit, bytesOf, column, listOf } from "./columns.js";

/** The state took no write, or gave no value; it is as it was. The words are the host's. */
export class StateError extends Error {
  name = "StateError";
}

/** The values of these keys: an array of bytes or undefined. */
export const getMany = (keys) => {
  const values = asked(() => host.getMany(columnOf(keys)));
  const column = new Column(values);
  return rowsOf(column, (row) => (bit(values.present, row) ? column.get(row) : undefined));
};

/** Sets keys to values. With `ttlMs` they are forgotten that much later. */
export const putMany = (keys, values, ttlMs) => {
  asked(() => host.putMany(columnOf(keys), columnOf(values), milliseconds(ttlMs)));
};

/**
 * Sets each key that has no value yet, to an empty value without `values`. The array of booleans tells which were set now; of
 * equal keys the first.
 */
export const insertIfAbsent = (keys, values, ttlMs) => {
  const wire = columnOf(keys);
  const bits = asked(() => host.insertIfAbsent(wire, values && columnOf(values), milliseconds(ttlMs)));
  return Array.from({ length: wire.offsets.length / 4 - 1 }, (_, row) => bit(bits, row));
};

/** Forgets keys. */
export const removeMany = (keys) => {
  asked(() => host.removeMany(columnOf(keys)));
};

/**
 * Pairs of keys that begin with `prefix` and come after `after` and their values, in byte order: at most `limit`; there may be
 * more behind them unless there are none.
 */
export const scan = ({ prefix = "", after, limit = 1000 } = {}) => {
  const entries = asked(() => host.scan(bytesOf(prefix), after && bytesOf(after), limit));
  const [keys, values] = [new Column(entries.keys), new Column(entries.values)];
  return rowsOf(keys, (row) => [keys.get(row), values.get(row)]);
};

const rowsOf = (column, of) => Array.from({ length: column.rows }, (_, row) => of(row));

const columnOf = (values) =>
  values instanceof Column ? { offsets: listOf(values.offsets), data: values.data } : column(Array.from(values));

const milliseconds = (ttlMs) => (ttlMs === undefined ? undefined : BigInt(ttlMs));

const asked = (call) => {
  try {
    return call();
  } catch (error) {
    throw new StateError(error.payload ?? error);
  }
};
