"""Sinks: a batch out of the pipeline, into a destination of your own."""

from wit_world import exports as worlds
from wit_world.imports import types as wire

from .columns import Batch
from .plugin import Export, MistakeError, Plugin, told


class Sink(Plugin):
    """Delivers, at least once. A destination that can store a few bytes together with the events, in one step, makes it
    exactly once: see `recovers`."""

    #: True: `deliver` stores the cursor with the batch in one step, and `recover` gives it back. A request that got no answer
    #: may still be carried out late, so let the destination refuse a batch that does not follow the cursor it has.
    recovers = False

    def recover(self):
        """The cursor that the destination has, as bytes; None: it has none. Called before the first batch, and whenever it
        is not known whether a batch arrived. Only if it `recovers`."""
        raise NotImplementedError("define recover(self), or leave recovers = False")

    def deliver(self, batch, cursor):
        """Answers with Delivered or Retry. `cursor` stands for everything up to the end of this batch.

        After an exception nobody knows what arrived: the instance is dropped, and the batch comes again. A sink that
        recovers is asked for its cursor first.
        """
        raise NotImplementedError("define deliver(self, batch, cursor)")


class Delivered:
    """All rows arrived but those in `rejected` (row to reason), which never will: they go to quarantine.

    A sink that recovers gives rejections only if it stored nothing: the other rows come again without them, with the same
    cursor. So reject before you store.
    """

    def __init__(self, rejected=None):
        self.rejected = rejected or {}

    def _wire(self):
        return worlds.delivery.Outcome_Delivered(
            [wire.Rejection(row, str(reason)) for row, reason in self.rejected.items()]
        )


class Retry:
    """Nothing is known to have arrived: the same rows come again, after `after_ms` or at the host's own pace."""

    def __init__(self, reason, after_ms=None):
        self.reason, self.after_ms = reason, after_ms

    def _wire(self):
        return worlds.delivery.Outcome_Retry(worlds.delivery.Later(str(self.reason), self.after_ms))


class Delivery(Export):
    @told
    def open(self, config):
        plugin = self.opened(config)
        return worlds.delivery.Opened(plugin.reads._wire(), plugin.recovers)

    @told
    def recover(self):
        return self.plugin.recover()

    @told
    def deliver(self, batch, cursor):
        outcome = self.plugin.deliver(Batch(batch), cursor)
        # To take silence for success would lose a batch.
        if not isinstance(outcome, (Delivered, Retry)):
            raise MistakeError("deliver says nothing: return flumen.Delivered() or flumen.Retry(reason)")
        return outcome._wire()
