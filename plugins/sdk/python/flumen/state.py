"""What a plugin remembers: keys and values that survive restarts, crashes and swaps (`grant = ["state"]`).

The writes of a batch are in the same commit as its events: if the batch comes again, the state is as it was before. Batches
of a plugin with state come one at a time, in order. A call costs more than a row: gather the keys of a batch and ask once.

Keys are 1 to 1,024 bytes, values up to 1 MiB. Both are given as an iterable of bytes or str, or as a flumen.Column.
"""

from componentize_py_types import Err
from wit_world.imports import types as wire

from .columns import Column, bit, bytes_column

try:
    from wit_world.imports import state as host
except ImportError:
    raise ImportError('flumen.state: name the power in plugin.toml: imports = ["state"]') from None


class StateError(Exception):
    """The state took no write, or gave no value; it is as it was. The words are the host's."""


def get_many(keys):
    """The values of these keys, as a list of bytes or None."""
    values = _asked(host.get_many, _column(keys))
    column = Column(values.offsets, values.data)
    return [value if bit(values.present, row) else None for row, value in enumerate(column)]


def put_many(keys, values, ttl_ms=None):
    """Sets keys to values. With `ttl_ms` they are forgotten that much later."""
    _asked(host.put_many, _column(keys), _column(values), ttl_ms)


def insert_if_absent(keys, values=None, ttl_ms=None):
    """Sets each key that has no value yet, to an empty value without `values`. The list of bool tells which were set now; of
    equal keys the first."""
    keys = _column(keys)
    bits = _asked(host.insert_if_absent, keys, None if values is None else _column(values), ttl_ms)
    return [bit(bits, row) for row in range(len(keys.offsets) // 4 - 1)]


def remove_many(keys):
    """Forgets keys."""
    _asked(host.remove_many, _column(keys))


def scan(prefix=b"", after=None, limit=1_000):
    """Keys that begin with `prefix` and come after `after`, with their values, in byte order: at most `limit`; there may be
    more behind them unless there are none."""
    entries = _asked(host.scan, prefix, after, limit)
    keys, values = entries.keys, entries.values
    return list(zip(Column(keys.offsets, keys.data), Column(values.offsets, values.data)))


def _column(values):
    if isinstance(values, Column):
        return wire.BytesColumn(values.offsets.tobytes(), values.data)
    return bytes_column([value.encode() if isinstance(value, str) else value for value in values])


def _asked(call, *arguments):
    try:
        return call(*arguments)
    except Err as error:
        raise StateError(error.value) from None
