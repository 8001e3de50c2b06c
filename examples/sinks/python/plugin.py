"""Appends events as lines to a resource over HTTP, each exactly once.

`GET url` answers 200 with the header `flumen-cursor`, or 404 if nothing was stored. `POST url` has lines and two headers: the
server stores the lines and `flumen-cursor` in one step, if `flumen-after` is the cursor that it has.
"""

import flumen
from flumen import http

# Instead of a cursor, where there is none.
NONE = "none"


class Plugin(flumen.Sink):
    version = "0.1.0"
    summary = "Appends events as lines to a resource over HTTP, each exactly once."
    options = {
        "type": "object",
        "additionalProperties": False,
        "required": ["url"],
        "properties": {
            "url": {
                "type": "string",
                "pattern": "^https?://",
                "description": "The resource; `egress.allow` has to name its host and port.",
            },
        },
    }
    reads = flumen.Reads(body=True)
    recovers = True

    def open(self, config):
        unknown = config.keys() - {"url"}
        if unknown:
            raise flumen.ConfigError(f"config: unknown key `{min(unknown)}`; the keys are `url`")
        self.url = config.get("url", "")
        if not self.url:
            raise flumen.ConfigError("config: the key `url` is missing; add it")
        # What the server has, in hexadecimal.
        self.stored = NONE

    def recover(self):
        answer = http.get(self.url)
        cursor = answer.headers.get("flumen-cursor")
        if answer.status == 200 and cursor is not None:
            self.stored = cursor
        elif answer.status == 404:
            self.stored = NONE
        else:
            raise unexpected(answer)
        return None if self.stored == NONE else from_hex(self.stored)

    def deliver(self, batch, cursor):
        bodies = list(batch.body)
        wrong = [row for row, body in enumerate(bodies) if b"\n" in body]
        if wrong:
            # Before anything is stored: the others come again without them.
            return flumen.Delivered(rejected=dict.fromkeys(wrong, "it has a line end in it, and a line cannot"))
        headers = {"flumen-cursor": cursor.hex(), "flumen-after": self.stored}
        answer = http.post(self.url, b"\n".join(bodies) + b"\n", headers)
        if 200 <= answer.status < 300:
            self.stored = cursor.hex()
            return flumen.Delivered()
        if answer.status in (429, 503):
            return flumen.Retry(unexpected(answer), answer.retry_after_ms())
        raise unexpected(answer)


def unexpected(answer):
    return RuntimeError(f"the server says {answer.status}: {answer.excerpt()}")


def from_hex(text):
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise RuntimeError(f"the server's cursor {text!r} is not hexadecimal") from None
