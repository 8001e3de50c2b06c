"""Interceptors: a batch in, the difference out."""

from array import array

from wit_world.imports import types as wire

from .columns import Batch, Event, bytes_column, header_column
from .plugin import Export, MistakeError, Plugin, told


class Interceptor(Plugin):
    """Sees one event at a time."""

    def intercept(self, event, edit):
        """What `edit` is not told stays as it is. An exception blames the whole batch: use edit.reject for an event."""
        raise NotImplementedError("define intercept(self, event, edit)")

    def process(self, batch):
        return _each(self, batch)


class BatchInterceptor(Plugin):
    """Sees the columns of a whole batch at once, for speed."""

    def process(self, batch):
        """Answers with an Answer, or None: the batch stays as it is."""
        raise NotImplementedError("define process(self, batch)")


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
        headers = [header_column(name, values, rows) for name, values in self.headers.items()]
        return wire.Difference(
            None if self.rows is None else array("I", self.rows).tobytes(),
            None if self.body is None else bytes_column(self.body),
            None if self.time is None else array("q", self.time).tobytes(),
            headers,
            self.remove,
            [wire.Rejection(row, str(reason)) for row, reason in self.rejected.items()],
        )


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


class Guest(Export):
    @told
    def open(self, config):
        return self.opened(config).reads._wire()

    @told
    def process(self, batch):
        batch = Batch(batch)
        return (self.plugin.process(batch) or Answer())._wire(batch)
