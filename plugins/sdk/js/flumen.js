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
 * `process(batch)` instead of `intercept` sees the columns of a whole batch at once. What is exported is what the `kind` in
 * plugin.toml has:
 *
 *     export const { guest, about } = interceptor({ open, intercept or process });
 *     export const { aggregation, about } = aggregator({ open, process, tick });
 *     export const { decoding, encoding, about } = codec({ open, decode, begin, encode, end });
 *     export const { delivery, about } = sink({ open, deliver, recover });
 *
 * Host powers are "flumen/state", "flumen/http", and modules like "flumen:plugin/log@0.2.0" (metrics, clock, random, tcp). Name
 * them in plugin.toml (`imports = ["state", "log"]`), and let the pipeline grant them.
 */

export { aggregator } from "./aggregator.js";
export { codec } from "./codec.js";
export { Batch, Column, Event, Header, Needle } from "./columns.js";
export { Edit, interceptor } from "./interceptor.js";
export { ConfigError } from "./plugin.js";
export { delivered, retry, sink } from "./sink.js";
