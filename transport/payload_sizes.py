"""How many pages a sequence has and how many bytes a page stream's payloads, by the layout that both sides agreed on."""

from __future__ import annotations

from packhorse.errors import ConfigError

from .messages import KVLayout, Pages, Residual

_ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def num_pages(num_tokens: int, layout: KVLayout) -> int:
    """Closed pages of a sequence of `num_tokens`; sinks and the open block lie in the residual."""
    return max(0, num_tokens - layout.sink_tokens) // layout.page_tokens


def page_layer_bytes(layout: KVLayout) -> int:
    """Of one page of one layer, all KV heads."""
    return layout.kv_heads * layout.page_bytes


def residual_bytes(layout: KVLayout, num_tokens: int) -> int:
    """Of one layer's residual of `num_tokens`, K and V. Raises ConfigError on a dtype that is not known."""
    element = _ELEMENT_BYTES.get(layout.dtype)
    if element is None:
        raise ConfigError(f"dtype={layout.dtype!r} of the layout is not one of {', '.join(_ELEMENT_BYTES)}")
    return 2 * layout.kv_heads * num_tokens * layout.head_dim * element


def expected_bytes(layout: KVLayout, message: Pages | Residual) -> int:
    """Of the payload that belongs to `message`."""
    if isinstance(message, Pages):
        return message.num_pages * page_layer_bytes(layout)
    return residual_bytes(layout, message.num_tokens)
