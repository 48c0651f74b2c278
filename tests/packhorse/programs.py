"""Small programs for the tests to run as children, as command lines."""

from __future__ import annotations

import sys
import textwrap


def program(code: str) -> list[str]:
    return [sys.executable, "-u", "-c", textwrap.dedent(code)]


POLITE = program(
    """
    import signal, sys, time
    signal.signal(signal.SIGTERM, lambda *_: (print("bye"), sys.exit(0)))
    print("up")
    time.sleep(60)
    """
)
STUBBORN = program(
    """
    import signal, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("up")
    time.sleep(60)
    """
)
DYING = program(
    """
    import sys
    print("loading")
    print("the model is missing", file=sys.stderr)
    sys.exit(3)
    """
)
