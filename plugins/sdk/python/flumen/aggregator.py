"""Aggregators: plugins that also make events of their own, from what they keep in flumen.state."""

from wit_world import exports as worlds

from .columns import Batch
from .events import Events
from .interceptor import Answer
from .plugin import Export, Plugin, told


class Aggregator(Plugin):
    """Makes events of its own. What is between two calls is in flumen.state and nowhere else."""

    #: How often tick is called; 0: never.
    tick_ms = 0

    def process(self, batch, events):
        """Answers with an Answer for the batch's rows, or None: they stay as they are. `events` takes new ones."""
        raise NotImplementedError("define process(self, batch, events)")

    def tick(self, now, events):
        """Time passes, also when no event comes. `now`: nanoseconds since the Unix epoch, UTC."""


class Aggregation(Export):
    @told
    def open(self, config):
        plugin = self.opened(config)
        return worlds.aggregation.Opened(plugin.reads._wire(), plugin.tick_ms)

    @told
    def process(self, batch):
        batch, events = Batch(batch), Events()
        answer = self.plugin.process(batch, events) or Answer()
        return worlds.aggregation.Aggregate(answer._wire(batch), events._wire() if len(events) else None)

    @told
    def tick(self, now):
        events = Events()
        self.plugin.tick(now, events)
        return events._wire() if len(events) else None
