"""Page streams, one per job, over one link per (prefill, decode) pair. Sending: sender.py, send_stream.py;
receiving: receiver.py, page_link.py; credits and turns: flow.py.

prefill: PageSender, SendStream                  decode: PageReceiver, PageSink
StreamOpen                                ->     opened
Pages, Residual (a checksum each)         ->     pages, residual
                                          <-     Credit, once the sink has consumed the payload
StreamEnd                                 ->     ended
                                          <-     StreamAck: the lease ends
StreamAbort, from either side: it answers nothing, and what is still under way is dropped
"""

from .page_link import PageSink
from .receiver import CREDIT_BYTES, PageReceiver
from .send_stream import FRAME_BYTES, SendStream
from .sender import PageSender

__all__ = ["CREDIT_BYTES", "FRAME_BYTES", "PageReceiver", "PageSender", "PageSink", "SendStream"]
