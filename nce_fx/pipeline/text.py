"""Pipelines as text, which people write and passes print:

    resize{plan=@plan.json},my.module:MyPass{k=1},quantize{weight_bits=2}

    pipeline = pass {"," pass}            pass = name ["{" [key "=" value {"," key "=" value}] "}"]
    name     = kebab-case name | package.module:Class | path/to/file.py:Class
    value    = JSON | none | word | @file     a word is letters, digits and ``_-./*``; the file holds JSON

Keys are the names of the pass's options. What is printed reads back as the same pipeline; ``@file`` is for input only.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nce_fx.errors import InputError
from nce_fx.pipeline.base import Pass, Pipeline, source_of
from nce_fx.plain_text import read_json

_NAME = re.compile(r"[\w./~-]+(?::[A-Za-z_][\w.]*)?")
_KEY = re.compile(r"[A-Za-z_]\w*")
_WORD = re.compile(r"[A-Za-z_*][\w.*/-]*")
_FILE = re.compile(r"@([^,}\s]+)")
_WORDS = {"none": None, "null": None, "true": True, "false": False}
Lookup = Callable[[str], type[Pass]]


def parse(text: str, lookup: Lookup, defaults: Mapping[str, Mapping[str, Any]] | None = None) -> Pipeline:
    """Return the pipeline that a text says.

    Args:
        text: in the form above.
        lookup: finds the class of a pass by its name.
        defaults: options by the name of a pass, where the text does not give them.

    Raises:
        InputError: no pipeline; says where, and what was expected.
        PassError: an option that the pass does not have, or of another type.
    """
    reader = _Reader(text)
    passes: list[Pass] = []
    classes: dict[str, type[Pass]] = {}
    while True:
        name = reader.take(_NAME, "the name of a pass").group()
        if name not in classes:
            classes[name] = lookup(name)
        kind = classes[name]
        passes.append(kind.from_options({**(defaults or {}).get(kind.name, {}), **reader.options()}))
        if reader.at_end():
            return Pipeline(tuple(passes))
        reader.expect(",", "',' or the end")


def to_text(what: Pass | Pipeline) -> str:
    """Return a pass or a pipeline as text; options that are as by default are left out.

    Raises:
        PassError: an option is not plain data.
    """
    if isinstance(what, Pipeline):
        return ",".join(to_text(step) for step in what.steps)
    options = ",".join(f"{key}={_value(value)}" for key, value in what.options(changed=True).items())
    return (source_of(type(what)) or what.name) + (f"{{{options}}}" if options else "")


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, str) and _WORD.fullmatch(value) and value not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


class _Reader:
    """A text and the place that was read up to."""

    def __init__(self, text: str) -> None:
        self.text, self.place = text, 0

    def options(self) -> dict[str, Any]:
        """Read ``{key=value,...}``, where there is one."""
        found: dict[str, Any] = {}
        if not self.has("{"):
            return found
        while not self.has("}"):
            if found:
                self.expect(",", "',' or '}'")
            key = self.take(_KEY, "the name of an option").group()
            if key in found:
                raise self.wrong(f"option {key} only once")
            self.expect("=", f"'=' and the value of {key}")
            found[key] = self.value(key)
        return found

    def value(self, key: str) -> Any:
        self.skip()
        if self.text.startswith("@", self.place):
            return _read(self.take(_FILE, "the name of a file").group(1), key)
        word = _WORD.match(self.text, self.place)
        if word is not None:
            self.place = word.end()
            return _WORDS.get(word.group(), word.group())
        try:
            found, self.place = json.JSONDecoder().raw_decode(self.text, self.place)
        except (ValueError, RecursionError) as error:
            raise self.wrong(f"the value of {key}: JSON, none, a word or @file") from error
        return found

    def take(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        self.skip()
        found = pattern.match(self.text, self.place)
        if found is None:
            raise self.wrong(what)
        self.place = found.end()
        return found

    def expect(self, sign: str, what: str) -> None:
        if not self.has(sign):
            raise self.wrong(what)

    def has(self, sign: str) -> bool:
        self.skip()
        there = self.text.startswith(sign, self.place)
        self.place += len(sign) if there else 0
        return there

    def at_end(self) -> bool:
        self.skip()
        return self.place == len(self.text)

    def skip(self) -> None:
        while self.place < len(self.text) and self.text[self.place].isspace():
            self.place += 1

    def wrong(self, expected: str) -> InputError:
        rest = self.text[self.place : self.place + 20]
        found = repr(rest) if rest else "the end"
        return InputError(f"passes {self.text[:80]!r}: at {found}, expected {expected}")


def _read(name: str, key: str) -> Any:
    try:
        return read_json(Path(name).expanduser().read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"option {key}=@{name}: it is not a file of JSON: {error}") from error
