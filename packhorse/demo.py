"""`packhorse demo`: a small cluster, two completions at the same time over HTTP, what they cost, and a clean end.

A terminal shows both answers as they grow; anywhere else the output is plain lines. The texts suit the embedded model, which
tells small stories and looks words up in its context; every prompt is long enough that several pages are shipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from packhorse.client import first_model, open_client, stream_chat
from packhorse.errors import PackhorseError
from packhorse.launcher import DemoConfig, LocalCluster
from packhorse.prompts import RECALL_ANSWER, RECALL_QUESTION, conversation, recall
from packhorse.up import terminating

STORY_TOKENS = 128
_REFRESHES_PER_SECOND = 8
_PANEL_LINES = 12


class DemoError(PackhorseError):
    """Something that the demo promises did not happen."""

    code = "demo_failed"


@dataclass
class Stream:
    """One completion: what was asked, what came, and when."""

    title: str
    messages: Sequence[Mapping[str, str]]
    seed: int
    text: str = ""
    started_at: float = 0.0
    first_at: float = 0.0
    last_at: float = 0.0
    usage: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ttft_seconds(self) -> float:
        return self.first_at - self.started_at

    @property
    def tokens_per_second(self) -> float:
        """Of the decode phase: all tokens after the first."""
        seconds = self.last_at - self.first_at
        return (self.usage.get("completion_tokens", 1) - 1) / seconds if seconds > 0 else 0.0

    @property
    def transfer(self) -> Mapping[str, Any]:
        return self.usage.get("kv_transfer") or {}

    def run(self, client: httpx.Client, model: str) -> None:
        """Streams the answer into this object. Raises ServerError."""
        self.started_at = time.monotonic()
        sampling = {"max_tokens": STORY_TOKENS, "temperature": 0.5, "top_p": 0.95, "seed": self.seed}
        for piece in stream_chat(client, model, self.messages, **sampling):
            self.last_at = time.monotonic() if piece.text else self.last_at
            self.first_at = self.first_at or self.last_at
            self.text += piece.text
            self.usage = piece.usage or self.usage


def demo(config: DemoConfig) -> int:
    """Runs the demo; returns 0 when everything that it promises happened. Raises what LocalCluster and the server raise."""
    console = Console(highlight=False)
    began = time.monotonic()
    with terminating():
        pids = _play(config, console)
    left = [pid for pid in pids if _exists(pid)]
    if left:
        raise DemoError(f"processes {left} are still there")
    seconds = time.monotonic() - began
    _say(console, f"All {len(pids)} processes have ended; nothing is left. {seconds:.1f} s in all.")
    return 0


def _play(config: DemoConfig, console: Console) -> list[int]:
    workers = f"{config.prefill} prefill and {config.decode} decode workers"
    _say(console, f"Starting a scheduler, a gateway, {workers} on {config.model} ({config.kv_format} pages) ...")
    began = time.monotonic()
    with LocalCluster(config) as cluster, open_client(cluster.url, _key(config)) as client:
        seconds = time.monotonic() - began
        _say(console, f"Up at {cluster.url} after {seconds:.1f} s. Two requests at the same time:\n")
        model = first_model(client)
        streams = [Stream(f"story {number + 1}", conversation(number), seed=number) for number in range(2)]
        _stream_all(streams, client, model, console)
        console.print(_table(streams))
        _check(streams)
        if config.model == "embedded":
            _say(console, _recall(client, model))
        pids = [child.pid for child in cluster.processes.values()]
        _say(console, "Stopping ...")
    return pids


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, soft_wrap=True)


def _stream_all(streams: Sequence[Stream], client: httpx.Client, model: str, console: Console) -> None:
    """Runs all streams at once and shows them."""
    with ThreadPoolExecutor(len(streams)) as pool, _shown(streams, console):
        running: list[Future[None]] = [pool.submit(stream.run, client, model) for stream in streams]
        for future in running:
            future.result()


@contextmanager
def _shown(streams: Sequence[Stream], console: Console) -> Iterator[None]:
    """Live panels in a terminal; elsewhere the whole texts at the end."""

    def panels() -> Group:
        return Group(*(Panel(stream.text or "...", title=stream.title, height=_PANEL_LINES) for stream in streams))

    if console.is_terminal:
        with Live(get_renderable=panels, console=console, refresh_per_second=_REFRESHES_PER_SECOND):
            yield
        return
    yield
    for stream in streams:
        _say(console, f"{stream.title}: {stream.text.strip()}\n")


def _table(streams: Sequence[Stream]) -> Table:
    table = Table("", *(stream.title for stream in streams))
    rows: dict[str, Callable[[Stream], str]] = {
        "prompt tokens": lambda s: str(s.usage.get("prompt_tokens")),
        "completion tokens": lambda s: str(s.usage.get("completion_tokens")),
        "time to first token": lambda s: f"{s.ttft_seconds * 1000:.0f} ms",
        "tokens per second": lambda s: f"{s.tokens_per_second:.1f}",
        "KV bytes shipped": lambda s: f"{s.transfer.get('bytes_shipped', 0):,}",
        "held, thus not shipped": lambda s: f"{s.transfer.get('bytes_held', 0):,}",
        "the same in bf16": lambda s: f"{s.transfer.get('raw_bytes', 0):,}",
        "saved": lambda s: f"{100 - 100 * s.transfer.get('bytes_shipped', 0) / s.transfer.get('raw_bytes', 1):.0f} %",
        "workers": lambda s: f"{s.transfer.get('prefill_worker')} -> {s.transfer.get('decode_worker')}",
    }
    for name, value in rows.items():
        table.add_row(name, *(value(stream) for stream in streams))
    return table


def _recall(client: httpx.Client, model: str) -> str:
    """Asks for a word that only stands in the prompt, thus only in the pages that were shipped."""
    pieces = stream_chat(client, model, recall(), max_tokens=8, temperature=0)
    said = "".join(piece.text for piece in pieces).strip()
    verdict = "right" if RECALL_ANSWER in said else f"wrong: {RECALL_ANSWER} was"
    return f'Read back from the packed pages: "{RECALL_QUESTION}" - "{said}" ({verdict})\n'


def _check(streams: Sequence[Stream]) -> None:
    """Raises DemoError unless every stream has text and travelled from a prefill to a decode worker."""
    for stream in streams:
        if not stream.text.strip():
            raise DemoError(f"{stream.title} is empty")
        if not (stream.transfer.get("bytes_shipped") and stream.transfer.get("decode_worker")):
            raise DemoError(f"{stream.title} shipped no pages; the server says {dict(stream.usage)}")


def _key(config: DemoConfig) -> str | None:
    return config.api_key.get_secret_value() if config.api_key else None


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
