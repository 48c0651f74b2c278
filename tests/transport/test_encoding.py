"""The wire encoding: who speaks an older or a newer version is refused by both numbers, never misread."""

from __future__ import annotations

import msgpack
import pytest

from packhorse.errors import FrameError
from transport.messages import WIRE_VERSION, Cancel, decode, encode

MESSAGE = Cancel(job_id="job-1", reason="the client left")


def test_a_message_comes_back_as_it_was() -> None:
    assert decode(encode(MESSAGE)) == MESSAGE


@pytest.mark.parametrize("version", [1, WIRE_VERSION + 1, None])
def test_another_version_is_refused(version: int | None) -> None:
    """Version 1 was the first release's: it has no tool pauses, and its jobs are never preempted."""
    _, fields = msgpack.unpackb(encode(MESSAGE))
    with pytest.raises(FrameError, match=rf"wire version {version} differs from ours, {WIRE_VERSION}"):
        decode(msgpack.packb([version, fields]))
