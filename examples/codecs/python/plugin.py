"""Frames: four bytes with the length of a body, the highest first, then the body."""

import flumen

MEBIBYTE = 1 << 20


class Plugin(flumen.Codec):
    version = "0.1.0"
    summary = "Frames: four bytes with the length of a body, the highest first, then the body."
    options = {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "max_bytes": {
                "type": "integer",
                "minimum": 1,
                "maximum": 67108864,
                "default": MEBIBYTE,
                "description": "Bytes of the longest body.",
            },
        },
    }
    reads = flumen.Reads(body=True)

    def open(self, config):
        unknown = config.keys() - {"max_bytes"}
        if unknown:
            raise flumen.ConfigError(f"config: unknown key `{min(unknown)}`; the keys are `max_bytes`")
        self.max_bytes = config.get("max_bytes", MEBIBYTE)
        if not isinstance(self.max_bytes, int):
            raise flumen.ConfigError("config.max_bytes: write a number")

    def decode(self, data, is_last, out):
        start = 0
        while start < len(data):
            body = start + 4
            length = int.from_bytes(data[start:body], "big") if body <= len(data) else 0
            if length > self.max_bytes:
                # Nothing tells where the next one begins.
                out.bad(start, len(data), f"a frame of {length} bytes is longer than max_bytes")
                return
            if body + length > len(data):
                if is_last:
                    out.bad(start, len(data), "the last frame is not whole")
                return
            start = body + length
            out.event(start, data[body:start])

    def encode(self, batch, file, out):
        for row, body in enumerate(batch.body):
            if len(body) > self.max_bytes:
                out.reject(row, f"a body of {len(body)} bytes is longer than max_bytes")
            else:
                out.push(len(body).to_bytes(4, "big") + body)
