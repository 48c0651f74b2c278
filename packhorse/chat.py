"""`packhorse chat`: talk to a model in the terminal. /reset forgets, /quit or Ctrl-D leaves, Ctrl-C stops an answer."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import ExitStack

from pydantic import SecretStr

from packhorse.client import Piece, ServerError, first_model, open_client, stream_chat
from packhorse.launcher import ClusterConfig, LocalCluster

HELP = "/reset forgets the conversation, /quit leaves, Ctrl-C stops an answer"


def chat(url: str | None, model: str | None, api_key: str | None, max_tokens: int, temperature: float) -> int:
    """Runs until /quit or the end of input; without a `url` on a cluster of its own. Raises ServerError."""
    with ExitStack() as stack:
        if url is None:
            print("starting a server ...", file=sys.stderr, flush=True)
            config = ClusterConfig(model=model or "embedded", port=0, api_key=SecretStr(api_key) if api_key else None)
            url, model = stack.enter_context(LocalCluster(config)).url, None
        client = stack.enter_context(open_client(url, api_key))
        name = model or first_model(client)
        print(f"{name} at {url}. {HELP}.", file=sys.stderr)
        messages: list[dict[str, str]] = []
        while (line := _ask()) is not None and line != "/quit":
            if line == "/reset":
                messages.clear()
                continue
            messages.append({"role": "user", "content": line})
            pieces = stream_chat(client, name, messages, max_tokens=max_tokens, temperature=temperature)
            if answer := _show(pieces):
                messages.append({"role": "assistant", "content": answer})
            else:
                messages.pop()
    return 0


def _ask() -> str | None:
    """The next line that is not blank, or None at the end of input."""
    while True:
        try:
            line = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return None
        if line:
            return line


def _show(pieces: Generator[Piece, None, None]) -> str:
    """Prints an answer as it comes and returns it, as far as it came."""
    text = ""
    try:
        for piece in pieces:
            text += piece.text
            print(piece.text, end="", flush=True)
    except KeyboardInterrupt:
        pieces.close()
        print(" [stopped]", end="")
    except ServerError as error:
        print(f"\npackhorse: error: {error}", file=sys.stderr, end="")
    print()
    return text
