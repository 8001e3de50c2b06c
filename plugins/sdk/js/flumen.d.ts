/** Flumen plugins. In plugin.ts: `/// <reference path="./sdk/flumen.d.ts" />`, or a tsconfig.json that includes this file. */

declare module "flumen" {
  /** What is wrong with the configuration, for the user: name the key and the fix. */
  export class ConfigError extends Error {}

  /** A text to search for, prepared once. */
  export class Needle {
    constructor(value: string | Uint8Array);
    /** Where it begins in `data`, from `start` on, or -1. */
    indexIn(data: Uint8Array, start?: number): number;
  }
  export type Searched = string | Uint8Array | Needle;

  /** A column of byte strings: row i is data[offsets[i] .. offsets[i + 1]]. */
  export class Column {
    readonly rows: number;
    readonly offsets: Uint32Array;
    readonly data: Uint8Array;
    /** The bytes of a row. */
    get(row: number): Uint8Array;
    /** The row as text. */
    text(row: number): string;
    /** Whether a row holds the text or bytes. */
    contains(row: number, value: Searched): boolean;
    /** The rows that hold the text or bytes, in order: one search over the data of all rows. */
    findRows(value: Searched): number[];
  }

  /** The column of one header. */
  export class Header extends Column {
    readonly name: string;
    has(row: number): boolean;
    /** The value of a row, or undefined. */
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
    /** The events, one after the other. The same object is used again: keep what it says, not itself. */
    [Symbol.iterator](): Iterator<Event>;
  }

  /** One row of a batch. */
  export class Event {
    readonly row: number;
    /** The body as bytes. */
    readonly body: Uint8Array;
    /** The body as text. */
    readonly text: string;
    /** Nanoseconds since the Unix epoch, UTC. */
    readonly time: bigint;
    /** The stream, and the position in it. */
    readonly identity: [bigint, bigint];
    /** The headers that the event has and the plugin reads, by name. */
    readonly headers: Record<string, string>;
    /** Whether the body holds the text or bytes. */
    contains(value: Searched): boolean;
    /** The value of a header, or undefined. */
    header(name: string): string | undefined;
  }

  /** What happens to the event at hand; an event that nothing is said about goes on unchanged. */
  export class Edit {
    setBody(body: string | Uint8Array): void;
    /** Nanoseconds since the Unix epoch, UTC. */
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
    /** `"*"`: all that a batch has. */
    headers?: string[] | "*";
  }

  /** What becomes of a batch. What is not said stays as it is. */
  export interface Answer {
    /** The input row of each output row. Absent: all that are not rejected. */
    rows?: ArrayLike<number>;
    body?: (string | Uint8Array)[];
    time?: bigint[];
    /** A list with an entry for each output row, or one value for all. */
    headers?: Record<string, string | (string | undefined)[]> | Map<string, string | (string | undefined)[]>;
    /** Names of headers to remove from every row. */
    remove?: string[];
    /** Row to reason. */
    rejected?: Map<number, string>;
  }

  /** What a plugin tells about itself. */
  export interface About {
    version?: string;
    /** One line for a person. */
    summary?: string;
    /** JSON Schema of the configuration. */
    options?: object;
  }

  /** A batch in, the difference out. It has `intercept` or `process`. */
  export interface Interceptor {
    about?: About;
    /** Called once. Throw a ConfigError if the configuration is wrong. */
    open?(config: any): Reads;
    /** One event at a time. An exception blames the whole batch: use `edit.reject` for an event. */
    intercept?(event: Event, edit: Edit): void;
    /** Or the columns of a whole batch. undefined: the batch stays as it is. */
    process?(batch: Batch): Answer | undefined;
  }

  /** The exports of an interceptor: `export const { guest, about } = interceptor({ ... })`. */
  export function interceptor(plugin: Interceptor): { guest: object; about: object };

  /** The time and the headers of a new event. */
  export interface More {
    /** Nanoseconds since the Unix epoch, UTC. */
    time?: bigint;
    headers?: Record<string, string | undefined>;
  }

  /** New events. Give each a time, or none: then it is the time of the call. One without has that of the one before it. */
  export class Events {
    readonly length: number;
    push(body: string | Uint8Array, more?: More): void;
  }

  /** Makes events of its own. What is between two calls is in "flumen/state" and nowhere else. */
  export interface Aggregator {
    about?: About;
    /** As of an interceptor. `tickMs`: how often `tick` is called; 0: never. */
    open?(config: any): Reads & { tickMs?: number };
    /** What becomes of the batch's rows (undefined: they stay as they are); `events` takes new ones. */
    process(batch: Batch, events: Events): Answer | undefined;
    /** Time passes, also when no event comes. `now`: nanoseconds since the Unix epoch, UTC. */
    tick?(now: bigint, events: Events): void;
  }

  /** The exports of an aggregator: `export const { aggregation, about } = aggregator({ ... })`. */
  export function aggregator(plugin: Aggregator): { aggregation: object; about: object };

  /** What a decoder finds. Everything up to the end of the last event or bad bytes is consumed. */
  export class Decoded {
    /** An event whose bytes end at `end` in the input. Several events of the same bytes have the same end. */
    event(end: number, body: string | Uint8Array, more?: More): void;
    /** Bytes that are no event: they go to quarantine with the reason. */
    bad(begin: number, end: number, reason: string): void;
    /** Bytes up to here are done with, also if there is no event at their end. */
    consume(end: number): void;
  }

  /** What an encoder makes: a payload for each row, in order, or a rejection of it. */
  export class Payloads {
    push(payload: string | Uint8Array): void;
    /** The row has no payload: it goes to quarantine with the reason. */
    reject(row: number, reason: string): void;
  }

  /** Bytes of a stream to events, and events to bytes, or one half alone. A codec keeps nothing between two calls. */
  export interface Codec {
    about?: About;
    /** As of an interceptor; what is read is for `encode`. */
    open?(config: any): Reads;
    /**
     * Decodes what is whole in `input`; the rest comes again, with more behind it. `isLast`: nothing will follow. An exception
     * blames all of the input, and the host looks for the bytes that are guilty.
     */
    decode?(input: Uint8Array, isLast: boolean, out: Decoded): void;
    /** What stands at the beginning of a file. `seed` is the file's own number, the same for every call about it. */
    begin?(seed: bigint): string | Uint8Array;
    /**
     * Encodes a batch. `file`: the seed of the file that it goes to; undefined: messages. In a file payloads follow each other
     * with nothing between them.
     */
    encode?(batch: Batch, file: bigint | undefined, out: Payloads): void;
    /** What stands at the end of a file. */
    end?(seed: bigint): string | Uint8Array;
  }

  /** The exports of a codec: `export const { decoding, encoding, about } = codec({ ... })`. */
  export function codec(plugin: Codec): { decoding: object; encoding: object; about: object };

  /** What became of a batch: from `delivered` or `retry`. */
  export interface Outcome {
    readonly tag: "delivered" | "retry";
  }

  /**
   * All rows arrived but those in `rejected` (row to reason), which never will: they go to quarantine. A sink that recovers gives
   * rejections only if it stored nothing: the other rows come again without them, with the same cursor.
   */
  export function delivered(rejected?: Map<number, string>): Outcome;

  /** Nothing is known to have arrived: the same rows come again, after `afterMs` or at the host's own pace. */
  export function retry(reason: string, afterMs?: number): Outcome;

  /** Delivers, at least once; exactly once if it recovers. */
  export interface Sink {
    about?: About;
    /**
     * As of an interceptor. `recovers`: `deliver` stores the cursor with the batch in one step, and `recover` gives it back. A
     * request that got no answer may still be carried out late, so let the destination refuse a batch that does not follow the
     * cursor it has.
     */
    open?(config: any): Reads & { recovers?: boolean };
    /**
     * The cursor that the destination has; undefined: it has none. Called before the first batch, and whenever it is not known
     * whether a batch arrived. Only if the sink recovers.
     */
    recover?(): Uint8Array | undefined;
    /**
     * Delivers a batch. `cursor` stands for everything up to the end of this batch. After an exception nobody knows what arrived:
     * the instance is dropped, and the batch comes again.
     */
    deliver(batch: Batch, cursor: Uint8Array): Outcome;
  }

  /** The exports of a sink: `export const { delivery, about } = sink({ ... })`. */
  export function sink(plugin: Sink): { delivery: object; about: object };
}

/** What a plugin remembers (`imports = ["state"]`). Interceptors and aggregators can have it. */
declare module "flumen/state" {
  import { Column } from "flumen";

  export type Values = Iterable<string | Uint8Array> | Column;

  /** The state took no write, or gave no value; it is as it was. The words are the host's. */
  export class StateError extends Error {}

  /** The values of these keys. */
  export function getMany(keys: Values): (Uint8Array | undefined)[];
  /** Sets keys to values. With `ttlMs` they are forgotten that much later. */
  export function putMany(keys: Values, values: Values, ttlMs?: number): void;
  /** Sets each key that has no value yet, to an empty value without `values`; tells which were set now, of equal keys the first. */
  export function insertIfAbsent(keys: Values, values?: Values, ttlMs?: number): boolean[];
  /** Forgets keys. */
  export function removeMany(keys: Values): void;
  /**
   * Keys that begin with `prefix` and come after `after`, with their values, in byte order: at most `limit` (1000); there may be
   * more behind them unless there are none.
   */
  export function scan(of?: {
    prefix?: string | Uint8Array;
    after?: string | Uint8Array;
    limit?: number;
  }): [Uint8Array, Uint8Array][];
}

/** HTTP and HTTPS through the host (`imports = ["http"]`). Interceptors, aggregators and sinks can have it. */
declare module "flumen/http" {
  /** A secret of the pipeline's file: the host puts the value where the name stands. */
  export interface Secret {
    readonly tag: "secret";
    readonly val: string;
  }
  export function secret(name: string): Secret;

  export type Part = string | Uint8Array | Secret;

  /** There is no answer. */
  export class Failure extends Error {
    readonly kind: "denied" | "invalid" | "unreachable" | "timed-out" | "too-large";
  }

  export class Response {
    readonly status: number;
    /** Names in lower case; of several values the first. */
    readonly headers: Map<string, string>;
    readonly body: Uint8Array;
    /** The body as text. */
    text(): string;
    /** Milliseconds until the server wants to be asked again, if it says so in seconds. */
    retryAfterMs(): number | undefined;
    /** The beginning of the body, for an error. */
    excerpt(): string;
  }

  export interface Options {
    /** Parts are joined. */
    headers?: Record<string, Part | Part[]>;
    /** Less than the pipeline allows. */
    timeoutMs?: number;
  }

  /** Sends a request and waits for the whole answer; throws a Failure. An answer with any status is none. */
  export function request(method: string, url: string, more?: Options & { body?: Part | Part[] }): Response;
  export function get(url: string, more?: Options): Response;
  export function post(url: string, body: Part | Part[], more?: Options): Response;
  export function put(url: string, body: Part | Part[], more?: Options): Response;
}

/** TCP, with or without TLS, through the host (`imports = ["tcp"]`). Interceptors, aggregators and sinks can have it. */
declare module "flumen/tcp" {
  import { Part } from "flumen/http";

  export { Failure, Part, Secret, secret } from "flumen/http";

  /** Connects to a host; throws a Failure. With `tls`, its name has to be the certificate's. */
  export function connect(host: string, port: number, more?: { tls?: boolean }): Connection;

  export class Connection {
    private constructor();
    /** Writes everything; throws a Failure. Parts are joined. */
    write(data: Part | Part[]): void;
    /** At least one byte and at most `max` (65536); none: the other side is done. Throws a Failure. */
    read(max?: number, timeoutMs?: number): Uint8Array;
    /** Closes it. What comes after it fails. */
    close(): void;
  }
}

/** Lines in the agent's own log (`imports = ["log"]`). Never put event data in them. */
declare module "flumen:plugin/log@0.2.0" {
  export function write(level: "debug" | "info" | "warn" | "error", message: string): void;
}

/** Counters and gauges, shown by `flumen status` (`imports = ["metrics"]`). */
declare module "flumen:plugin/metrics@0.2.0" {
  /** Names: `[a-z][a-z0-9_]*`, at most 64 bytes and 64 names. */
  export function add(counter: string, amount: bigint): void;
  export function set(gauge: string, value: number): void;
}

/** Wall-clock time (`imports = ["clock"]`). */
declare module "flumen:plugin/clock@0.2.0" {
  /** Nanoseconds since the Unix epoch, UTC. */
  export function now(): bigint;
}

/** Randomness of the host, fit for keys and identifiers (`imports = ["random"]`). */
declare module "flumen:plugin/random@0.2.0" {
  /** At most 65,536 are given. */
  export function bytes(count: number): Uint8Array;
  export function number(): bigint;
}
