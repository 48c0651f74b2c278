"""Plain TCP: the yardstick for the other links, and the link with the fewest moving parts. Knows nothing of pages.

No encryption; transport/handshake.py proves the shared secret on both sides.
"""

from __future__ import annotations

from packhorse.errors import FrameError

from .framing import Payload, pack
from .link import Frame, Link, Listener
from .messages import Model, decode
from .wire import Door, Wire, bind, dial, parse_host_port


class TcpLink(Link):
    def __init__(self, wire: Wire) -> None:
        self.address = wire.address
        self._wire = wire

    @classmethod
    async def connect(cls, address: str, rest: str) -> TcpLink:
        """Raises OSError; ValueError on a malformed address."""
        return cls(Wire(await dial(*parse_host_port(address, rest)), address))

    async def send(self, message: Model, payload: Payload = b"") -> None:
        header, view = pack(message, payload)
        await self._wire.write_frame(header, view)

    async def receive(self) -> Frame:
        try:
            header, payload_bytes = await self._wire.read_start()
            payload = await self._wire.read(payload_bytes)
            return Frame(decode(memoryview(header)), memoryview(payload))
        except FrameError:
            self._wire.hang_up()
            raise

    async def close(self) -> None:
        await self._wire.close()


class TcpListener(Listener):
    def __init__(self, door: Door) -> None:
        self.address = door.address
        self._door = door

    @classmethod
    async def listen(cls, address: str, rest: str) -> TcpListener:
        """Raises OSError; ValueError on a malformed address."""
        return cls(Door(await bind(*parse_host_port(address, rest)), "tcp"))

    async def accept(self) -> Link:
        return TcpLink(await self._door.accept())

    async def close(self) -> None:
        await self._door.close()
