"""What all kinds of plugins share: how they open, what they read, how they fail."""

import json
import os

from componentize_py_types import Err
from wit_world.exports import about
from wit_world.imports import types as wire


class ConfigError(Exception):
    """What is wrong with the configuration, for the user: name the key and the fix."""


class MistakeError(Exception):
    """A plugin that does what it cannot."""


class Reads:
    """The columns to look at and to change. Others never cross the sandbox. headers="*": all that a batch has."""

    def __init__(self, body=False, time=False, identity=False, headers=()):
        self.body, self.time, self.identity, self.headers = body, time, identity, list(headers)

    def _wire(self):
        return wire.Reads(self.body, self.time, self.identity, self.headers)


class Plugin:
    """What every kind of plugin has."""

    version = "0.1.0"
    summary = ""
    #: JSON Schema of the configuration, as a dict; None: any configuration.
    options = None
    reads = Reads(body=True)

    def open(self, config):
        """`config` is a dict. Raise ConfigError if it is wrong; set self.reads if that depends on it."""


def about_of(plugin_class):
    """The class that tells about the plugin."""

    class About:
        def describe(self):
            options = plugin_class.options
            return about.Description(
                plugin_class.version, plugin_class.summary, "" if options is None else json.dumps(options)
            )

    return About


class Export:
    """An interface that a plugin has. componentize-py makes a new object for each call: what lasts belongs to the class."""

    plugin_class = None
    plugin = None

    @classmethod
    def of(cls, plugin_class):
        """The class that componentize-py looks for by its name."""
        return type(cls.__name__, (cls,), {"plugin_class": plugin_class})

    def opened(self, config):
        """A fresh plugin, opened, which is the one from now on."""
        plugin = self.plugin_class()
        plugin.open(json.loads(config))
        type(self).plugin = plugin
        return plugin


def told(call):
    """Lets an exception of the plugin become an error that has its words, and its line."""

    def method(self, *arguments):
        try:
            return call(self, *arguments)
        except ConfigError as error:
            raise Err(str(error))
        except MistakeError as error:
            raise Err(f"a mistake in the plugin: {error}")
        except Exception as error:
            raise Err(_words(error))

    return method


def _words(error):
    """The exception, and the last line of the plugin that it passed. (The module traceback would look at the file: a trap.)"""
    sdk, at, step = os.path.dirname(__file__), "", error.__traceback__
    while step is not None:
        file = step.tb_frame.f_code.co_filename
        if os.path.dirname(file) != sdk:
            at = f" ({os.path.basename(file)} line {step.tb_lineno})"
        step = step.tb_next
    return f"{type(error).__name__}: {error}{at}"
