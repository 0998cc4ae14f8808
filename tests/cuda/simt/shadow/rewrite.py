"""Rewriting of C++ headers: function bodies exchanged, everything else kept."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

INCLUDE = "#pragma once\n"


class Tree:
    """The headers as they are so far: the rewritten copy where there is one, the original otherwise."""

    def __init__(self, source: Path, out: Path) -> None:
        self.source = source
        self.out = out

    def read(self, path: str) -> str:
        """The text of a header by its path below the include directory."""
        written = self.out / path
        return (written if written.exists() else self.source / path).read_text()

    def write(self, path: str, text: str) -> None:
        """Stores a header that shadows the one of the same path."""
        written = self.out / path
        written.parent.mkdir(parents=True, exist_ok=True)
        written.write_text(text)


def include(text: str, header: str) -> str:
    """Adds an #include after the header's first #pragma once."""
    line = f'#include "{header}"\n'
    if line in text:
        return text
    if INCLUDE not in text:
        raise ValueError(f"no #pragma once to put {header} after")
    return text.replace(INCLUDE, INCLUDE + line, 1)


def body_span(text: str, start: int) -> tuple[int, int]:
    """Where the first {...} after start begins and ends."""
    begin = text.index("{", start)
    depth = 0
    for i in range(begin, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return begin, i + 1
    raise ValueError("unbalanced braces")


def set_body(text: str, signature: str, body: str, start: int = 0) -> str:
    """Gives the function whose text contains signature another body."""
    at = text.index(signature, start) + len(signature)
    begin, end = body_span(text, at)
    return f"{text[:begin]}{{ {body} }}{text[end:]}"


@dataclass(frozen=True)
class Function:
    """A static member function of a struct that wraps one instruction."""

    struct: str
    name: str
    parameters: tuple[tuple[str, str], ...]  # type without reference and const, name
    body: str

    def named(self, prefix: str) -> list[str]:
        """The parameters called prefix, prefix0, prefix1 ..."""
        return [name for _, name in self.parameters if re.fullmatch(prefix + r"\d*", name)]

    def type_of(self, parameter: str) -> str:
        """The parameter's type."""
        return next(kind for kind, name in self.parameters if name == parameter)


def parse_parameters(text: str) -> tuple[tuple[str, str], ...]:
    """(type, name) of every parameter of a signature's inside."""
    found = []
    for parameter in re.sub(r"//[^\n]*", "", text).split(","):
        words = re.match(r"\s*(.*?)[\s&]+(\w+)\s*$", " ".join(parameter.split()))
        if words is None:
            raise ValueError(f"unknown form of parameter: {parameter!r}")
        found.append((words[1].replace("const", "").strip(" &"), words[2]))
    return tuple(found)


def rewrite_structs(text: str, new_body: Callable[[Function], str | None]) -> str:
    """Exchanges the bodies of the fma and copy functions for which new_body gives one."""
    edits = []
    struct = ""
    for match in re.finditer(
        r"^struct\s+(\w+)|^[ \t]+(?:CUTE_\w+ static void\s+)?(fma|copy)\s*\(([^)]*)\)", text, re.M
    ):
        if match[1]:
            struct = match[1]
            continue
        begin, end = body_span(text, match.end())
        body = new_body(Function(struct, match[2], parse_parameters(match[3]), text[begin:end]))
        if body is not None:
            edits.append((begin, end, body))
    for begin, end, body in reversed(edits):
        text = f"{text[:begin]}{{ {body} }}{text[end:]}"
    return text
