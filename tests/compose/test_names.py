"""docs/deploy.md and compose.yaml know the variables that packhorse/config.py has, and no others. Needs no engine."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from packhorse.config import (
    DEFAULT_KV_FORMAT,
    DecodeConfig,
    GatewayConfig,
    PrefillConfig,
    ProcessConfig,
    SchedulerConfig,
)

ROOT = Path(__file__).parents[2]
COMPOSE_FILES = ("compose.yaml", "compose.ucx.yaml", "compose.gpu.yaml")
PROCESSES: dict[str, type[ProcessConfig]] = {
    "scheduler": SchedulerConfig,
    "gateway": GatewayConfig,
    "prefill": PrefillConfig,
    "decode": DecodeConfig,
}


def variables(kind: type[ProcessConfig]) -> dict[str, str]:
    """Variable -> default as text."""
    defaults = {name: field.default for name, field in kind.model_fields.items()}
    return {f"PACKHORSE_{name.upper()}": "" if value is None else str(value) for name, value in defaults.items()}


def rows(text: str) -> dict[str, tuple[str, str]]:
    """The rows of the table of variables: name -> (processes, default)."""
    table = text.split("<!-- variables -->")[1].split("<!-- /variables -->")[0]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    return {name.strip("`"): (processes, default) for name, processes, default, _ in cells}


def expected() -> dict[str, tuple[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for process, kind in PROCESSES.items():
        for name, default in variables(kind).items():
            found.setdefault(name, {})[process] = default
    return {name: (_processes(by), _default(by)) for name, by in found.items()}


def _processes(by: dict[str, str]) -> str:
    return "all" if len(by) == len(PROCESSES) else ", ".join(by)


def _default(by: dict[str, str]) -> str:
    if len(set(by.values())) == 1:
        return next(iter(by.values()))
    return ", ".join(f"{default} ({process})" for process, default in by.items())


def test_the_table_of_variables_is_that_of_the_configuration() -> None:
    assert rows((ROOT / "docs/deploy.md").read_text()) == expected()


def test_compose_sets_variables_that_the_process_has() -> None:
    for file in COMPOSE_FILES:
        services = yaml.safe_load((ROOT / file).read_text())["services"]
        for process in PROCESSES.keys() & services.keys():
            names = {name for name in services[process]["environment"] if name.startswith("PACKHORSE_")}
            unknown = names - variables(PROCESSES[process]).keys() - {"PACKHORSE_SECRET_FILE"}
            assert not unknown, f"{file}: {process} has no {unknown}"


def test_the_readme_has_the_default_format() -> None:
    assert f"| `--kv-format` | `{DEFAULT_KV_FORMAT}` |" in (ROOT / "README.md").read_text()


def test_links_between_the_documents_hold() -> None:
    for file in (ROOT / "README.md", ROOT / "docs/deploy.md"):
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", file.read_text())
        missing = [target for target in targets if not (file.parent / target).exists()]
        assert not missing, f"{file.name} links to {missing}"


def test_every_variable_that_the_documents_name_exists() -> None:
    compose = "".join((ROOT / file).read_text() for file in COMPOSE_FILES)
    known = set(expected()) | {"PACKHORSE_SECRET_FILE"} | set(re.findall(r"\$\{(PACKHORSE_\w+)", compose))
    for file in ("README.md", "docs/deploy.md"):
        named = set(re.findall(r"PACKHORSE_[A-Z][A-Z_]*[A-Z]", (ROOT / file).read_text()))
        assert named <= known, f"{file} names {named - known}"
