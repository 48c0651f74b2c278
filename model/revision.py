"""The revision of a model: a hash by which two processes know that they hold the same weights.

Hashing many gigabytes at every start is too slow, so of each safetensors file the size, the header (names, shapes, types,
offsets) and 64 windows of 64 KiB, evenly spread from its first byte to its last, are hashed; files of up to 4 MiB whole.
It detects other checkpoints, conversions and truncated copies. It is no defence against an adversary.
"""

from __future__ import annotations

from pathlib import Path

import xxhash

from packhorse.errors import ConfigError

WINDOW_BYTES = 64 * 1024
NUM_WINDOWS = 64
_MAX_HEADER_BYTES = 100_000_000


def revision(folder: Path) -> str:
    """xxh3_128 over config.json and the weight files in the order of their names, as 32 hexadecimal digits."""
    digest = xxhash.xxh3_128((folder / "config.json").read_bytes())
    for path in weight_files(folder):
        _add_weights(digest, path)
    return digest.hexdigest()


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that a model loads, sorted. Raises ConfigError where there are none."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ConfigError(
            f"{folder} holds no safetensors weights (model*.safetensors); other kinds are never loaded", param="model"
        )
    return files


def _add_weights(digest: xxhash.xxh3_128, path: Path) -> None:
    size = path.stat().st_size
    digest.update(f"{path.name}:{size}".encode())
    with path.open("rb") as file:
        if size <= NUM_WINDOWS * WINDOW_BYTES:
            digest.update(file.read())
            return
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(size, _MAX_HEADER_BYTES):
            raise ConfigError(f"{path} is not a safetensors file", param="model")
        digest.update(file.read(header_bytes))
        for i in range(NUM_WINDOWS):
            file.seek((size - WINDOW_BYTES) * i // (NUM_WINDOWS - 1))
            digest.update(file.read(WINDOW_BYTES))
