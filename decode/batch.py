"""One decode step: the newest token of every running job, and its attention on the codes of the closed pages.

The new K and V join the residual before attention; a block that they fill is closed into its page with them, once, and is listed
from the next step on: this one still attends it exactly. It knows nothing of sampling or of where pages came from.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from decode.pool import PagePool, Reservation
from hack_kernels import append, plan_decode
from model.sampler import SamplerState
from model.text import FinishRule
from transport.messages import Job, JobStats


@dataclass
class DecodeSequence:
    """A running job. `num_tokens` counts the tokens whose K and V are stored: prompt and generated, less the newest.

    `replay` are the tokens after `last_token` that are known already: the job was dropped, and its K and V are computed again. The
    sampler and the finish rule are ahead: they know them all.
    """

    job: Job
    reservation: Reservation
    sampler: SamplerState
    finish: FinishRule
    stats: JobStats
    last_token: int
    num_tokens: int
    generated: int = 1
    replay: deque[int] = field(default_factory=deque)

    @property
    def pauses(self) -> bool:
        """Whether its declared tool pause begins after its newest token."""
        pause = self.job.tool_pause
        return pause is not None and self.generated == pause.after_tokens


@dataclass
class DecodeBatch:
    """The `Attend` of one step over `sequences`."""

    pool: PagePool
    sequences: Sequence[DecodeSequence]
    tokens: torch.Tensor = field(init=False)  # int64 [batch]
    positions: torch.Tensor = field(init=False)  # int64 [batch]
    logits_at: torch.Tensor = field(init=False)  # int64 [sequences that are not replayed]

    def __post_init__(self) -> None:
        fmt, device = self.pool.fmt, self.pool.pages.device
        self.tokens = torch.tensor([s.last_token for s in self.sequences])
        self.positions = torch.tensor([s.num_tokens for s in self.sequences])
        self.logits_at = torch.tensor([i for i, s in enumerate(self.sequences) if not s.replay], dtype=torch.int64)
        num_pages = [fmt.num_pages(s.num_tokens) for s in self.sequences]
        # one column more than pages are closed: the slot that this step may close into
        table = torch.zeros((len(self.sequences), max(num_pages) + 1), dtype=torch.int64)
        for row, (sequence, count) in enumerate(zip(self.sequences, num_pages, strict=True)):
            slots = sequence.reservation.slots[: count + 1]
            table[row, : len(slots)] = torch.tensor(slots, dtype=torch.int64)
        closed = torch.tensor(num_pages)
        self._open_slots = table.gather(1, closed[:, None])[:, 0].to(device)
        self._rows = torch.tensor([s.reservation.row for s in self.sequences]).to(device)
        self._num_tokens = self.positions.to(device)
        num_closed = closed.to(device)
        residual_tokens = self._num_tokens + 1 - num_closed * fmt.page_tokens
        history = (self.pool.pages, table.to(device), num_closed)
        self._plan = plan_decode(fmt, *history, self.pool.residual, self._rows, residual_tokens)

    def __call__(self, layer: int, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
        """q [batch, heads, head_dim], k and v [batch, kv_heads, head_dim] after RoPE -> [batch, heads, head_dim]."""
        fmt, pages, residual = self.pool.fmt, self.pool.pages[layer], self.pool.residual[layer]
        append(fmt, k, v, pages, residual, self._rows, self._num_tokens, self._open_slots)
        return self._plan.attend(layer, q, scale)
