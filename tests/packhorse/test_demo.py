"""The demo's promises are checked: it fails when a stream is empty or shipped nothing. The slow test runs it as users do."""

from __future__ import annotations

import pytest

from packhorse.demo import STORY_TOKENS, DemoError, Stream, _check
from packhorse.prompts import RECALL_ANSWER, RECALL_QUESTION, conversation, recall

TRANSFER = {"bytes_shipped": 1, "raw_bytes": 4, "prefill_worker": "p", "decode_worker": "d"}


def stream(text: str = "Once", transfer: dict[str, object] | None = None) -> Stream:
    usage = {"completion_tokens": 11, "kv_transfer": TRANSFER if transfer is None else transfer}
    return Stream("story", [], 0, text, started_at=1.0, first_at=1.5, last_at=3.5, usage=usage)


def test_a_good_stream_passes_and_is_measured() -> None:
    _check([stream()])
    assert (stream().ttft_seconds, stream().tokens_per_second) == (0.5, 5.0)


@pytest.mark.parametrize(
    "bad", [stream(text=" \n"), stream(transfer={}), stream(transfer=TRANSFER | {"decode_worker": ""})], ids=str
)
def test_a_bad_stream_fails_the_demo(bad: Stream) -> None:
    with pytest.raises(DemoError, match="story"):
        _check([stream(), bad])


def test_prompts_are_long_enough_for_several_pages_and_fit_the_context() -> None:
    from model.text import load_tokenizer

    tokenizer = load_tokenizer("embedded")
    for messages in (conversation(0), conversation(1)):
        assert 4 + 3 * 64 < len(tokenizer.chat(messages)) < 1024 - STORY_TOKENS
    assert 4 + 64 < len(tokenizer.chat(recall())) < 1024
    assert f"{RECALL_QUESTION.split()[-1][:-1]} {RECALL_ANSWER}." in recall()[0]["content"]


@pytest.mark.slow
def test_the_demo_as_users_run_it(packhorse) -> None:
    done = packhorse("demo")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert "prefill-0 -> decode-0" in done.stdout
    assert "prefill-0 -> decode-1" in done.stdout
    assert f"{RECALL_ANSWER}." in done.stdout
    assert "All 5 processes have ended; nothing is left." in done.stdout
