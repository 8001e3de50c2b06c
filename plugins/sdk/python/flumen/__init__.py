"""Flumen plugins in Python.

A plugin is a class `Plugin` in plugin.py:

    import flumen

    class Plugin(flumen.Interceptor):
        reads = flumen.Reads(body=True)

        def intercept(self, event, edit):
            if b" 503 " not in event.body:
                edit.drop()

or, for speed, a flumen.BatchInterceptor, which sees the columns of a whole batch at once:

    class Plugin(flumen.BatchInterceptor):
        reads = flumen.Reads(body=True)

        def process(self, batch):
            return flumen.Answer(rows=batch.body.find_rows(b" 503 "))

What the class is made of is the `kind` in plugin.toml:

| kind | class | it has |
|---|---|---|
| interceptor | Interceptor, BatchInterceptor | intercept, process |
| aggregator | Aggregator | process, tick |
| codec | Codec, or Decoder or Encoder alone | decode; begin, encode, end |
| sink | Sink | deliver, recover |

Host powers are flumen.state, flumen.http, flumen.tcp, and modules of wit_world.imports (log, metrics, clock, random). Name them
in plugin.toml (`imports = ["state", "log"]`), and let the pipeline grant them.
"""

from .aggregator import Aggregation, Aggregator
from .codec import Codec, Decoded, Decoder, Decoding, Encoder, Encoding, Payloads
from .columns import Batch, Column, Event, Header
from .events import Events
from .interceptor import Answer, BatchInterceptor, Edit, Guest, Interceptor
from .plugin import ConfigError, Reads, about_of
from .sink import Delivered, Delivery, Retry, Sink

__all__ = [
    "Aggregator", "Answer", "Batch", "BatchInterceptor", "Codec", "Column", "ConfigError", "Decoded", "Decoder", "Delivered",
    "Edit", "Encoder", "Event", "Events", "Header", "Interceptor", "Payloads", "Reads", "Retry", "Sink",
]

# What a class has to be for the interface that componentize-py looks for.
_INTERFACES = [
    ((Interceptor, BatchInterceptor), Guest), (Aggregator, Aggregation), ((Decoder, Encoder), Decoding),
    ((Decoder, Encoder), Encoding), (Sink, Delivery),
]


def exports(plugin_class):
    """The classes that componentize-py looks for, by name."""
    found = {interface.__name__: interface.of(plugin_class) for kind, interface in _INTERFACES if issubclass(plugin_class, kind)}
    return {"About": about_of(plugin_class), **found}
