"""LAMPS (arXiv 2410.18248; MARS, NeurIPS '25): by memory x time over a job's whole life, its tool pause included.

Before a job is ranked, it is decided from predictions what becomes of its memory during the pause, by the least waste in
tokens x seconds (N: its tokens at the pause; others: the tokens of the jobs beside it, which wait meanwhile):

    preserve = pause * N        swap = move * N + 2 * move * others        discard = recompute * N / 2 + recompute * others

ties in that order. The paper fits its own constants per chunk; here recompute is the cost model's prefill of N tokens and move is
N / SWAP_TOKENS_PER_SECOND (ours: an 8B model's pages at 16 bits over PCIe 4). OTHERS_TOKENS, taken where no batch is known yet, is ours.
The rank's parts: prefill and decode before the pause, the pause by its action, recompute or swaps and decode after it, the tool's
answer included. Running jobs are not ranked again. A job that waits for 100 steps goes first until it is done (the paper's bench).
A pause is declared by the request (`tool_pause`); without one, and once it is over, the rank is memory x time of the whole output.
"""

from __future__ import annotations

from scheduler.jobs import TrackedJob
from scheduler.policies.base import JobCost, PauseAction
from scheduler.policies.estimate import context_tokens, prefill_seconds, remaining_tokens
from scheduler.policies.queue import Rank
from scheduler.policies.ranked import RankedPolicy

STARVATION_STEPS = 100
OTHERS_TOKENS = 16 * 1024
SWAP_TOKENS_PER_SECOND = 200_000.0


class Lamps(RankedPolicy):
    name = "lamps"

    def __init__(
        self,
        cost: JobCost | None = None,
        *,
        starvation_steps: int = STARVATION_STEPS,
        swap_tokens_per_second: float = SWAP_TOKENS_PER_SECOND,
    ) -> None:
        super().__init__(cost)
        self.swap_tokens_per_second = swap_tokens_per_second
        step_seconds = self.cost.step_seconds(OTHERS_TOKENS, 16)
        self.max_wait_seconds = self._queue.max_wait_seconds = starvation_steps * step_seconds

    def queue_rank(self, job: TrackedJob) -> Rank:
        return (self.memory_seconds(job),)

    def pause_action(self, job: TrackedJob, others_tokens: int = OTHERS_TOKENS) -> PauseAction:
        if job.pause is None:
            return "preserve"
        tokens = self._tokens_at_pause(job)
        recompute, move = self.cost.prefill_seconds(tokens), self._move_seconds(tokens)
        wastes: dict[PauseAction, float] = {
            "preserve": job.pause.seconds * tokens,
            "swap": move * tokens + 2 * move * others_tokens,
            "discard": recompute * tokens / 2 + recompute * others_tokens,
        }
        return min(wastes, key=lambda action: wastes[action])

    def memory_seconds(self, job: TrackedJob) -> float:
        """Tokens x seconds that the job will still hold."""
        left, held = remaining_tokens(job), context_tokens(job)
        total = prefill_seconds(job, self.cost) * held / 2
        if job.pause is None:
            return total + self._decode(held, left)
        before = max(0.0, min(left, float(job.pause.after_tokens - job.progress.generated)))
        tokens = self._tokens_at_pause(job)
        resumed = tokens + job.pause.returned_tokens
        total += self._decode(held, before) + self._pause(job, tokens)
        return total + self.cost.prefill_seconds(resumed, tokens) * resumed + self._decode(resumed, left - before)

    def _pause(self, job: TrackedJob, tokens: int) -> float:
        assert job.pause is not None
        action = self.pause_action(job)
        if action == "preserve":
            return tokens * job.pause.seconds
        if action == "swap":
            return 2 * self._move_seconds(tokens) * tokens
        return self.cost.prefill_seconds(tokens) * tokens / 2

    def _decode(self, held: int, steps: float) -> float:
        mean = held + steps / 2
        return mean * steps * self.cost.step_seconds(round(mean), 1)

    def _move_seconds(self, tokens: int) -> float:
        return tokens / self.swap_tokens_per_second

    @staticmethod
    def _tokens_at_pause(job: TrackedJob) -> int:
        assert job.pause is not None
        return job.prompt_tokens + max(job.progress.generated, job.pause.after_tokens)
