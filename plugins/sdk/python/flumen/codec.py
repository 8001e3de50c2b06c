"""Codecs: bytes of a stream to events, events to payloads or to the bytes of files.

A codec keeps nothing between two calls: what was not consumed comes again, with more behind it.
"""

from array import array

from wit_world import exports as worlds
from wit_world.imports import types as wire

from .columns import Batch, bytes_column
from .events import Events
from .plugin import ConfigError, Export, Plugin, told


class Decoder(Plugin):
    """Finds events in the bytes of a stream."""

    def decode(self, data, is_last, out):
        """Decodes what is whole in `data` into `out`, a Decoded. `is_last`: nothing will follow.

        An exception blames all of the data, and the host looks for the bytes that are guilty: use out.bad for those that
        are no event.
        """
        raise NotImplementedError("define decode(self, data, is_last, out)")


class Encoder(Plugin):
    """Makes bytes of events."""

    def begin(self, seed):
        """What stands at the beginning of a file. `seed` is the file's own number, the same for every call about it."""
        return b""

    def encode(self, batch, file, out):
        """Encodes a batch into `out`, a Payloads: one for each row, in order, or a rejection of it.

        `file`: the seed of the file that it goes to; None: messages. In a file payloads follow each other with nothing
        between them.
        """
        raise NotImplementedError("define encode(self, batch, file, out)")

    def end(self, seed):
        """What stands at the end of a file."""
        return b""


class Codec(Decoder, Encoder):
    """Both: a decoder for sources, an encoder for sinks."""


class Decoded:
    """What a decoder finds. Everything up to the end of the last event or bad bytes is consumed."""

    def __init__(self):
        self._events, self._ends, self._bad, self._consumed = Events(), array("I"), [], 0

    def event(self, end, body, time=None, headers=None):
        """An event whose bytes end at `end` in the data; the rest as for Events.push. Several events of the same bytes have
        the same end. Without any time it is when it was read."""
        self._events.push(body, time, headers)
        self._ends.append(end)
        self.consume(end)

    def bad(self, begin, end, reason):
        """Bytes that are no event: they go to quarantine with the reason."""
        self._bad.append((begin, end, reason))
        self.consume(end)

    def consume(self, end):
        """Bytes up to here are done with, also if there is no event at their end."""
        self._consumed = max(self._consumed, end)


class Payloads:
    """What an encoder makes."""

    def __init__(self):
        self._payloads, self._rejected = [], []

    def push(self, payload):
        """The payload of the next row, as bytes."""
        self._payloads.append(payload)

    def reject(self, row, reason):
        """The row has no payload: it goes to quarantine with the reason."""
        self._rejected.append(wire.Rejection(row, str(reason)))


class Decoding(Export):
    @told
    def open(self, config):
        if not issubclass(self.plugin_class, Decoder):
            raise ConfigError("this codec does not decode: it is for sinks only")
        self.opened(config)

    @told
    def decode(self, data, is_last):
        out = Decoded()
        self.plugin.decode(data, is_last, out)
        bad = [worlds.decoding.BadBytes(begin, end, str(reason)) for begin, end, reason in out._bad]
        return worlds.decoding.Decoded(out._consumed, out._events._wire(), out._ends.tobytes(), bad)


class Encoding(Export):
    @told
    def open(self, config):
        if not issubclass(self.plugin_class, Encoder):
            raise ConfigError("this codec does not encode: it is for sources only")
        return self.opened(config).reads._wire()

    @told
    def begin(self, seed):
        return self.plugin.begin(seed)

    @told
    def encode(self, batch, file):
        out = Payloads()
        self.plugin.encode(Batch(batch), file, out)
        return worlds.encoding.Encoded(bytes_column(out._payloads), out._rejected)

    @told
    def end(self, seed):
        return self.plugin.end(seed)
