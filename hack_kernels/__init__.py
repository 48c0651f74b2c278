"""The page format, and attention computed on its codes. Needs torch alone; knows nothing of models, workers or networks."""

from .append import append
from .backend import Backend, choose
from .close_pages import close_pages, open_pages
from .decode_attention import decode_attention
from .decode_plan import DecodePlan, plan_decode
from .fused_dequant import fused_dequant_attention
from .page_format import PageFormat
from .prefill_attention import prefill_attention

__all__ = [
    "Backend",
    "DecodePlan",
    "PageFormat",
    "append",
    "choose",
    "close_pages",
    "decode_attention",
    "fused_dequant_attention",
    "open_pages",
    "plan_decode",
    "prefill_attention",
]
