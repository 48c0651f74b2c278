"""How far a job is: tokens generated as reported, time in service, since when it runs or waits. Times are passed in, in seconds."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """`since`: when the job began to run (`running`) or to wait; a job waits from its submission until its prefill is placed."""

    since: float
    running: bool = False
    generated: int = 0
    served_seconds: float = 0.0  # before `since`

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
