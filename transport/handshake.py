"""The first frames of a page link: both sides prove the shared secret, if there is one, and compare their KV layouts.

    connecting                              listening
    Hello(layout, nonce)            ->
                                    <-      Welcome(layout_hash, nonce, proof, credit_bytes)
    Hello(layout, nonce, proof)     ->      only with a secret; proves it over both nonces, under the other label
                                    <-      Refused, where the proof or the layout is wrong; else nothing more

Without a secret a layout that differs is refused in place of the Welcome. With one, the listening side names no field before the
peer has proved the secret: the Welcome shows the differing hash, and the connecting side waits for the Refused. The proofs
cover the nonces, ids and layout hashes, so none can be replayed, reflected or moved to another pair. They authenticate the start
of a link and do not encrypt it: beyond a trusted network, use zmq, whose CURVE does.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import logging
import secrets
from typing import TypeVar

from packhorse.errors import FrameError, HandshakeError, LinkTimeoutError, TransportError

from .link import Link
from .messages import ErrorInfo, Hello, KVLayout, Model, Refused, Welcome
from .security import proof, proof_holds

log = logging.getLogger(__name__)

HANDSHAKE_SECONDS = 10.0
NONCE_BYTES = 32
_CONNECTING, _LISTENING = "connecting side", "listening side"
_Answer = TypeVar("_Answer", bound=Model)


def layout_hash(layout: KVLayout) -> str:
    """SHA-256 in hex over the layout's fields as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(layout.model_dump(), sort_keys=True).encode()).hexdigest()


def differences(here: KVLayout, there: KVLayout) -> str:
    """Every field that differs, with both values: "kv_format: k4v2 here, k2v2 there; layers: ...". Empty when none does."""
    ours, theirs = here.model_dump(), there.model_dump()
    return "; ".join(f"{name}: {ours[name]} here, {theirs[name]} there" for name in ours if ours[name] != theirs[name])


async def greet(
    link: Link, worker_id: str, layout: KVLayout, secret: bytes | None, timeout_seconds: float = HANDSHAKE_SECONDS
) -> Welcome:
    """The connecting side. Raises HandshakeError when either side refuses, LinkTimeoutError, LinkClosedError, FrameError."""
    hello = Hello(
        worker_id=worker_id,
        layout=layout,
        layout_hash=layout_hash(layout),
        nonce=secrets.token_bytes(NONCE_BYTES),
    )
    try:
        async with asyncio.timeout(timeout_seconds):
            await link.send(hello)
            welcome = await _expect(link, Welcome)
            if welcome.proof or secret is not None:
                await _prove(link, hello, welcome, secret)
            if welcome.layout_hash != hello.layout_hash:
                await _expect(link, Refused)
            return welcome
    except TimeoutError as error:
        raise LinkTimeoutError(f"{link.address} did not shake hands within {timeout_seconds:g} s") from error


async def admit(
    link: Link,
    worker_id: str,
    layout: KVLayout,
    secret: bytes | None,
    credit_bytes: int,
    timeout_seconds: float = HANDSHAKE_SECONDS,
) -> Hello:
    """The listening side. A peer that does not fit is told why; then raises HandshakeError. LinkTimeoutError: a silent peer.

    Raises LinkClosedError and FrameError too.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            hello = await _expect(link, Hello)
            welcome = Welcome(
                worker_id=worker_id,
                layout_hash=layout_hash(layout),
                nonce=secrets.token_bytes(NONCE_BYTES),
                credit_bytes=credit_bytes,
            )
            try:
                if secret is None:
                    _check_layout(layout, hello)
                    await link.send(welcome)
                else:
                    await _challenge(link, hello, welcome, secret)
                    _check_layout(layout, hello)
            except HandshakeError as refusal:
                await _refuse(link, _seen_from_there(refusal, layout, hello))
                raise
            return hello
    except TimeoutError as error:
        raise LinkTimeoutError(f"{link.address} did not shake hands within {timeout_seconds:g} s") from error


async def _prove(link: Link, hello: Hello, welcome: Welcome, secret: bytes | None) -> None:
    """Checks the listening side's proof and answers with ours; where that is not possible, tells the peer and raises."""
    parts = _transcript(hello, welcome)
    objection = ""
    if secret is None:
        objection = "requires a shared secret, and none is set here"
    elif not welcome.proof:
        objection = "has no shared secret, and one is set here"
    elif not proof_holds(welcome.proof, secret, _LISTENING, *parts):
        objection = "has another shared secret"
    if secret is None or objection:
        await _refuse(link, ErrorInfo.of(HandshakeError(f"the listening side {objection}")))
        raise HandshakeError(f"{link.address} {objection}")
    await link.send(hello.model_copy(update={"proof": proof(secret, _CONNECTING, *parts)}))


async def _challenge(link: Link, hello: Hello, welcome: Welcome, secret: bytes) -> None:
    """Proves the secret to the peer and has it prove its own."""
    if len(hello.nonce) != NONCE_BYTES:
        raise HandshakeError(f"a nonce of {len(hello.nonce)} bytes came; it takes {NONCE_BYTES}")
    parts = _transcript(hello, welcome)
    await link.send(welcome.model_copy(update={"proof": proof(secret, _LISTENING, *parts)}))
    answer = await _expect(link, Hello)
    if not proof_holds(answer.proof, secret, _CONNECTING, *parts):
        raise HandshakeError("the shared secret is wrong or missing")


def _transcript(hello: Hello, welcome: Welcome) -> tuple[bytes, ...]:
    """What both proofs cover."""
    names = (hello.worker_id, welcome.worker_id, hello.layout_hash, welcome.layout_hash)
    return hello.nonce, welcome.nonce, *(name.encode() for name in names)


def _check_layout(layout: KVLayout, hello: Hello) -> None:
    if layout_hash(hello.layout) != hello.layout_hash:
        raise HandshakeError("the layout and its hash do not belong together")
    if difference := differences(layout, hello.layout):
        raise HandshakeError(f"the KV layouts differ: {difference}")


def _seen_from_there(refusal: HandshakeError, layout: KVLayout, hello: Hello) -> ErrorInfo:
    """The refusal in the peer's words: its own values are the ones "here"."""
    difference = differences(layout, hello.layout)
    message = refusal.message.replace(difference, differences(hello.layout, layout)) if difference else refusal.message
    return ErrorInfo(code=refusal.code, message=message)


async def _refuse(link: Link, error: ErrorInfo) -> None:
    """Tells the peer, which may have left for the same reason."""
    with contextlib.suppress(TransportError):
        await link.send(Refused(error=error))


async def _expect(link: Link, kind: type[_Answer]) -> _Answer:
    """The next message, of `kind`. Raises HandshakeError on a Refused, expected or not; FrameError on anything else."""
    message = (await link.receive()).message
    if isinstance(message, Refused):
        raise HandshakeError(f"{link.address} refused the link: {message.error.message}")
    if not isinstance(message, kind):
        raise FrameError(f"{link.address} sent {type(message).__name__} where {kind.__name__} was expected")
    return message
