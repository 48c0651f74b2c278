"""Page streams, one per job, over one link per (prefill, decode) pair. Both sides: sender.py, receiver.py; credits: flow.py.

prefill: PageSender, SendStream                  decode: PageReceiver, PageSink
StreamOpen                                ->     opened
Pages, Residual (a checksum each)         ->     pages, residual
                                          <-     Credit, once the sink has consumed the payload
StreamEnd                                 ->     ended
                                          <-     StreamAck: the lease ends
StreamAbort, from either side: it answers nothing, and what is still under way is dropped
"""

from .receiver import CREDIT_BYTES, PageReceiver, PageSink
from .sender import FRAME_BYTES, PageSender, SendStream

__all__ = ["CREDIT_BYTES", "FRAME_BYTES", "PageReceiver", "PageSender", "PageSink", "SendStream"]
