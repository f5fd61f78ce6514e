"""Uvicorn with a first phase of shutdown in which the socket stays open, and with a bound on its connections."""

import asyncio
import functools
import logging
import os
import resource
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from dvt.errors import ConfigError, reason_of

BACKLOG = 128  # connections that wait to be accepted, and that are accepted in one go
SPARE = 32  # file descriptors for what the service opens itself while it runs
BUSY = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"

log = logging.getLogger(__name__)


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError if that is not possible."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}, port {port}: {reason_of(error)}; choose others") from error


class BoundedProtocol(H11Protocol):
    """Turns connections away beyond the most that there may be, before the process is out of file descriptors."""

    def __init__(self, *args: Any, most: int, **more: Any) -> None:
        super().__init__(*args, **more)
        self._most = most

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        if len(self.connections) > self._most:
            transport.write(BUSY)
            transport.close()


class DrainingServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C refuses new requests for `drain_seconds`, then does what uvicorn does: closes the socket,
    waits for the answers to accepted requests, and ends. A second signal ends the first phase at once.
    """

    def __init__(self, app: FastAPI, listening: socket.socket, drain_seconds: float) -> None:
        allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        backlog = min(BACKLOG, allowed // 4)
        most = max(1, allowed - len(os.listdir("/proc/self/fd")) - backlog - min(SPARE, allowed // 8))
        protocol = functools.partial(BoundedProtocol, most=most)
        super().__init__(uvicorn.Config(app, http=protocol, backlog=backlog, access_log=False))
        self._socket, self._scheduler, self._drain_seconds = listening, app.state.scheduler, drain_seconds

    def run(self) -> None:
        """Serves until a signal comes."""
        super().run(sockets=[self._socket])

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        asyncio.get_running_loop().set_exception_handler(_note)
        await super().startup(sockets)
        host, port = self._socket.getsockname()[:2]
        logging.getLogger("uvicorn.error").info("listening on http://%s:%d", f"[{host}]" if ":" in host else host, port)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler, which runs between two steps of the event loop's thread."""
        if self._scheduler.draining:
            super().handle_exit(sig, frame)
            return
        self._scheduler.draining = True
        end = super().handle_exit
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, end, sig, None)


def _note(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Errors outside of requests; those of connections that cannot be accepted come in numbers: no traceback."""
    if "out of system resource" in context.get("message", ""):
        log.warning("a connection cannot be accepted: %s", context.get("exception"))
    else:
        loop.default_exception_handler(context)
