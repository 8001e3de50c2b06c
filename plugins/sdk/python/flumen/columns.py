"""Batches: a table of events, one column per field."""

from array import array
from bisect import bisect_right
from itertools import accumulate

from wit_world.imports import types as wire


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

    def __init__(self, column):
        super().__init__(column.offsets, column.data)
        self.name, self.present = column.name, column.present

    def __getitem__(self, row):
        if self.present is not None and not bit(self.present, row):
            return None
        return self.data[self.offsets[row]:self.offsets[row + 1]].decode()

    def __iter__(self):
        return (self[row] for row in range(self.rows))


class Batch:
    """A table of events, one column per field. What `reads` did not name is None."""

    __slots__ = ("rows", "body", "time", "stream", "position", "headers")

    def __init__(self, batch):
        self.rows = batch.rows
        self.body = None if batch.body is None else Column(batch.body.offsets, batch.body.data)
        self.time = None if batch.time is None else memoryview(batch.time).cast("q")
        identity = batch.identity
        self.stream = None if identity is None else memoryview(identity.stream).cast("Q")
        self.position = None if identity is None else memoryview(identity.position).cast("Q")
        self.headers = {column.name: Header(column) for column in batch.headers}

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
    def headers(self):
        """Those that the event has and the plugin reads, by name."""
        values = ((name, column[self.row]) for name, column in self._batch.headers.items())
        return {name: value for name, value in values if value is not None}

    @property
    def identity(self):
        """The stream, and the position in it."""
        return self._batch.stream[self.row], self._batch.position[self.row]


def bytes_column(values):
    """The column of these byte strings."""
    return wire.BytesColumn(*_joined(values))


def header_column(name, values, rows):
    """The column of a header: a str or None for each row, or one str for all."""
    if isinstance(values, str):
        value = values.encode()
        offsets = array("I", range(0, len(value) * rows + 1, len(value))) if value else array("I", bytes(4 * rows + 4))
        return wire.HeaderColumn(name, offsets.tobytes(), value * rows, None)
    present = bits([value is not None for value in values]) if None in values else None
    offsets, data = _joined([b"" if value is None else value.encode() for value in values])
    return wire.HeaderColumn(name, offsets, data, present)


def bits(flags):
    """One bit for each row, least significant first."""
    out = bytearray((len(flags) + 7) // 8)
    for row, flag in enumerate(flags):
        if flag:
            out[row >> 3] |= 1 << (row & 7)
    return bytes(out)


def bit(data, row):
    return data[row >> 3] >> (row & 7) & 1 == 1


def _joined(values):
    offsets = array("I", accumulate(map(len, values), initial=0))
    return offsets.tobytes(), b"".join(values)
