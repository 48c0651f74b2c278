"""Workers that can take one more job, sorted by a key within groups, and by free pages. Knows nothing of what the keys mean."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from itertools import islice
from operator import itemgetter

from scheduler.jobs import TrackedJob
from scheduler.workers import Worker

Key = tuple[float, ...]
Entry = tuple[Key, str, Worker]
_order = itemgetter(0, 1)


class Groups:
    """`put` and `discard` take O(log n) comparisons (and move pointers in one list), whatever the number of workers."""

    def __init__(self) -> None:
        self._groups: dict[tuple[int, ...], list[Entry]] = {}
        self._by_room: list[tuple[int, str, Worker]] = []  # most free pages first
        self._placed: dict[str, tuple[tuple[int, ...], Key, int, Worker]] = {}

    def __len__(self) -> int:
        return len(self._placed)

    @property
    def count(self) -> int:
        """Groups that have workers."""
        return len(self._groups)

    def put(self, group: tuple[int, ...], key: Key, worker: Worker) -> None:
        """Adds the worker, or moves it to where it belongs now."""
        worker_id, taken = worker.worker_id, -worker.free_pages
        placed = self._placed.get(worker_id)
        if placed is not None and placed[2] == taken and placed[3] is worker:  # as always on prefill workers
            self._leave_group(worker_id, placed[0], placed[1])
        else:
            self.discard(worker_id)
            insort(self._by_room, (taken, worker_id, worker))
        self._placed[worker_id] = (group, key, taken, worker)
        insort(self._groups.setdefault(group, []), (key, worker_id, worker))

    def discard(self, worker_id: str) -> None:
        placed = self._placed.pop(worker_id, None)
        if placed is None:
            return
        group, key, taken, _ = placed
        self._leave_group(worker_id, group, key)
        del self._by_room[bisect_left(self._by_room, (taken, worker_id))]

    def _leave_group(self, worker_id: str, group: tuple[int, ...], key: Key) -> None:
        entries = self._groups[group]
        del entries[bisect_left(entries, (key, worker_id))]
        if not entries:
            del self._groups[group]

    def __iter__(self) -> Iterator[list[Entry]]:
        return iter(self._groups.values())

    def roomiest(self, job: TrackedJob) -> Worker | None:
        """Of the workers that have room for `job`, the one with the most free pages."""
        for taken, _, worker in self._by_room:
            if worker.has_room_for(job):
                return worker
            if worker.info.role == "decode" and -taken < job.pages:
                return None  # no other has more
        return None

    def best(self, job: TrackedJob, most: int, tries: int) -> list[Worker]:
        """Up to `most` fitting workers of each group, among the first `tries` of its order; the roomiest where there is none of them."""
        found: list[Worker] = []
        pages, context_tokens = self._by_room[0][2].needs(job) if self._by_room else (0, 0)  # all have one role
        for entries in self._groups.values():
            count = 0
            for _, _, worker in islice(entries, tries):
                # `Worker.has_room`, which would be called a hundred times for each choice
                if pages <= worker.room and context_tokens <= worker.info.max_context_tokens:
                    found.append(worker)
                    count += 1
                    if count == most:
                        break
        if not found:
            roomiest = self.roomiest(job)
            return [] if roomiest is None else [roomiest]
        return found

    def fronts(self, pages: int, context_tokens: int) -> list[tuple[Worker, int]]:
        """Of each group the first worker that has no room for that but could have, and how many the group has."""
        found = []
        for entries in self._groups.values():
            worker = entries[0][2]
            info = worker.info
            if worker.room < pages <= info.capacity_pages and context_tokens <= info.max_context_tokens:
                found.append((worker, len(entries)))
        return found

    def first(self, job: TrackedJob) -> Worker | None:
        """The fitting worker with the smallest key of all groups."""
        if self.roomiest(job) is None:
            return None
        found = [
            next((entry for entry in entries if entry[2].has_room_for(job)), None) for entries in self._groups.values()
        ]
        return min((entry for entry in found if entry is not None), key=_order)[2]

    def after(self, worker_id: str, job: TrackedJob) -> Worker | None:
        """The fitting worker whose id comes next after `worker_id`, in a circle; for one group in which all keys are equal."""
        if self.roomiest(job) is None:
            return None
        (entries,) = self._groups.values()
        start = bisect_left(entries, worker_id + "\0", key=itemgetter(1))
        circle = (entries[(start + i) % len(entries)][2] for i in range(len(entries)))
        return next(worker for worker in circle if worker.has_room_for(job))
