"""How far a job is: tokens generated as reported, what of them is to be computed again, time in service, since when it runs or waits.

Times are passed in, in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """`since`: when the job began to run (`running`) or to wait; a job waits from its submission until its prefill is placed."""

    since: float
    running: bool = False
    generated: int = 0
    to_replay: int = 0  # of `generated`, what a job that was dropped has not computed again yet
    served_seconds: float = 0.0  # before `since`
    prefill_seconds: float | None = None  # of its service, what went by until its first prefill was complete

    @property
    def computed(self) -> int:
        """Of `generated`, what its workers have: nothing before its prefill is complete, for the first time or anew."""
        return self.generated - self.to_replay

    def report(self, tokens: int) -> None:
        """Its worker has computed so many tokens of output. Older word changes nothing."""
        self.generated = max(self.generated, tokens)
        self.to_replay = min(self.to_replay, self.generated - tokens)

    def prefilled(self, now: float) -> None:
        """Its prefill is complete: token 1 is out."""
        if self.prefill_seconds is None:
            self.prefill_seconds = self.service_seconds(now)
        self.report(1)

    def drop(self, tokens: int) -> None:
        """Its worker has let go of what it had of the job, whose `tokens` are to be computed again."""
        self.generated = self.to_replay = tokens

    def run(self, now: float) -> None:
        """It is in service from now on; nothing changes when it was."""
        if not self.running:
            self.running, self.since = True, now

    def wait(self, now: float) -> None:
        """It is stopped from now on; nothing changes when it was."""
        if self.running:
            self.served_seconds = self.service_seconds(now)
            self.running, self.since = False, now

    def service_seconds(self, now: float) -> float:
        """Time in service in all."""
        return self.served_seconds + (max(0.0, now - self.since) if self.running else 0.0)

    def waiting_seconds(self, now: float) -> float:
        """How long it has been waiting without a break; 0 while it runs."""
        return 0.0 if self.running else max(0.0, now - self.since)
