"""Keeps the events whose body holds a text, and marks them with a header."""

import flumen


class Plugin(flumen.Interceptor):
    version = "0.1.0"
    summary = "Keeps the events whose body holds a text, and marks them with a header."
    options = {
        "type": "object",
        "additionalProperties": False,
        "required": ["contains"],
        "properties": {
            "contains": {"type": "string", "minLength": 1, "description": "What the body has to hold."},
            "header": {
                "type": "string",
                "minLength": 1,
                "default": "matched",
                "description": "The header that is set.",
            },
        },
    }

    def open(self, config):
        unknown = config.keys() - {"contains", "header"}
        if unknown:
            raise flumen.ConfigError(f"config: unknown key `{min(unknown)}`; the keys are `contains`, `header`")
        self.contains = config.get("contains", "")
        if not self.contains:
            raise flumen.ConfigError("config: the key `contains` is missing; add it")
        self.needle = self.contains.encode()
        self.header = config.get("header", "matched")
        self.reads = flumen.Reads(body=True, headers=[self.header])

    def intercept(self, event, edit):
        if self.needle in event.body:
            edit.set_header(self.header, self.contains)
        else:
            edit.drop()
