"""Every argument that is wrong is refused with a ValueError that begins with its name, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hack_kernels import (
    PageFormat,
    append,
    close_pages,
    decode_attention,
    open_pages,
    prefill_attention,
)

FMT = PageFormat.parse("k4v2", 64, torch.bfloat16)
BF16 = torch.bfloat16


def decode_arguments() -> dict[str, Any]:
    return {
        "fmt": FMT,
        "q": torch.zeros(2, 4, 64),
        "pages": torch.zeros(5, 2, FMT.page_bytes, dtype=torch.uint8),
        "page_table": torch.zeros(2, 3, dtype=torch.int64),
        "num_pages": torch.tensor([1, 3]),
        "residual": torch.zeros(4, 2, 2, 68, 64, dtype=BF16),
        "residual_rows": torch.tensor([3, 0]),
        "residual_tokens": torch.tensor([1, 68]),
        "scale": 0.125,
    }


def append_arguments() -> dict[str, Any]:
    names = ("fmt", "pages", "residual", "residual_rows")
    token = {"k": torch.zeros(2, 2, 64), "v": torch.zeros(2, 2, 64)}
    counts = {"num_tokens": torch.tensor([0, 67]), "open_slots": torch.tensor([-1, 2])}
    return {name: decode_arguments()[name] for name in names} | token | counts


def close_arguments() -> dict[str, Any]:
    out = torch.zeros(3, 2, FMT.page_bytes, dtype=torch.uint8)
    return {"fmt": FMT, "k": torch.zeros(3, 2, 64, 64), "v": torch.zeros(3, 2, 64, 64, dtype=BF16), "out": out}


def prefill_arguments() -> dict[str, Any]:
    pool = {"pages": torch.zeros(5, 2, FMT.page_bytes, dtype=torch.uint8), "page_slots": torch.tensor([4, 0])}
    kv = {"k": torch.zeros(2, 9, 64), "v": torch.zeros(2, 9, 64), "scale": 0.125}
    return {"fmt": FMT, "q": torch.zeros(7, 4, 64)} | kv | pool


OPERATIONS: dict[Callable[..., Any], Callable[[], dict[str, Any]]] = {
    decode_attention: decode_arguments,
    append: append_arguments,
    close_pages: close_arguments,
    prefill_attention: prefill_arguments,
}

BAD_VALUES = [
    (decode_attention, "q", torch.zeros(2, 3, 64)),  # heads that KV heads do not divide
    (decode_attention, "q", torch.zeros(2, 4, 32)),
    (decode_attention, "pages", torch.zeros(5, 2, 100, dtype=torch.uint8)),
    (decode_attention, "page_table", torch.full((2, 3), 5)),
    (decode_attention, "page_table", torch.full((2, 3), -1)),
    (decode_attention, "num_pages", torch.tensor([0, 4])),
    (decode_attention, "num_pages", torch.tensor([-1, 1])),
    (decode_attention, "residual", torch.zeros(4, 2, 2, 67, 64, dtype=BF16)),
    (decode_attention, "residual", torch.zeros(4, 2, 2, 68, 64)),  # not the format's dtype
    (decode_attention, "residual_rows", torch.tensor([0, 4])),
    (decode_attention, "residual_tokens", torch.tensor([0, 1])),
    (decode_attention, "residual_tokens", torch.tensor([1, 69])),
    (decode_attention, "fmt", PageFormat(1024, BF16, 2, 2)),
    (append, "k", torch.zeros(2, 2, 32)),
    (append, "v", torch.zeros(2, 1, 64)),
    (append, "num_tokens", torch.tensor([-1, 0])),
    (append, "residual_rows", torch.tensor([-1, 0])),
    (append, "open_slots", torch.tensor([0, 5])),
    (close_pages, "k", torch.zeros(3, 2, 63, 64)),
    (close_pages, "v", torch.zeros(2, 2, 64, 64)),
    (close_pages, "out", torch.zeros(3, 2, FMT.page_bytes - 16, dtype=torch.uint8)),
    (prefill_attention, "q", torch.zeros(10, 4, 64)),  # more than the exact tokens
    (prefill_attention, "q", torch.zeros(0, 4, 64)),
    (prefill_attention, "v", torch.zeros(2, 8, 64)),
    (prefill_attention, "k", torch.zeros(2, 9, 32)),
    (prefill_attention, "pages", None),
    (prefill_attention, "page_slots", None),
    (prefill_attention, "page_slots", torch.tensor([5])),
]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_the_good_arguments_are_accepted(operation: Callable[..., Any]) -> None:
    operation(**OPERATIONS[operation]())


@pytest.mark.parametrize(
    ("operation", "name", "value"), BAD_VALUES, ids=[f"{f.__name__}-{n}" for f, n, _ in BAD_VALUES]
)
def test_a_bad_argument_is_named(operation: Callable[..., Any], name: str, value: Any) -> None:
    arguments = OPERATIONS[operation]()
    arguments[name] = value
    with pytest.raises(ValueError, match=rf"^{name}\b"):
        operation(**arguments)


TENSORS = [
    (operation, name)
    for operation, make in OPERATIONS.items()
    for name, value in make().items()
    if isinstance(value, torch.Tensor)
]


@pytest.mark.parametrize(("operation", "name"), TENSORS, ids=[f"{f.__name__}-{n}" for f, n in TENSORS])
@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (lambda x: x.to(torch.complex64), "has dtype"),
        (lambda x: x[None, None], "has shape"),
        (lambda x: x.tolist(), "is a list"),
    ],
    ids=["dtype", "shape", "type"],
)
def test_every_tensor_is_checked(
    operation: Callable[..., Any], name: str, spoil: Callable[..., Any], fault: str
) -> None:
    arguments = OPERATIONS[operation]()
    arguments[name] = spoil(arguments[name])
    with pytest.raises(ValueError, match=f"^{name} {fault}"):
        operation(**arguments)


@pytest.mark.parametrize(("operation", "name"), TENSORS, ids=[f"{f.__name__}-{n}" for f, n in TENSORS])
def test_all_tensors_are_on_one_device(operation: Callable[..., Any], name: str) -> None:
    """The first tensor sets the device; where it is the odd one out, the next is named."""
    arguments = OPERATIONS[operation]()
    arguments[name] = arguments[name].to("meta")
    first = {"decode_attention": "q", "prefill_attention": "q", "append": "k", "close_pages": "k"}
    named = r"\w+" if name == first.get(operation.__name__, "pages") else name
    with pytest.raises(ValueError, match=rf"^{named} is on (meta|cpu), not on (meta|cpu)$"):
        operation(**arguments)


def test_open_pages_names_pages() -> None:
    for bad, fault in (
        (torch.zeros(2, 100, dtype=torch.uint8), "has shape"),
        (torch.zeros(2, FMT.page_bytes), "has dtype"),
        (b"", "is a bytes"),
    ):
        with pytest.raises(ValueError, match=f"^pages {fault}"):
            open_pages(FMT, bad)  # type: ignore[arg-type]
