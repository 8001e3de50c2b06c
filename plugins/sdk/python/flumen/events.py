"""New events, that a plugin makes."""

from array import array

from wit_world.imports import types as wire

from .columns import bytes_column, header_column


class Events:
    """New events. Give each a time, or none: then it is the time of the call. One without has that of the one before it."""

    def __init__(self):
        self._bodies, self._times, self._headers = [], [], {}

    def __len__(self):
        return len(self._bodies)

    def push(self, body, time=None, headers=None):
        """Adds an event: bytes, nanoseconds since the Unix epoch, name to str or None."""
        row = len(self._bodies)
        self._bodies.append(body)
        self._times.append(time)
        for name, value in (headers or {}).items():
            column = self._headers.setdefault(name, [])
            column.extend([None] * (row - len(column)))
            column.append(value)

    def _wire(self):
        rows = len(self._bodies)
        headers = [
            header_column(name, values + [None] * (rows - len(values)), rows) for name, values in self._headers.items()
        ]
        return wire.Events(rows, bytes_column(self._bodies), self._wire_times(), headers)

    def _wire_times(self):
        last = next((time for time in self._times if time is not None), None)
        if last is None:
            return None
        times = array("q")
        for time in self._times:
            last = last if time is None else time
            times.append(last)
        return times.tobytes()
