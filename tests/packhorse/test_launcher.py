"""What a local cluster starts: which commands, with which options, and how secrets travel. The whole is tested in tests/e2e."""

from __future__ import annotations

import subprocess
import sys

import pytest
from pydantic import SecretStr

from packhorse.config import build
from packhorse.errors import ConfigError, DeadlineError
from packhorse.launcher import ClusterConfig, LocalCluster, cores
from packhorse.supervisor import ChildError, Spec
from tests.packhorse.programs import DYING, POLITE


def specs(cluster: LocalCluster) -> dict[str, Spec]:
    return {spec.name: spec for spec in cluster._supervisor.specs}


def options(spec: Spec, starts: int = 0) -> dict[str, str]:
    """Flag -> value; "" where none follows it."""
    words = list(spec.argv(starts))[5:]
    following = [*words[1:], "--"]
    pairs = zip(words, following, strict=True)
    return {word: "" if after.startswith("--") else after for word, after in pairs if word.startswith("--")}


def test_one_process_each_and_workers_by_number() -> None:
    cluster = LocalCluster(ClusterConfig(port=0, prefill=1, decode=2))
    assert list(specs(cluster)) == ["scheduler", "gateway", "prefill-0", "decode-0", "decode-1"]
    stages = [spec.stage for spec in specs(cluster).values()]
    assert stages[1] < stages[2] == stages[3] == stages[4] < stages[0]


def test_all_meet_at_one_free_control_port() -> None:
    made = specs(LocalCluster(ClusterConfig(port=0)))
    control = options(made["scheduler"])["--bind"]
    assert {options(made[name])["--scheduler"] for name in ("gateway", "prefill-0", "decode-0")} == {control}
    assert not control.endswith(":5600")


def test_a_worker_that_comes_back_has_a_new_name() -> None:
    spec = specs(LocalCluster(ClusterConfig(port=0)))["decode-0"]
    assert [options(spec, starts)["--worker-id"] for starts in (0, 1, 2)] == ["decode-0", "decode-0.1", "decode-0.2"]


def test_options_reach_their_role_alone_and_every_command_is_accepted() -> None:
    cluster = LocalCluster(
        ClusterConfig(port=0, kv_format="raw", link="tcp", threads=3, log_level="warning"),
        options={"decode": {"pool_pages": 8}, "scheduler": {"worker_timeout_seconds": 2}},
    )
    made = {name: options(spec) for name, spec in specs(cluster).items()}
    assert made["decode-0"]["--pool-pages"] == "8"
    assert "--pool-pages" not in made["prefill-0"]
    assert made["scheduler"]["--worker-timeout-seconds"] == "2"
    for name in ("prefill-0", "decode-0"):
        assert (made[name]["--kv-format"], made[name]["--link"], made[name]["--threads"]) == ("raw", "tcp", "3")
    for spec in specs(cluster).values():
        done = subprocess.run([*spec.argv(0), "--help"], env=spec.env, capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b"")


def test_switches_are_handed_on_as_flags_of_their_own() -> None:
    for given, expected in ((True, "--prefix-cache"), (False, "--no-prefix-cache")):
        made = {
            name: options(spec) for name, spec in specs(LocalCluster(ClusterConfig(port=0, prefix_cache=given))).items()
        }
        assert expected in made["decode-0"]
        assert expected not in made["prefill-0"]


def test_what_predicts_reaches_the_process_that_reads_it() -> None:
    given = {"predictor_file": "lengths.npz", "embedding": "some/model", "embedding_tokenizer": "folder"}
    cluster = LocalCluster(ClusterConfig(port=0, length_probe="probe.safetensors", **given))
    made = {name: options(spec) for name, spec in specs(cluster).items()}
    holders = {
        flag: [name for name in made if flag in made[name]]
        for flag in ("--predictor-file", "--embedding", "--embedding-tokenizer", "--length-probe")
    }
    assert holders == {
        "--predictor-file": ["scheduler"],
        "--embedding": ["scheduler"],
        "--embedding-tokenizer": ["scheduler"],
        "--length-probe": ["decode-0"],
    }
    assert made["scheduler"]["--embedding-tokenizer"] == "folder"
    assert made["scheduler"]["--predictor-file"] == "lengths.npz"
    assert made["decode-0"]["--length-probe"] == "probe.safetensors"


@pytest.mark.parametrize("given", [{"embedding": "some/model"}, {"embedding_tokenizer": "folder"}])
def test_an_embedding_needs_its_tokenizer(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="must be given together"):
        build(ClusterConfig, given)


def test_threads_share_the_cores() -> None:
    spec = specs(LocalCluster(ClusterConfig(port=0, prefill=1, decode=1)))["decode-0"]
    share = str(max(1, cores() // 2))
    assert options(spec)["--threads"] == spec.env["OMP_NUM_THREADS"] == share


def test_secrets_travel_by_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PACKHORSE_SECRET_FILE", "/somewhere")
    for spec in specs(LocalCluster(ClusterConfig(port=0, secret=SecretStr("hush"), api_key=SecretStr("key")))).values():
        assert (spec.env["PACKHORSE_SECRET"], spec.env["PACKHORSE_API_KEY"]) == ("hush", "key")
        assert "PACKHORSE_SECRET_FILE" not in spec.env
        assert not {"hush", "key"} & set(spec.argv(0))


@pytest.mark.parametrize(
    ("host", "url"), [("127.0.0.1", "http://127.0.0.1:"), ("0.0.0.0", "http://127.0.0.1:"), ("::1", "http://[::1]:")]
)
def test_the_url(host: str, url: str) -> None:
    try:
        cluster = LocalCluster(ClusterConfig(host=host, port=0))
    except ConfigError as error:
        pytest.skip(f"this machine has no {host}: {error}")
    assert cluster.url.startswith(url)
    assert not cluster.url.endswith(":0")


@pytest.fixture
def fake_commands(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What to run in place of each process."""
    commands: dict[str, list[str]] = {}
    make = LocalCluster._spec

    def replaced(self: LocalCluster, name: str, *rest: object) -> Spec:
        spec = make(self, name, *rest)  # type: ignore[arg-type]
        return Spec(name, lambda starts: commands.get(name, POLITE), spec.env, spec.stage)

    monkeypatch.setattr(LocalCluster, "_spec", replaced)
    return commands


def test_a_process_that_dies_while_starting_is_named_and_the_others_stop(fake_commands: dict[str, list[str]]) -> None:
    fake_commands["decode-0"] = DYING
    cluster = LocalCluster(ClusterConfig(port=0))
    with pytest.raises(
        ChildError, match=r"decode-0 ended with status 3 while starting:\n  loading\n  the model is missing"
    ):
        cluster.start()
    assert not any(child.alive for child in cluster.processes.values())


def test_a_cluster_that_never_answers_is_given_up(fake_commands: dict[str, list[str]]) -> None:
    cluster = LocalCluster(ClusterConfig(port=0, start_seconds=0.5))
    with pytest.raises(DeadlineError, match=r"not everything came up in 0.5 s"):
        cluster.start()
    assert len(cluster.processes) == 4
    assert not any(child.alive for child in cluster.processes.values())


def test_up_prints_the_dying_childs_lines_and_ends_with_status_1() -> None:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "packhorse", "up", "--port", "0", "--model", "/nonexistent/model"],
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "packhorse: error: " in done.stderr
    assert "while starting" in done.stderr
    assert "/nonexistent/model" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_signal_while_starting_stops_everything() -> None:
    command = [sys.executable, "-P", "-m", "packhorse", "up", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert process.stderr.readline().startswith("scheduler  | ")
        process.terminate()
        out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (0, "")
    assert "was killed" not in err
    assert "Traceback" not in err
