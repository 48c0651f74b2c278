"""One job on a decode worker, from its reservation until nothing of it is left."""

from __future__ import annotations

import asyncio
import enum
from dataclasses import dataclass, field

from decode.batch import DecodeSequence
from decode.copier import HostCopy
from decode.intake import Intake
from transport.messages import Job, Replay


class State(enum.Enum):
    """A job is reserved, then receiving, then running, maybe paused for its tool; a preempted one stops, is out, returns and runs again."""

    RESERVED = "reserved"
    RECEIVING = "receiving"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    OUT = "out"
    RETURNING = "returning"
    LEAVING = "leaving"


@dataclass
class Held:
    """`replay`: of a job that was dropped before. `moving`: the last Preempt or Resume, under way or done. `copy`: what is on the host."""

    intake: Intake
    replay: Replay | None = None
    state: State = State.RESERVED
    sequence: DecodeSequence | None = None
    moving: asyncio.Task[None] | None = None
    copy: HostCopy | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def job(self) -> Job:
        return self.intake.job
