"""What the ways out (flumen.http, flumen.tcp) share: what is sent, and how it fails."""

try:
    from wit_world.imports import egress
except ImportError:
    raise ImportError('flumen: name the power in plugin.toml: imports = ["http"] or ["tcp"]') from None


class Secret:
    """The secret of this name, from the pipeline's file."""

    def __init__(self, name):
        self.name = name


class Failure(Exception):
    """There is no answer. `kind`: denied, invalid, unreachable, timed-out or too-large."""

    def __init__(self, kind, words):
        super().__init__(words)
        self.kind = kind


def parts(value):
    """bytes, str, a Secret, or a list of these, as it crosses."""
    return [_part(part) for part in (value if isinstance(value, list) else [value])]


def _part(part):
    if isinstance(part, Secret):
        return egress.Part_Secret(part.name)
    return egress.Part_Text(part) if isinstance(part, str) else egress.Part_Bytes(part)


def failure(failure):
    """What the host failed with, as an exception."""
    match failure:
        case egress.Failure_Denied(words):
            return Failure("denied", f"not allowed: {words}")
        case egress.Failure_Invalid(words):
            return Failure("invalid", f"the request is wrong: {words}")
        case egress.Failure_Unreachable(words):
            return Failure("unreachable", words)
        case egress.Failure_TimedOut():
            return Failure("timed-out", "no answer in time")
        case egress.Failure_TooLarge(limit):
            return Failure("too-large", f"the answer has more than {limit} bytes")
