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

Host powers (log, metrics, clock, state, http, ...) are modules of wit_world.imports; name them in plugin.toml
(`imports = ["log"]`), and let the pipeline grant them.
"""

import json
import traceback
from array import array
from bisect import bisect_right
from itertools import accumulate

from componentize_py_types import Err
from wit_world.imports import types as wire

__all__ = ["Reads", "Interceptor", "BatchInterceptor", "Answer", "Column", "Header", "Batch", "Event", "Edit", "ConfigError"]


class ConfigError(Exception):
    """What is wrong with the configuration, for the user: name the key and the fix."""


class Reads:
    """The columns to look at and to change. Others never cross the sandbox."""

    def __init__(self, body=False, time=False, identity=False, headers=()):
        self.body, self.time, self.identity, self.headers = body, time, identity, list(headers)


class _Plugin:
    version = "0.1.0"
    summary = ""
    #: JSON Schema of the configuration, as a dict; None: any configuration.
    options = None
    reads = Reads(body=True)

    def open(self, config):
        """`config` is a dict. Raise ConfigError if it is wrong; set self.reads if that depends on it."""


class Interceptor(_Plugin):
    """Sees one event at a time."""

    def intercept(self, event, edit):
        """What `edit` is not told stays as it is. An exception blames the whole batch: use edit.reject for an event."""
        raise NotImplementedError("define intercept(self, event, edit)")

    def process(self, batch):
        return _each(self, batch)


class BatchInterceptor(_Plugin):
    """Sees the columns of a whole batch."""

    def process(self, batch):
        """Answers with an Answer, or None: the batch stays as it is."""
        raise NotImplementedError("define process(self, batch)")


class Column:
    """A column of byte strings: row i is data[offsets[i]:offsets[i + 1]]."""

    __slots__ = ("offsets", "data", "rows")

    def __init__(self, offsets, data):
        self.offsets = memoryview(offsets).cast("I")
        self.data = data
        self.rows = len(self.offsets) - 1

    def __len__(self):
        return self.rows

    def __getitem__(self, row):
        return self.data[self.offsets[row]:self.offsets[row + 1]]

    def __iter__(self):
        data, start = self.data, 0
        for end in self.offsets[1:].tolist():
            yield data[start:end]
            start = end

    def find_rows(self, needle):
        """The rows that hold the needle, in order: one search over the data of all rows."""
        if not needle:
            return list(range(self.rows))
        find, offsets, length, out, row = self.data.find, self.offsets, len(needle), [], 0
        hit = find(needle)
        while hit >= 0:
            row = bisect_right(offsets, hit, row)
            end = offsets[row]
            # A hit that spans the border between two rows does not count; nothing more in this row can.
            if hit + length <= end:
                out.append(row - 1)
            hit = find(needle, end)
        return out


class Header(Column):
    """The column of one header. Rows that do not have it are None."""

    __slots__ = ("name", "present")

    def __init__(self, name, column):
        super().__init__(column.offsets, column.data)
        self.name, self.present = name, column.present

    def __getitem__(self, row):
        if self.present is not None and not self.present[row >> 3] >> (row & 7) & 1:
            return None
        return self.data[self.offsets[row]:self.offsets[row + 1]].decode()

    def __iter__(self):
        return (self[row] for row in range(self.rows))


class Batch:
    """A table of events, one column per field. What `reads` did not name is None."""

    __slots__ = ("rows", "body", "time", "stream", "position", "headers", "reads")

    def __init__(self, batch, reads):
        self.rows, self.reads = batch.rows, reads
        self.body = None if batch.body is None else Column(batch.body.offsets, batch.body.data)
        self.time = None if batch.time is None else memoryview(batch.time).cast("q")
        identity = batch.identity
        self.stream = None if identity is None else memoryview(identity.stream).cast("Q")
        self.position = None if identity is None else memoryview(identity.position).cast("Q")
        self.headers = {name: Header(name, column) for name, column in zip(reads.headers, batch.headers)}

    def __len__(self):
        return self.rows

    def __iter__(self):
        """The events, one after the other."""
        event = Event(self)
        for row in range(self.rows):
            event.row = row
            yield event


class Event:
    """One row of a batch. It is only valid until the next one: the same object is used again."""

    __slots__ = ("row", "_batch", "_data", "_offsets")

    def __init__(self, batch):
        self.row, self._batch = 0, batch
        body = batch.body
        self._data, self._offsets = (b"", None) if body is None else (body.data, body.offsets)

    @property
    def body(self):
        offsets, row = self._offsets, self.row
        return b"" if offsets is None else self._data[offsets[row]:offsets[row + 1]]

    @property
    def time(self):
        """Nanoseconds since the Unix epoch, UTC."""
        return self._batch.time[self.row]

    def header(self, name):
        """The value as str, or None."""
        return self._batch.headers[name][self.row]

    @property
    def identity(self):
        """The stream, and the position in it."""
        return self._batch.stream[self.row], self._batch.position[self.row]


class Answer:
    """What becomes of a batch. What is not said stays as it is; columns have one entry for each output row.

    rows: the input row of each output row; None: all that are not rejected.
    body: bytes for each output row.
    time: nanoseconds for each output row.
    headers: name to a list of str or None for each output row, or to one str for all rows.
    remove: names of headers to remove from every row.
    rejected: row to reason.
    """

    __slots__ = ("rows", "body", "time", "headers", "remove", "rejected")

    def __init__(self, rows=None, body=None, time=None, headers=None, remove=(), rejected=None):
        self.rows, self.body, self.time = rows, body, time
        self.headers, self.remove, self.rejected = headers or {}, list(remove), rejected or {}

    def _wire(self, batch):
        rows = batch.rows - len(self.rejected) if self.rows is None else len(self.rows)
        headers = [_header(name, values, rows) for name, values in self.headers.items()]
        return wire.Difference(
            None if self.rows is None else array("I", self.rows).tobytes(),
            None if self.body is None else wire.BytesColumn(*_joined(self.body)),
            None if self.time is None else array("q", self.time).tobytes(),
            headers,
            self.remove,
            [wire.Rejection(row, str(reason)) for row, reason in self.rejected.items()],
        )


def _joined(values):
    offsets = array("I", accumulate(map(len, values), initial=0))
    return offsets.tobytes(), b"".join(values)


def _header(name, values, rows):
    if isinstance(values, str):
        value = values.encode()
        offsets = array("I", range(0, len(value) * rows + 1, len(value))) if value else array("I", bytes(4 * rows + 4))
        return wire.HeaderColumn(name, offsets.tobytes(), value * rows, None)
    present = None
    if None in values:
        bits = bytearray((len(values) + 7) // 8)
        for row, value in enumerate(values):
            if value is not None:
                bits[row >> 3] |= 1 << (row & 7)
        present = bytes(bits)
    offsets, data = _joined([b"" if value is None else value.encode() for value in values])
    return wire.HeaderColumn(name, offsets, data, present)


class Edit:
    """What happens to the event at hand; an event that nothing is said about goes on unchanged."""

    __slots__ = ("_batch", "_row", "_settled", "_emitted", "_plain", "_rows", "_rejected", "_changes", "_columns")

    def __init__(self, batch):
        self._batch, self._row = batch, 0
        self._settled = self._emitted = False
        self._plain = True
        self._rows, self._rejected = [], {}
        # Field (a header's name, or BODY or TIME) to its value for the event at hand, and to its column.
        self._changes, self._columns = {}, {}

    def set_body(self, body):
        if self._batch.body is None:
            raise MistakeError("the body is changed but not read: reads = flumen.Reads(body=True)")
        self._changes[_BODY] = body

    def set_time(self, time):
        if self._batch.time is None:
            raise MistakeError("the time is changed but not read: reads = flumen.Reads(time=True)")
        self._changes[_TIME] = time

    def set_header(self, name, value):
        if name not in self._batch.headers:
            raise MistakeError(f"header `{name}` is changed but not read: reads = flumen.Reads(headers=[{name!r}])")
        self._changes[name] = value

    def remove_header(self, name):
        self.set_header(name, None)

    def drop(self):
        """The event goes no further. It is no error: it is counted as dropped."""
        self._settled, self._plain = True, False
        if self._changes:
            self._changes.clear()

    def reject(self, reason):
        """The event cannot be worked with, for this reason; the pipeline says where such events go."""
        if self._emitted:
            raise MistakeError("an event is rejected after a part of it was emitted")
        self._settled = True
        self._changes.clear()
        self._rejected[self._row] = reason

    def emit(self):
        """Sends the event on as it is now, and starts again from what came in: to make several events of one."""
        changes, columns = self._changes, self._columns
        for field in changes:
            if field not in columns:
                columns[field] = [self._old(field, row) for row in self._rows]
        for field, column in columns.items():
            column.append(changes[field] if field in changes else self._old(field, self._row))
        if self._emitted:
            self._plain = False
        self._settled = self._emitted = True
        self._rows.append(self._row)
        changes.clear()

    def _old(self, field, row):
        if field is _BODY:
            return self._batch.body[row]
        return self._batch.time[row] if field is _TIME else self._batch.headers[field][row]

    def _answer(self):
        columns = self._columns
        return Answer(
            rows=None if self._plain else self._rows,
            body=columns.pop(_BODY, None),
            time=columns.pop(_TIME, None),
            headers=columns,
            rejected=self._rejected,
        )


class MistakeError(Exception):
    """A plugin that does what it cannot."""


_BODY, _TIME = object(), object()


def _each(plugin, batch):
    edit, intercept = Edit(batch), plugin.intercept
    columns, changes, rows = edit._columns, edit._changes, edit._rows
    event = Event(batch)
    for row in range(batch.rows):
        event.row = edit._row = row
        edit._settled = edit._emitted = False
        intercept(event, edit)
        if not edit._settled:
            if changes or columns:
                edit.emit()
            else:
                rows.append(row)
    return edit._answer()


def exports(plugin_class):
    """The classes that componentize-py looks for: Guest and About."""

    class About:
        def describe(self):
            from wit_world.exports import about

            options = plugin_class.options
            return about.Description(
                plugin_class.version, plugin_class.summary, "" if options is None else json.dumps(options)
            )

    class Guest:
        # componentize-py makes a new object for each call: what lasts belongs to the class.
        plugin = None
        read = None

        def open(self, config):
            plugin = plugin_class()
            try:
                plugin.open(json.loads(config))
            except ConfigError as error:
                raise Err(str(error))
            except Exception as error:
                raise Err(_told(error))
            Guest.plugin, Guest.read = plugin, plugin.reads
            reads = plugin.reads
            return wire.Reads(reads.body, reads.time, reads.identity, reads.headers)

        def process(self, batch):
            try:
                batch = Batch(batch, Guest.read)
                answer = Guest.plugin.process(batch)
                return (answer or Answer())._wire(batch)
            except MistakeError as error:
                raise Err(f"a mistake in the plugin: {error}")
            except Exception as error:
                raise Err(_told(error))

    return Guest, About


def _told(error):
    """The exception, and the line of the plugin that raised it."""
    where = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in where if not frame.filename.endswith("flumen.py")] or where
    at = f" ({mine[-1].filename.rsplit('/', 1)[-1]} line {mine[-1].lineno})" if mine else ""
    return f"{type(error).__name__}: {error}{at}"
