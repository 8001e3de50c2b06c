/** Sinks: a batch out of the pipeline, into a destination of your own. */

import { Batch } from "./columns.js";
import { MistakeError, aboutOf, guarded, readsOf } from "./plugin.js";

/**
 * The outcome of `deliver`: all rows arrived but those in `rejected`, a Map of row to reason, which never will. A sink that
 * recovers gives rejections only if it stored nothing: the other rows come again without them. So reject before you store.
 */
export const delivered = (rejected = new Map()) => ({
  tag: "delivered",
  val: Array.from(rejected, ([row, reason]) => ({ row, reason: String(reason) })),
});

/** The outcome of `deliver`: nothing is known to have arrived. The same rows come again. */
export const retry = (reason, afterMs) => ({ tag: "retry", val: { reason: String(reason), afterMs } });

/** The exports of a sink: `export const { delivery, about } = sink({ ... })`. */
export const sink = (plugin) => ({
  about: aboutOf(plugin),
  delivery: guarded({
    open(config) {
      const { recovers = false, ...reads } = plugin.open?.(JSON.parse(config)) ?? { body: true };
      if (recovers && !plugin.recover) throw new MistakeError("open says `recovers`: define recover()");
      return { reads: readsOf(reads), recovers };
    },
    recover: () => plugin.recover(),
    deliver(wire, cursor) {
      const outcome = plugin.deliver(new Batch(wire), cursor);
      // To take silence for success would lose a batch.
      if (outcome?.tag === undefined) throw new MistakeError("deliver says nothing: return delivered() or retry(reason)");
      return outcome;
    },
  }),
});
