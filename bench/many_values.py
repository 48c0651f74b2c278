"""A command whose repeatable options take several values after one flag, `--context 1024 4096`, or with commas. Knows no option by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand


class ManyValuesCommand(TyperCommand):
    """Rewrites its arguments before they are parsed: every value of a repeatable option gets the flag of its own."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        flags = {flag: bool(param.multiple) for param in self.params for flag in (*param.opts, *param.secondary_opts)}
        return super().parse_args(ctx, spread(args, flags))


def spread(args: Sequence[str], flags: Mapping[str, bool]) -> list[str]:
    """`flags` says of every flag whether it may repeat: ["--a", "1", "2,3"] -> ["--a", "1", "--a", "2", "--a", "3"] where --a may."""
    out: list[str] = []
    flag, given = None, True
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("-") and len(arg) > 1:
            if not given and flag is not None:
                out.append(flag)  # a flag without a value: let the parser say so
            flag = name if flags.get(name) else None
            given = flag is None or bool(equals)
            out += [x for part in _split(value) for x in (name, part)] if flag and equals else [] if flag else [arg]
        elif flag is None:
            out.append(arg)
        else:
            given = True
            out += [x for part in _split(arg) for x in (flag, part)]
    return out if given or flag is None else [*out, flag]


def _split(text: str) -> list[str]:
    return [part for part in text.split(",") if part] or [text]
