"""Docstrings and defaults as griffe reads them: one name per line of a list, where ours may have several, and what a
field's default is, not the function that makes it."""

import re
from typing import Any

import griffe

NAMES = re.compile(r"( +)(\w+(?:, \w+)+)(: .*)")


def one_name_each(text: str) -> str:
    """Return a docstring whose lines ``low, high: bounds`` are one for each name, with all that belongs to it."""
    lines, out = text.splitlines(), list[str]()
    while lines:
        found = NAMES.fullmatch(lines[0])
        if found is None:
            out.append(lines.pop(0))
            continue
        indent, names, rest = found.groups()
        size = next((n for n, line in enumerate(lines) if n and not line.startswith(indent + " ")), len(lines))
        for name in names.split(", "):
            out += [indent + name + rest, *lines[1:size]]
        del lines[:size]
    return "\n".join(out)


class Readable(griffe.Extension):
    """Prepares what griffe has found in the source before it goes on with it."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = one_name_each(obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: Any) -> None:
        """``field(default_factory=lambda: X)`` is shown as X."""
        if not isinstance(attr.value, griffe.ExprCall):
            return
        for argument in attr.value.arguments:
            if isinstance(argument, griffe.ExprKeyword) and isinstance(argument.value, griffe.ExprLambda):
                argument.name, argument.value = "default", argument.value.body
