"""What a compiled GPU kernel is made of, read from its cubin: registers, spills, and the instructions of its main loop by class.

Needs the disassembler that ships with triton; knows nothing of kernels or formats, and needs no GPU.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

CLASSES = ("integer", "conversion", "memory", "tensor", "float", "control")
_PATTERNS = {
    "tensor": r"[IHQD](?:G?MMA)",
    "conversion": r"F2I|I2F|I2FP|F2F|F2FP|F2IP|I2I|I2IP|FRND",
    "memory": r"LD|ST|ATOM|RED|SHFL|ULD|LDGDEPBAR|DEPBAR|CCTL|MATCH|VOTE|MOVM|SYNCS|UBLKCP|UTMA",
    "float": r"F(?:ADD|MUL|FMA|MNMX|SETP|SEL|SET|CHK|SWZADD)|MUFU|H(?:ADD2|MUL2|FMA2|MNMX2|SETP2|SET2)|D(?:ADD|MUL|FMA)",
    "control": r"BRA|BRX|BSSY|BSYNC|BREAK|BAR|WARPSYNC|NOP|EXIT|CALL|RET|ERRBAR|MEMBAR|FENCE|NANOSLEEP|YIELD|BMOV|ACQBULK",
}
_CLASS = [(name, re.compile(pattern)) for name, pattern in _PATTERNS.items()]
_LABEL = re.compile(r"^\s*(\.L_x_\d+):")
_INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(.*?)\s*;")
_BRANCH = re.compile(r"\bBRA\b.*?(\.L_x_\d+)")


@dataclass(frozen=True)
class Usage:
    """What one thread (registers, spill_bytes) and one program (static shared_bytes) of a kernel take."""

    registers: int
    spill_bytes: int
    shared_bytes: int


def usage(cubin: bytes) -> Usage:
    """The kernel of a cubin that holds one. The stack counts as spilled: our kernels have no arrays of their own."""
    text = _run_tool("cuobjdump", "-res-usage", cubin)
    found = {name: int(count) for name, count in re.findall(r"\b(REG|STACK|SHARED):(\d+)", text)}
    return Usage(found["REG"], found["STACK"], found["SHARED"])


def main_loop(cubin: bytes) -> list[str]:
    """The mnemonics of the longest loop that holds tensor instructions, inner loops included. Raises ValueError where there is none."""
    instructions, labels = _disassemble(cubin)
    best: list[str] = []
    for end, instruction in enumerate(instructions):
        branch = _BRANCH.search(instruction)
        start = labels.get(branch[1], end + 1) if branch else end + 1
        body = [_mnemonic(line) for line in instructions[start : end + 1]]
        if len(body) > len(best) and any(classify(name) == "tensor" for name in body):
            best = body
    if not best:
        raise ValueError("the kernel has no loop with tensor instructions")
    return best


def count_classes(mnemonics: list[str]) -> dict[str, int]:
    """How many there are of each class in CLASSES."""
    counts = Counter(classify(name) for name in mnemonics)
    return {name: counts[name] for name in CLASSES}


def classify(mnemonic: str) -> str:
    """The class of an instruction such as "LOP3.LUT"; whatever is none of the others is integer arithmetic, logic or a move."""
    for name, pattern in _CLASS:
        if pattern.match(mnemonic):
            return name
    return "integer"


def _disassemble(cubin: bytes) -> tuple[list[str], dict[str, int]]:
    """Instructions in order, and the index of the instruction that each label stands before."""
    instructions: list[str] = []
    labels: dict[str, int] = {}
    for line in _run_tool("nvdisasm", "-c", cubin).splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif instruction := _INSTRUCTION.search(line):
            instructions.append(instruction[1])
    return instructions, labels


def _mnemonic(instruction: str) -> str:
    words = instruction.split()
    return words[1] if words[0].startswith("@") else words[0]


def _run_tool(tool: str, flag: str, cubin: bytes) -> str:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        done = subprocess.run([_tool(tool), flag, file.name], capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


@lru_cache
def _tool(name: str) -> str:
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    if not path.is_file():
        raise FileNotFoundError(f"{name} is not part of this triton: {path.parent}")
    return str(path)
