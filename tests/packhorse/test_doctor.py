"""The doctor always answers: every probe has a line, whatever is missing."""

from __future__ import annotations

import json

import pytest

from packhorse import doctor


def test_text_and_json_name_every_piece(packhorse) -> None:
    done = packhorse("doctor", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert set(found["machine"]) == set(doctor.MACHINE)
    assert set(found["uses"]) == set(doctor.USES)
    assert all(isinstance(value, str) and value for part in found.values() for value in part.values())
    assert found["machine"]["zeromq"].endswith("CURVE yes")
    assert "reference" in found["uses"]["kernels"] or "cpu" in found["uses"]["kernels"]


def test_with_nothing_on_the_path_it_still_answers(packhorse) -> None:
    done = packhorse("doctor", PATH="/nonexistent")
    assert done.returncode == 0
    assert "no: g++ is not on the PATH" in done.stdout
    assert "no: docker is not on the PATH" in done.stdout


def test_broken_pieces_are_findings(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def missing() -> str:
        raise ModuleNotFoundError("gone", name="ucxx")

    def broken() -> str:
        raise RuntimeError("driver\nmismatch")

    monkeypatch.setattr(doctor, "MACHINE", {"one": missing, "two": broken})
    monkeypatch.setattr(doctor, "USES", {"three": lambda: "fine"})
    doctor.doctor()
    text = capsys.readouterr().out
    assert "no: the package ucxx is not installed" in text
    assert "no: RuntimeError: driver mismatch" in text
    assert "fine" in text
