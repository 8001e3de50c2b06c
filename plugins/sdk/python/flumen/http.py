"""HTTP and HTTPS, through the host: `grant = ["http"]` and `egress = { allow = ["host:port"] }`.

The host owns the connections, speaks TLS, keeps to its list and to its limits. Redirects are not followed. An answer with any
status is no failure. A secret is a name: the host puts the value where the name stands.

    answer = http.post(url, body, headers={"authorization": ["Bearer ", http.Secret("token")]})
"""

from componentize_py_types import Err

from .egress import Failure, Secret, failure, parts

try:
    from wit_world.imports import http as host
except ImportError:
    raise ImportError('flumen.http: name the power in plugin.toml: imports = ["http"]') from None

__all__ = ["Failure", "Response", "Secret", "get", "post", "put", "request"]


class Response:
    """An answer: status, headers (name in lower case to value; of several the first), body."""

    def __init__(self, status, headers, body):
        self.status, self.body, self.headers = status, body, {}
        for name, value in headers:
            self.headers.setdefault(name, value)

    def retry_after_ms(self):
        """Milliseconds until the server wants to be asked again, if it says so in seconds."""
        seconds = self.headers.get("retry-after", "").strip()
        return int(seconds) * 1_000 if seconds.isascii() and seconds.isdigit() and len(seconds) < 7 else None

    def excerpt(self):
        """The beginning of the body, for an error."""
        return self.body[:200].decode(errors="replace")


def request(method, url, body=b"", headers=None, timeout_ms=None):
    """Sends a request and waits for the whole answer. Raises Failure.

    `body`, and each value in `headers`: bytes, str, a Secret, or a list of these, which are joined. `timeout_ms`: less than
    the pipeline allows.
    """
    wire_headers = [host.Header(name, parts(value)) for name, value in (headers or {}).items()]
    try:
        answer = host.send(host.Request(method, url, wire_headers, parts(body), timeout_ms))
    except Err as error:
        raise failure(error.value) from None
    return Response(answer.status, answer.headers, answer.body)


def get(url, headers=None, timeout_ms=None):
    """A GET; the rest as for `request`."""
    return request("GET", url, headers=headers, timeout_ms=timeout_ms)


def post(url, body, headers=None, timeout_ms=None):
    """A POST; the rest as for `request`."""
    return request("POST", url, body, headers, timeout_ms)


def put(url, body, headers=None, timeout_ms=None):
    """A PUT; the rest as for `request`."""
    return request("PUT", url, body, headers, timeout_ms)
