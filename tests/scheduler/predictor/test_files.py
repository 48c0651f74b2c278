"""Files of predictors that are missing, broken or another's are refused by name; one that cannot be written leaves the old one."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from packhorse.errors import ConfigError
from scheduler.predictor import make_predictor
from scheduler.predictor.features import BUCKETS, COLUMNS
from scheduler.predictor.retrieval import Retrieval
from tests.scheduler.predictor.fakes import Words, made_traffic, teach

CAPACITY = 200


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A file of `learned`."""
    path = tmp_path_factory.mktemp("saved") / "p.npz"
    predictor = make_predictor("learned", capacity=CAPACITY)
    teach(predictor, *made_traffic(100, seed=0))
    predictor.save(path)
    return path.read_bytes()


def changed(content: bytes, **arrays: Any) -> bytes:
    """The file with other arrays of these names; None: without it. Dots are written __."""
    with np.load(io.BytesIO(content)) as file:
        state = {name: file[name] for name in file.files}
    for name, array in arrays.items():
        state[name.replace("__", ".")] = array
    out = io.BytesIO()
    np.savez(out, **{name: array for name, array in state.items() if array is not None})
    return out.getvalue()


def refused(path: Path, content: bytes, match: str) -> None:
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"predictor file .*p\.npz: .*{match}"):
        make_predictor("learned", capacity=CAPACITY, path=path)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"p\.npz: No such file"):
        make_predictor("learned", path=tmp_path / "p.npz")
    with pytest.raises(ConfigError, match="Is a directory"):
        make_predictor("learned", path=tmp_path)


def test_a_broken_file(tmp_path: Path, saved: bytes) -> None:
    array = io.BytesIO()
    np.save(array, np.zeros(3))
    for content in (b"", b"something else", array.getvalue(), saved[: len(saved) // 2], saved[:-10]):
        refused(tmp_path / "p.npz", content, "is no .npz file, or not all of one")
    damaged = bytearray(saved)
    damaged[len(damaged) // 2] ^= 0xFF
    refused(tmp_path / "p.npz", bytes(damaged), "CRC")


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"head": None}, "has no head"),
        ({"head": np.array("{}")}, r"holds \{\}"),
        ({"head": np.array("no JSON")}, "Expecting value"),
        ({"store__codes": None}, "has no codes"),
        ({"store__added": np.array(3)}, "added is int64"),
        ({"store__added": np.array([-5, 0])}, "no count is negative"),
        ({"store__codes": np.zeros((7, 7), np.int8)}, "codes is int8"),
        (
            {"regressor__linear__weights": np.full(COLUMNS, math.nan, np.float32)},
            "weights holds what is no finite number",
        ),
        ({"regressor__linear__bias": np.zeros(2)}, "bias is float64"),
        ({"regressor__featurizer__documents": np.array(["x"])}, "documents is"),
        ({"regressor__replay__buckets": np.zeros(10, np.uint32)}, "buckets is uint32"),
    ],
)
def test_a_file_whose_arrays_do_not_fit(tmp_path: Path, saved: bytes, arrays: dict[str, Any], match: str) -> None:
    refused(tmp_path / "p.npz", changed(saved, **arrays), match)


def test_buckets_that_are_none(tmp_path: Path, saved: bytes) -> None:
    with np.load(io.BytesIO(saved)) as file:
        count = len(file["regressor.replay.buckets"])
    arrays = {"regressor__replay__buckets": np.full(count, BUCKETS, np.uint32)}
    refused(tmp_path / "p.npz", changed(saved, **arrays), f"more than the {BUCKETS}")


def test_another_predictors_file(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    make_predictor("percentile").save(path)
    with pytest.raises(ConfigError, match=r"'percentile'.* not .*'learned'"):
        make_predictor("learned", path=path)
    large = make_predictor("retrieval", capacity=CAPACITY)
    teach(large, *made_traffic(100, seed=0))
    large.save(path)
    with pytest.raises(ConfigError, match="codes is"):
        make_predictor("retrieval", capacity=50, path=path)


def test_vectors_of_another_embedding(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    Retrieval(embedding=Words()).save(path)
    Retrieval(embedding=Words()).load(path)
    with pytest.raises(ConfigError, match="embedded by words, not by others"):
        Retrieval(embedding=Words("others")).load(path)
    with pytest.raises(ConfigError, match="embedded by words, not by a sketch"):
        Retrieval().load(path)


def test_what_cannot_be_written_leaves_the_file_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.npz"
    predictor = make_predictor("percentile")
    predictor.save(path)
    before = path.read_bytes()

    def full(file: io.BufferedWriter, **arrays: object) -> None:
        file.write(b"the first bytes")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("scheduler.predictor.base.np.savez", full)
    with pytest.raises(ConfigError, match=r"p\.npz: No space left on device"):
        predictor.save(path)
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("p.npz", before)]
    with pytest.raises(ConfigError, match="No such file"):
        predictor.save(tmp_path / "no folder" / "p.npz")
