"""A decode step's attention in all layers, natively. What other code ran between two layers has left the caches without this
file's code and objects: so all that the layers share is checked and laid out for the first one, and a call for another is two
comparisons and three addresses.
"""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from hack_kernels.decode_checks import check_decode, check_decode_values
from hack_kernels.page_format import PageFormat

from .decode_attention import lay_out
from .library import BAD_VALUE, check_status, load, readable, writable


class DecodePlan:
    """See hack_kernels/decode_plan.py."""

    def __init__(
        self,
        fmt: PageFormat,
        pages: Tensor,
        page_table: Tensor,
        num_pages: Tensor,
        residual: Tensor,
        residual_rows: Tensor,
        residual_tokens: Tensor,
        dequant: bool,
    ) -> None:
        self._fmt, self._dequant = fmt, dequant
        self._pages, self._residual = writable("pages", pages), writable("residual", residual)
        self._table, self._counts = readable(page_table), readable(num_pages)
        self._rows, self._tokens = readable(residual_rows), readable(residual_tokens)
        self._places = [(x.data_ptr(), y.data_ptr()) for x, y in zip(pages, residual, strict=True)]
        self._attend = load().packhorse_decode
        self._like: tuple[object, ...] = ()  # q and scale of the last call, but for q's values

    def attend(self, layer: int, q: Tensor, scale: float) -> Tensor:
        """See hack_kernels/decode_plan.py."""
        if (q.shape, q.stride(), q.dtype, q.is_cpu, scale) != self._like:
            q = self._prepare(q, scale)
        status = self._attend(self._arguments, q.data_ptr(), *self._places[layer])
        if status:
            if status == BAD_VALUE:
                check_decode_values(self._fmt, *self._tensors(q))
            check_status("packhorse_decode", status)
        return self._out

    def _prepare(self, q: Tensor, scale: float) -> Tensor:
        """Checks and lays out calls for queries like q. Returns q, or a copy that the kernels can read."""
        check_decode(self._fmt, *self._tensors(q))
        q = readable(q)
        self._out = torch.empty_like(q, memory_format=torch.contiguous_format)
        self._layout = lay_out(self._fmt, scale, self._dequant, self._out, *self._tensors(q))
        self._arguments = ctypes.addressof(self._layout)
        self._like = (q.shape, q.stride(), q.dtype, q.is_cpu, scale)
        return q

    def _tensors(self, q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The first layer's, as `decode_attention` takes them; the others' have the same shapes."""
        return q, self._pages[0], self._table, self._counts, self._residual[0], self._rows, self._tokens
