"""Children under a supervisor: deaths are reported, the dead come back, nobody is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from packhorse.supervisor import ChildError, Spec, Supervisor
from tests.packhorse.programs import DYING, POLITE, STUBBORN, program
from tests.waiting import PATIENCE_SECONDS

Make = Callable[..., tuple[Supervisor, list[tuple[str, str]]]]


def wait_for(condition: Callable[[], object], seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def check_until_it_raises(supervisor: Supervisor) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline:
        supervisor.check()
        time.sleep(0.01)


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes supervisors of (name, command, stage), and checks that nothing of them is left."""
    made: list[Supervisor] = []

    def supervisor(*children: tuple[str, Sequence[str], int], **options: object):
        said: list[tuple[str, str]] = []
        specs = [Spec(name, lambda starts, c=command: c, os.environ, stage) for name, command, stage in children]
        made.append(Supervisor(specs, lambda name, line: said.append((name, line)), **options))
        return made[-1], said

    yield supervisor
    for each in made:
        each.stop()
        assert all(gone(child.pid) for child in each.children.values())
    assert [thread.name for thread in threading.enumerate() if thread is not threading.main_thread()] == []


def test_output_is_reported_with_the_childs_name(make: Make) -> None:
    supervisor, said = make(("one", POLITE, 0), ("two", POLITE, 0))
    supervisor.start()
    wait_for(lambda: {("one", "up"), ("two", "up")} <= set(said))
    supervisor.settle()


def test_a_death_while_starting_raises_with_the_last_lines(make: Make) -> None:
    supervisor, _ = make(("one", POLITE, 0), ("two", DYING, 0))
    supervisor.start()
    with pytest.raises(ChildError, match=r"two ended with status 3 while starting:\n  loading\n  the model is missing"):
        check_until_it_raises(supervisor)
    with pytest.raises(ChildError):
        supervisor.settle()


def test_a_command_that_does_not_exist(make: Make) -> None:
    supervisor, _ = make(("one", ["/nonexistent/program"], 0))
    supervisor.start()
    with pytest.raises(ChildError, match="cannot run /nonexistent/program: No such file"):
        check_until_it_raises(supervisor)


def test_stages_stop_in_order_and_politely(make: Make) -> None:
    supervisor, said = make(("last", POLITE, 2), ("first", POLITE, 0), ("middle", POLITE, 1))
    supervisor.start()
    wait_for(lambda: len(said) == 3)
    supervisor.settle()
    supervisor.stop()
    assert [name for name, line in said if line == "bye"] == ["first", "middle", "last"]


def test_a_stubborn_child_is_killed(make: Make) -> None:
    supervisor, said = make(("mule", STUBBORN, 0), stop_seconds=0.3)
    supervisor.start()
    wait_for(lambda: ("mule", "up") in said)
    supervisor.settle()
    supervisor.stop()
    assert ("packhorse", "mule did not stop in 0.3 s and was killed") in said
    assert gone(supervisor.children["mule"].pid)


def test_a_killed_child_is_reported_and_started_again(make: Make) -> None:
    supervisor, said = make(("one", POLITE, 0), back_off_seconds=0.1)
    supervisor.start()
    wait_for(lambda: ("one", "up") in said)
    supervisor.settle()
    first = supervisor.children["one"].pid
    supervisor.kill("one")
    wait_for(lambda: said.count(("one", "up")) == 2)
    assert supervisor.children["one"].pid != first
    assert ("packhorse", "LOST one: it was killed by SIGKILL; starting it again in 0.1 s") in said


def test_a_death_at_the_moment_of_settling_is_not_lost(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor, said = make(("one", POLITE, 0), back_off_seconds=0.05)
    supervisor.start()
    wait_for(lambda: ("one", "up") in said)
    check = supervisor.check

    def check_and_die() -> None:
        check()
        supervisor.kill("one")
        time.sleep(0.5)  # it is looked at meanwhile

    monkeypatch.setattr(supervisor, "check", check_and_die)
    supervisor.settle()
    wait_for(lambda: said.count(("one", "up")) == 2)


def test_the_back_off_doubles(make: Make) -> None:
    supervisor, said = make(("one", POLITE, 0), back_off_seconds=0.05)
    supervisor.start()
    for starts in range(1, 4):
        wait_for(lambda starts=starts: said.count(("one", "up")) == starts and supervisor.children["one"].alive)
        supervisor.settle()
        supervisor.kill("one")
    wait_for(lambda: said.count(("one", "up")) == 4)
    told = [line.rpartition(" in ")[2] for name, line in said if name == "packhorse"]
    assert told == ["0.05 s", "0.1 s", "0.2 s"]


def test_without_restart_a_lost_child_is_named(make: Make) -> None:
    supervisor, said = make(("one", POLITE, 0), ("two", POLITE, 0), restart=False)
    supervisor.start()
    wait_for(lambda: len(said) == 2)
    supervisor.settle()
    supervisor.kill("one", signal.SIGTERM)
    wait_for(lambda: supervisor.lost == ["one"])
    assert supervisor.children["two"].alive


def test_stopping_during_a_back_off(make: Make) -> None:
    supervisor, said = make(("one", POLITE, 0), back_off_seconds=30)
    supervisor.start()
    wait_for(lambda: said)
    supervisor.settle()
    supervisor.kill("one")
    wait_for(lambda: any(name == "packhorse" for name, _ in said))
    began = time.monotonic()
    supervisor.stop()
    assert time.monotonic() - began < 20


def test_arguments_know_how_often_the_child_was_started() -> None:
    said: list[str] = []
    code = "import sys, time; print(sys.argv[1]); time.sleep(60)"
    spec = Spec("one", lambda starts: [*program(code), str(starts)], os.environ)
    supervisor = Supervisor([spec], lambda name, line: said.append(line), back_off_seconds=0.05)
    supervisor.start()
    supervisor.settle()
    try:
        wait_for(lambda: "0" in said)
        supervisor.kill("one")
        wait_for(lambda: "1" in said)
    finally:
        supervisor.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's parent-death signal is Linux's")
@pytest.mark.parametrize("command", [POLITE, STUBBORN], ids=["polite", "stubborn"])
def test_children_die_with_a_killed_parent(command: Sequence[str]) -> None:
    code = f"""
    import os, time
    from packhorse.supervisor import Spec, Supervisor
    supervisor = Supervisor([Spec("one", lambda starts: {command!r}, os.environ)], lambda name, line: print(line))
    supervisor.start()
    supervisor.settle()
    print(supervisor.children["one"].pid)
    time.sleep(60)
    """
    with subprocess.Popen(program(code), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        lines = {parent.stdout.readline().strip(), parent.stdout.readline().strip()}
        assert "up" in lines
        child = int((lines - {"up"}).pop())
        assert not gone(child)
        parent.kill()
    wait_for(lambda: gone(child))
