"""Tokens to text and back, incrementally; stop strings; why a job ends."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers
from tokenizers import Tokenizer as RustTokenizer
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from model.source import find_model
from model.text import Detokenizer, FinishRule, StopStrings, Tokenizer, load_tokenizer
from packhorse.errors import ConfigError, RequestError
from transport.messages import Job, Sampling

TEXT = "Grüße, 日本語! 👩‍👩‍👧 naïve  spaces\n\ttab 😀😀 Ελλάδα."
EOS, BOS = 4, 0


@pytest.fixture(scope="module")
def byte_level() -> Tokenizer:
    return _embedded()


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    """A tokenizer as SentencePiece models have: words begin with U+2581, unknown characters fall back to bytes."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefghijklmnoprstuvwxyz.,!"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    rust = RustTokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    rust.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    rust.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", "</s>")])
    return Tokenizer(TokenizersBackend(tokenizer_object=rust), len(pieces), (2,), 100)


@pytest.fixture(params=["byte_level", "sentencepiece"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


@cache
def _embedded() -> Tokenizer:
    return load_tokenizer("embedded")


def _stream(tokenizer: Tokenizer, ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(tokenizer, prompt)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


# ---- the tokenizer


def test_text_module_imports_no_torch() -> None:
    code = "import sys, model.text; model.text.load_tokenizer('embedded'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, cwd=Path(__file__).parents[2]).returncode == 0


def test_embedded_tokenizer_knows_its_model(byte_level: Tokenizer) -> None:
    assert (byte_level.vocab_size, byte_level.eos_token_ids, byte_level.max_context) == (4096, (4, 0), 1024)


def test_encode_and_decode_are_inverse(byte_level: Tokenizer) -> None:
    assert byte_level.decode(byte_level.encode(TEXT)) == TEXT


def test_chat_ends_where_the_assistant_begins(byte_level: Tokenizer) -> None:
    ids = byte_level.chat([{"role": "user", "content": "hi"}])
    assert "".join(byte_level.token_text(i) for i in ids) == "<|user|>hi<|end|><|assistant|>"


def test_chat_without_a_template_is_a_request_error(sentencepiece: Tokenizer) -> None:
    assert not sentencepiece.has_chat_template
    with pytest.raises(RequestError, match="no chat template") as caught:
        sentencepiece.chat([{"role": "user", "content": "hi"}])
    assert caught.value.param == "messages"


def test_a_template_that_refuses_is_a_request_error(tmp_path: Path) -> None:
    shutil.copytree(find_model("embedded"), tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors"))
    (tmp_path / "m" / "chat_template.jinja").write_text("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match="roles must alternate"):
        load_tokenizer(str(tmp_path / "m")).chat([{"role": "user", "content": "hi"}])


def test_a_folder_without_tokenizer_is_named(tmp_path: Path) -> None:
    shutil.copyfile(find_model("embedded") / "config.json", tmp_path / "config.json")
    with pytest.raises(ConfigError, match="no tokenizer can be read"):
        load_tokenizer(str(tmp_path))


def test_token_bytes_add_up_to_the_text(tokenizer: Tokenizer) -> None:
    joined = b"".join(tokenizer.token_bytes(i) for i in tokenizer.encode(TEXT)).decode()
    assert joined.removeprefix(" ") == TEXT
    assert tokenizer.token_bytes(10**6) == b""


# ---- the detokenizer


def test_stream_adds_up_to_the_text_and_never_shows_half_a_character(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    parts = _stream(tokenizer, ids)
    assert "".join(parts) == tokenizer.decode(ids) == TEXT
    assert not any("\ufffd" in part for part in parts)
    assert parts[-1] == ""


def test_every_vocabulary_token_streams_as_it_decodes(byte_level: Tokenizer) -> None:
    ids = list(range(4096))
    random.Random(0).shuffle(ids)
    assert "".join(_stream(byte_level, ids)) == byte_level.decode(ids)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=40), cut=st.integers(0, 40))
def test_any_text_streams_after_any_prompt(text: str, cut: int) -> None:
    tokenizer = _embedded()
    whole = tokenizer.encode(text)
    at = min(cut, len(text))
    prompt, ids = tokenizer.encode(text[:at]), tokenizer.encode(text[at:])
    assert "".join(_stream(tokenizer, ids, prompt)) == text[at:]
    assert "".join(_stream(tokenizer, whole)) == text


def test_a_word_keeps_its_space_after_a_prompt(sentencepiece: Tokenizer) -> None:
    prompt, ids = sentencepiece.encode("hello"), sentencepiece.encode("world")
    assert "".join(_stream(sentencepiece, ids, prompt)) == " world"


def test_special_tokens_do_not_show(byte_level: Tokenizer) -> None:
    smile = byte_level.encode("😀")
    assert len(smile) > 1
    assert _stream(byte_level, [EOS, *smile[:1], EOS, *smile[1:], BOS])[-3:] == ["😀", "", ""]


def test_a_broken_end_shows_at_the_flush(byte_level: Tokenizer) -> None:
    parts = _stream(byte_level, [*byte_level.encode("ok"), *byte_level.encode("😀")[:-1]])
    assert "".join(parts[:-1]) == "ok"
    assert parts[-1] == byte_level.decode(byte_level.encode("😀")[:-1])


def test_endless_broken_bytes_are_not_held_for_ever(byte_level: Tokenizer) -> None:
    broken = next(i for i in range(4096) if byte_level.token_bytes(i) == b"\x80")
    parts = _stream(byte_level, [broken] * 200)
    assert "".join(parts) == "\ufffd" * 200
    assert max(map(len, parts)) < 50


# ---- stop strings


def _cut(stops: tuple[str, ...], pieces: Sequence[str]) -> tuple[str, str | None]:
    rule, shown = StopStrings(stops), ""
    for piece in pieces:
        emit, stopped = rule.push(piece)
        shown += emit
        if stopped is not None:
            return shown, stopped
    return shown + rule.flush(), None


@pytest.mark.parametrize(
    "pieces", [["one STOP two"], list("one STOP two"), ["one S", "TO", "P two"], ["one ", "STO", "P"]]
)
def test_a_stop_string_cuts_however_it_is_split(pieces: list[str]) -> None:
    assert _cut(("STOP",), pieces) == ("one ", "STOP")


def test_what_only_looked_like_a_stop_is_shown(byte_level: Tokenizer) -> None:
    rule = StopStrings(("STOP",))
    assert rule.push("a ST") == ("a ", None)
    assert rule.push("ST") == ("ST", None)
    assert rule.push("x") == ("STx", None)
    assert rule.push("S") == ("", None)
    assert rule.flush() == "S"


def test_the_first_stop_in_the_text_wins() -> None:
    assert _cut(("two", "one"), ["zero one two"]) == ("zero ", "one")
    assert _cut(("aab",), ["aa", "aab"]) == ("aa", "aab")


def test_nothing_is_shown_after_a_stop() -> None:
    rule = StopStrings(("x",))
    assert rule.push("ax") == ("a", "x")
    assert rule.push("b") == ("", "x")
    assert rule.flush() == ""


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty"):
        StopStrings(("a", ""))


@given(text=st.text("ab", max_size=20), stop=st.text("ab", min_size=1, max_size=4), cuts=st.lists(st.integers(0, 20)))
def test_splitting_never_changes_what_is_shown(text: str, stop: str, cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[a:b] for a, b in pairwise(edges)]
    shown, _, rest = text.partition(stop)
    assert _cut((stop,), pieces) == (shown, stop if rest or stop in text else None)


# ---- the end of a job


def _rule(tokenizer: Tokenizer | None, prompt: Sequence[int] = (1,), **sampling: Any) -> FinishRule:
    job = Job(
        job_id="j", prompt=tuple(prompt), sampling=Sampling(**{"max_tokens": 5, "seed": 0} | sampling), reply_to=""
    )
    return FinishRule(job, tokenizer, (EOS, BOS))


def test_length_ends_a_job_at_its_last_token() -> None:
    rule = _rule(None, max_tokens=2)
    assert [rule.push(9), rule.push(9)] == [(None, None), ("length", None)]


def test_eos_at_the_last_token_is_a_stop() -> None:
    assert _rule(None, max_tokens=1).push(EOS) == ("stop", None)
    assert _rule(None, max_tokens=1).push(9) == ("length", None)


def test_ignored_eos_still_leaves_stop_tokens() -> None:
    rule = _rule(None, ignore_eos=True, stop_token_ids=(7,))
    assert [rule.push(EOS), rule.push(BOS), rule.push(7)] == [(None, None), (None, None), ("stop", None)]
    assert _rule(None, ignore_eos=True, stop_token_ids=(EOS,)).push(EOS) == ("stop", None)


def test_a_stop_string_over_several_tokens_ends_a_job(byte_level: Tokenizer) -> None:
    ids = byte_level.encode("a 日本 b")
    rule = _rule(byte_level, stop=("日本",), max_tokens=50)
    ends = [rule.push(i) for i in ids]
    first = next(i for i, end in enumerate(ends) if end != (None, None))
    assert ends[first] == ("stop", "日本")
    assert "日本" in byte_level.decode(ids[: first + 1])
    assert "日本" not in byte_level.decode(ids[:first])


def test_a_stop_string_is_looked_for_in_generated_text_alone(byte_level: Tokenizer) -> None:
    prompt = byte_level.encode("once upon")
    rule = _rule(byte_level, prompt, stop=("upon a",), max_tokens=50)
    assert {rule.push(i) for i in byte_level.encode(" a time upon")} == {(None, None)}


def test_stop_strings_without_a_tokenizer_are_refused() -> None:
    with pytest.raises(RequestError, match="tokenizer"):
        _rule(None, stop=("x",))
