"""TCP, with or without TLS, through the host: `grant = ["tcp"]` and `egress = { allow = ["host:port"] }`.

The host owns the connection and keeps to its list and to its limits. A secret is a name: the host puts the value where the name
stands.

    with tcp.connect("127.0.0.1", 6379) as connection:
        connection.write(["AUTH ", tcp.Secret("password"), "\\r\\n"])
        answer = connection.read()
"""

from componentize_py_types import Err

from .egress import Failure, Secret, failure, parts

try:
    from wit_world.imports import tcp as host
except ImportError:
    raise ImportError('flumen.tcp: name the power in plugin.toml: imports = ["tcp"]') from None

__all__ = ["Connection", "Failure", "Secret", "connect"]


def connect(name, port, tls=False):
    """Connects to a host. With `tls`, its name has to be the certificate's. Raises Failure."""
    return Connection(_asked(host.Connection.connect, name, port, tls))


class Connection:
    """A connection, closed by `close` or at the end of a `with`."""

    def __init__(self, wire):
        self._wire = wire

    def write(self, data):
        """Writes everything: bytes, str, a Secret, or a list of these, which are joined. Raises Failure."""
        _asked(self._wire.write, parts(data))

    def read(self, max=65_536, timeout_ms=None):
        """At least one byte and at most `max`; none: the other side is done. Raises Failure.

        `timeout_ms`: less than the pipeline allows.
        """
        return _asked(self._wire.read, max, timeout_ms)

    def close(self):
        """Closes it. What comes after it fails."""
        wire, self._wire = self._wire, None
        if wire is not None:
            wire.__exit__(None, None, None)

    def __enter__(self):
        return self

    def __exit__(self, *raised):
        self.close()


def _asked(call, *given):
    try:
        return call(*given)
    except Err as error:
        raise failure(error.value) from None
