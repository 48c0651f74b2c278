"""The sentence-embedding option, with a package of a few lines in place of sentence-transformers."""

from __future__ import annotations

import sys
import types
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, models

from packhorse.config import SchedulerConfig, build
from packhorse.errors import ConfigError
from scheduler.core import SchedulerCore
from tests.scheduler.fakes import Bench, decode_info, make_job, prefill_info

SHORT, LONG = (1, 2), (3, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tokenizer of five words."""
    words = {"<unk>": 0, "brief": 1, "answer": 2, "tell": 3, "everything": 4}
    Tokenizer(models.WordLevel(words, unk_token="<unk>")).save(str(tmp_path / "tokenizer.json"))
    return tmp_path


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts that were embedded: by which of them asks for everything."""
    texts: list[str] = []

    class SentenceTransformer:
        def __init__(self, name: str) -> None:
            if name != "small/model":
                raise OSError(f"{name} is not a model")

        def get_sentence_embedding_dimension(self) -> int:
            return 4

        def encode(self, sentences: Sequence[str], normalize_embeddings: bool) -> np.ndarray:
            assert normalize_embeddings
            texts.extend(sentences)
            return np.array([np.eye(4)[int("everything" in text)] for text in sentences])

    module = types.ModuleType("sentence_transformers")
    vars(module)["SentenceTransformer"] = SentenceTransformer
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)
    return texts


def core(**fields: object) -> SchedulerCore:
    return SchedulerCore(build(SchedulerConfig, fields), epoch="e")


def test_live_jobs_are_compared_by_their_text(folder: Path, package: list[str]) -> None:
    bench = Bench(
        prefill_info("p1"), decode_info("d1"), predictor="retrieval", embedding="small/model", embedding_tokenizer=str(folder)
    )  # fmt: skip
    for i in range(60):
        prompt, length = (SHORT, 3) if i % 2 else (LONG, 18)
        bench.submit(make_job(f"j{i}").model_copy(update={"prompt": prompt}))
        bench.reserved(job_id=f"j{i}")
        bench.prefilled(job_id=f"j{i}", completion_tokens=1)
        bench.decoded(job_id=f"j{i}", completion_tokens=length)
    bench.core.experience.learn(10.0)
    assert {"brief answer", "tell everything"} == set(package)
    for prompt, length in ((SHORT, 3), (LONG, 18)):
        bench.submit(make_job(f"new-{length}").model_copy(update={"prompt": prompt}))
        assert bench.core.jobs[f"new-{length}"].forecast.quantile(0.5) == pytest.approx(length, rel=0.3)


@pytest.mark.parametrize("predictor", ["none", "percentile", "regressor", "rank"])
def test_a_predictor_that_embeds_nothing_is_refused(predictor: str, folder: Path, package: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"embedding=small/model: predictor {predictor} embeds nothing"):
        core(predictor=predictor, embedding="small/model", embedding_tokenizer=str(folder))


def test_an_unknown_model_is_named(folder: Path, package: list[str]) -> None:
    with pytest.raises(ConfigError, match="embedding=nope: cannot be loaded: nope is not a model"):
        core(predictor="learned", embedding="nope", embedding_tokenizer=str(folder))


def test_a_missing_package_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ConfigError, match="needs the package sentence-transformers"):
        core(predictor="learned", embedding="small/model", embedding_tokenizer=str(folder))


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_a_tokenizer_that_cannot_be_read_is_named(content: str | None, tmp_path: Path, package: list[str]) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ConfigError, match=f"embedding_tokenizer={tmp_path}"):
        core(predictor="learned", embedding="small/model", embedding_tokenizer=str(tmp_path))


@pytest.mark.parametrize("given", ["embedding", "embedding_tokenizer"])
def test_one_without_the_other_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match="must be given together"):
        core(predictor="learned", **{given: "x"})
