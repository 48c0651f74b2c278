"""Whether a job should wait for a place on a faster worker that is full, rather than start now on a slower one.

    wait  if  waited + completion after waiting + gap * (queued / (1 - rho) - 1)  <  completion now,     rho = arrival rate * gap

`gap` is the mean time between two places that come free in the class of the faster worker. Who waits holds up everybody behind him by one
gap: the `queued` jobs of now and those that arrive while the queue lasts, queued / (1 - rho) in all (the busy period of a queue with one
server). So the slow workers stand idle only in bursts that the fast ones will soon have worked off; where the fast ones alone could not
carry the load (rho >= 1) nobody waits. The question is Lin and Kumar's (IEEE TAC 1984: with a fast and a slow server, the slow one is to be
used from some queue length on); this answer, from the cost that each job imposes on others (Naor 1969), is ours.

What a job has `waited` counts against the gain, so it waits in all no longer than it is predicted to gain: a prediction that does not
come true holds nobody up for longer.
"""

from __future__ import annotations

_SMOOTH = 0.02  # weight of the newest interval between arrivals: a memory of about fifty; ours


class Patience:
    def __init__(self) -> None:
        self._last: float | None = None
        self._interval: float | None = None  # mean seconds between placements, which are as many as arrivals

    def placed(self, now: float) -> None:
        """A job was placed."""
        if self._last is not None:
            new = now - self._last
            self._interval = new if self._interval is None else self._interval + _SMOOTH * (new - self._interval)
        self._last = now

    def waits(self, now_seconds: float, later_seconds: float, gap_seconds: float, queued: int, waited: float) -> bool:
        """Completion in seconds if started now and if started on the faster worker; `queued` counts the job itself."""
        if waited + later_seconds >= now_seconds:
            return False
        rho = gap_seconds / self._interval if self._interval else 0.0
        if rho >= 1.0:
            return False
        return waited + later_seconds + gap_seconds * (queued / (1.0 - rho) - 1.0) < now_seconds
