/** What is wrong with the configuration, for the user: name the key and the fix. */
export class ConfigError extends Error {}

/** A text to search for, prepared once. */
export class Needle {
  constructor(value: string | Uint8Array);
  indexIn(data: Uint8Array, start?: number): number;
}
type Searched = string | Uint8Array | Needle;

/** A column of byte strings: row i is data[offsets[i] .. offsets[i + 1]]. */
export class Column {
  readonly rows: number;
  readonly offsets: Uint32Array;
  readonly data: Uint8Array;
  get(row: number): Uint8Array;
  text(row: number): string;
  contains(row: number, value: Searched): boolean;
  /** The rows that hold the text or bytes, in order: one search over the data of all rows. */
  findRows(value: Searched): number[];
}

/** The column of one header. */
export class Header extends Column {
  readonly name: string;
  has(row: number): boolean;
  value(row: number): string | undefined;
}

/** A table of events, one column per field. What `open` did not name is undefined. */
export class Batch implements Iterable<Event> {
  readonly rows: number;
  readonly body?: Column;
  /** Nanoseconds since the Unix epoch, UTC. */
  readonly time?: BigInt64Array;
  readonly stream?: BigUint64Array;
  readonly position?: BigUint64Array;
  readonly headers: Map<string, Header>;
  [Symbol.iterator](): Iterator<Event>;
}

/** One row of a batch. */
export class Event {
  readonly row: number;
  readonly body: Uint8Array;
  readonly text: string;
  readonly time: bigint;
  contains(value: Searched): boolean;
  header(name: string): string | undefined;
}

/** What happens to the event at hand; an event that nothing is said about goes on unchanged. */
export class Edit {
  setBody(body: string | Uint8Array): void;
  setTime(time: bigint): void;
  setHeader(name: string, value: string): void;
  removeHeader(name: string): void;
  /** The event goes no further. It is no error: it is counted as dropped. */
  drop(): void;
  /** The event cannot be worked with, for this reason; the pipeline says where such events go. */
  reject(reason: string): void;
  /** Sends the event on as it is now, and starts again from what came in: to make several events of one. */
  emit(): void;
}

/** The columns to look at and to change. Others never cross the sandbox. */
export interface Reads {
  body?: boolean;
  time?: boolean;
  identity?: boolean;
  headers?: string[];
}

/** What becomes of a batch. What is not said stays as it is. */
export interface Answer {
  /** The input row of each output row. Absent: all that are not rejected. */
  rows?: ArrayLike<number>;
  body?: (string | Uint8Array)[];
  time?: bigint[];
  /** A list with an entry for each output row, or one value for all. */
  headers?: Record<string, string | (string | undefined)[]> | Map<string, string | (string | undefined)[]>;
  remove?: string[];
  rejected?: Map<number, string>;
}

export interface Plugin {
  about?: { version?: string; summary?: string; /** JSON Schema of the configuration. */ options?: object };
  /** Called once. Throw a ConfigError if the configuration is wrong. */
  open?(config: any): Reads;
  /** One event at a time. */
  intercept?(event: Event, edit: Edit): void;
  /** Or the columns of a whole batch. */
  process?(batch: Batch): Answer | undefined;
}

/** The exports of a plugin: `export const { guest, about } = interceptor({ ... })`. */
export function interceptor(plugin: Plugin): { guest: object; about: object };
