"""`packhorse doctor`: what this machine has, and what each part of Packhorse will use on it.

Each line comes from a probe of its own. A probe that finds its piece missing, broken or stuck says so; none stops the others.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from packhorse.launcher import cores

PROBE_SECONDS = 20.0
# What integer attention on codes can be built on: int8 dot products and wide vectors, x86 and Arm.
CPU_FEATURES = ("avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "amx_int8", "asimd", "asimddp", "i8mm", "sve")
# In a process of its own: UCX may take a process down with it.
_UCX_PROBE = """
import ucxx
from ucxx._lib import libucxx
print(".".join(map(str, ucxx.get_ucx_version())))
print(libucxx.UCXContext({}).info)
"""
Probe = Callable[[], str]


def doctor(*, as_json: bool = False) -> None:
    """Prints the findings as text, or as JSON: {"machine": {...}, "uses": {...}}, every value a string."""
    found = {"machine": _examine(MACHINE), "uses": _examine(USES)}
    if as_json:
        print(json.dumps(found, indent=2))
        return
    width = max(len(name) for part in found.values() for name in part)
    for title, part in (("This machine has", found["machine"]), ("Packhorse will use", found["uses"])):
        print(title)
        for name, value in part.items():
            print(f"  {name:<{width}}  {value}")


def _examine(probes: Mapping[str, Probe]) -> dict[str, str]:
    return {name: _ask(probe) for name, probe in probes.items()}


def _ask(probe: Probe) -> str:
    try:
        return probe()
    except ModuleNotFoundError as error:
        return f"no: the package {error.name} is not installed"
    except Exception as error:  # noqa: BLE001 - any piece may be broken in any way; that is the finding
        return f"no: {type(error).__name__}: {' '.join(str(error).split())}"


def _system() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def _python() -> str:
    return f"{platform.python_version()} ({sys.executable})"


def _cpu() -> str:
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    name = re.search(r"model name\s*: (.+)", info)
    words = set(info.split())
    features = [feature for feature in CPU_FEATURES if feature in words]
    return f"{name[1] if name else platform.processor()}; {' '.join(features) or 'no known vector features'}"


def _cores() -> str:
    import torch

    return f"{cores()} usable of {os.cpu_count()}; torch would use {torch.get_num_threads()} threads"


def _memory() -> str:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    shared = shutil.disk_usage("/dev/shm").total if Path("/dev/shm").exists() else 0
    return f"{total / 2**30:.1f} GiB; shared memory {shared / 2**30:.1f} GiB"


def _torch() -> str:
    import torch

    return f"{torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'built without CUDA'})"


def _gpus() -> str:
    import torch

    if not torch.cuda.is_available():
        return "none that torch can use"
    names = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}.{properties.minor}"
        names.append(f"{properties.name} ({properties.total_memory / 2**30:.0f} GiB, capability {capability})")
    return "; ".join(names)


def _triton() -> str:
    return importlib.metadata.version("triton")


def _transformers() -> str:
    return importlib.metadata.version("transformers")


@functools.cache
def _ucx() -> str:
    import ucxx  # noqa: F401 - fails here, with a plain reason, where it is not installed

    done = subprocess.run(
        [sys.executable, "-c", _UCX_PROBE], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    if done.returncode:
        return f"no: UCX fails to start: {(done.stderr.strip().splitlines() or ['no message'])[-1]}"
    version, _, info = done.stdout.partition("\n")
    transports = sorted(set(re.findall(r"-- (\S+)", info)))
    return f"{version}; transports {' '.join(transports)}"


def _compiler() -> str:
    path = shutil.which("g++")
    return _first_line([path, "--version"]) if path else "no: g++ is not on the PATH"


def _zeromq() -> str:
    import zmq

    return f"{zmq.zmq_version()}; CURVE {'yes' if zmq.has('curve') else 'no: binds beyond loopback will fail'}"


def _docker() -> str:
    path = shutil.which("docker")
    if not path:
        return "no: docker is not on the PATH"
    answer = _first_line([path, "info", "--format", "{{.ServerVersion}}"])
    return f"engine {answer}" if re.match(r"\d", answer) else f"no: the engine does not answer ({answer})"


def _first_line(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=PROBE_SECONDS, check=False)
    lines = (done.stdout.strip() or done.stderr.strip()).splitlines()
    return lines[0] if lines else f"{Path(command[0]).name} ended with status {done.returncode} and said nothing"


def _device() -> str:
    import torch

    return "cuda, weights in bfloat16" if torch.cuda.is_available() else "cpu, weights in float32 (no usable GPU)"


def _kernels() -> str:
    import torch

    from hack_kernels.backend import choose

    devices = ["cuda", "cpu"] if torch.cuda.is_available() else ["cpu"]
    return "; ".join(f"on {device} {choose(device).name} ({choose(device).reason})" for device in devices)


def _link() -> str:
    ucx = _ask(_ucx)
    return "zmq, unless --link says otherwise; " + ("ucx would fail: " + ucx if ucx.startswith("no") else "ucx works")


def _security() -> str:
    return "none on loopback; CURVE and HMAC with --secret-file, required on any other address"


MACHINE: dict[str, Probe] = {
    "system": _system,
    "python": _python,
    "cpu": _cpu,
    "cores": _cores,
    "memory": _memory,
    "torch": _torch,
    "gpus": _gpus,
    "triton": _triton,
    "transformers": _transformers,
    "ucx": _ucx,
    "g++": _compiler,
    "zeromq": _zeromq,
    "docker": _docker,
}
USES: dict[str, Probe] = {
    "device": _device,
    "kernels": _kernels,
    "link": _link,
    "security": _security,
}
