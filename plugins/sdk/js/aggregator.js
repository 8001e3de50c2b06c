/** Aggregators: plugins that also make events of their own, from what they keep in "flumen/state". */

import { Batch } from "./columns.js";
import { Events } from "./events.js";
import { difference } from "./interceptor.js";
import { aboutOf, guarded, readsOf } from "./plugin.js";

const emitted = (events) => (events.length > 0 ? events._wire() : undefined);

/** The exports of an aggregator: `export const { aggregation, about } = aggregator({ ... })`. */
export const aggregator = (plugin) => ({
  about: aboutOf(plugin),
  aggregation: guarded({
    open(config) {
      const { tickMs = 0, ...reads } = plugin.open?.(JSON.parse(config)) ?? { body: true };
      return { reads: readsOf(reads), tickMs };
    },
    process(wire) {
      const [batch, events] = [new Batch(wire), new Events()];
      const rows = difference(batch, plugin.process(batch, events));
      return { rows, emitted: emitted(events) };
    },
    tick(now) {
      const events = new Events();
      plugin.tick?.(now, events);
      return emitted(events);
    },
  }),
});
