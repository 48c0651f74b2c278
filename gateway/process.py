"""One gateway as a process, or inside another: start, serve, drain, stop.

Stopping: first no new connection is accepted and open requests may finish, for `drain_seconds`; then the rest fails with an
error that its clients see. Signals are the business of whoever runs this.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import uvicorn

from gateway.app import create_app
from gateway.backend import Backend, advertised
from gateway.service import Service
from model.text import load_tokenizer
from packhorse.config import GatewayConfig
from packhorse.errors import ConfigError, UnavailableError
from transport.control import ControlClient
from transport.security import is_loopback, require_secret
from transport.tokens import TokenReceiver

log = logging.getLogger(__name__)

KEEP_ALIVE_SECONDS = 75
CLOSE_SECONDS = 2  # for connections to close, once nothing is answered any more
BACKLOG = 2048


class Gateway:
    """Serves HTTP from `start` to `stop`. `url` and `address` have the real port once started."""

    def __init__(self, config: GatewayConfig) -> None:
        self.config = config
        self.address = f"{_bracketed(config.host)}:{config.port}"
        self._service: Service | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return f"http://{self.address}"

    @property
    def num_open_jobs(self) -> int:
        """Jobs that some client waits for."""
        return self._service.backend.num_open if self._service else 0

    async def start(self) -> None:
        """Returns when requests are accepted; the scheduler may come later. Raises ConfigError."""
        config = self.config
        require_secret(config.token_bind, config.secret_bytes)
        advertised(config.token_bind, config.advertise)
        if config.api_key is None and not is_loopback(f"http://{self.address}"):
            log.warning("%s is open to other machines and there is no api_key: anybody may use the model", self.url)
        tokenizer = await asyncio.to_thread(load_tokenizer, config.model)
        listener = bind(config.host, config.port)
        try:
            self._service = service = Service(
                backend=self._backend(),
                tokenizer=tokenizer,
                model_name=config.served_name or served_name(config.model),
                max_body_bytes=config.max_body_bytes,
                api_key=config.api_key.get_secret_value().encode() if config.api_key else None,
            )
            await service.backend.start()
        except BaseException:
            listener.close()
            await self.stop()
            raise
        self.address = f"{_bracketed(config.host)}:{listener.getsockname()[1]}"
        await self._serve(service, listener)
        log.info("serving %s at %s, tokens at %s", service.model_name, self.url, service.backend.reply_to)

    async def stop(self) -> None:
        """Drains, then ends everything. Idempotent."""
        service, server, serving = self._service, self._server, self._serving
        self._service = self._server = self._serving = None
        if service is None:
            return
        service.draining = True
        if server is not None and serving is not None:
            server.refuse_connections()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.config.drain_seconds):
                    await service.idle()
            service.backend.fail_all(UnavailableError("the gateway is shutting down"))
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
        await service.backend.stop()
        service.close()

    async def wait(self) -> None:
        """Returns when the HTTP server has ended, which it does by itself only on a fault; raises that."""
        assert self._serving is not None, "start() comes first"
        await asyncio.shield(self._serving)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    def _backend(self) -> Backend:
        config, secret = self.config, self.config.secret_bytes
        identity = f"gateway-{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        control = ControlClient(config.scheduler, identity, secret, lambda: backend.disconnected())
        backend = Backend(control, TokenReceiver(config.token_bind, secret), config.advertise)
        return backend

    async def _serve(self, service: Service, listener: socket.socket) -> None:
        settings = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            lifespan="off",
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=CLOSE_SECONDS,
            backlog=BACKLOG,
        )
        self._server = server = _Server(settings)
        self._serving = asyncio.create_task(server.serve(sockets=[listener]), name="gateway-http")
        while not server.started:
            if self._serving.done():
                listener.close()
                await self.stop()
                raise ConfigError(f"the HTTP server at {self.address} did not start")
            await asyncio.sleep(0.005)


class _Server(uvicorn.Server):
    """uvicorn within our event loop: it leaves signals alone."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def refuse_connections(self) -> None:
        for listening in self.servers if self.started else []:
            listening.close()


def bind(host: str, port: int) -> socket.socket:
    """A socket bound to host:port (0: a free one). Raises ConfigError naming them."""
    listener = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.setblocking(False)
    except OSError as error:
        if listener is not None:
            listener.close()
        raise ConfigError(f"cannot listen at {_bracketed(host)}:{port}: {error.strerror}", param="port") from error
    return listener


def served_name(model: str) -> str:
    """What clients call a model: a folder by its own name, anything else as it was given."""
    folder = Path(model).expanduser()
    return folder.resolve().name if folder.is_dir() else model


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
