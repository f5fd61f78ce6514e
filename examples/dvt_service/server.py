"""Uvicorn with a first phase of shutdown in which the socket stays open and new requests get a 503."""

import asyncio
from types import FrameType

import uvicorn
from fastapi import FastAPI


class DrainingServer(uvicorn.Server):
    """On SIGTERM or Ctrl-C refuses new requests for `drain_seconds`, then does what uvicorn does: closes the socket,
    waits for the answers to accepted requests, and ends. A second signal ends the first phase at once.
    """

    def __init__(self, app: FastAPI, host: str, port: int, drain_seconds: float) -> None:
        super().__init__(uvicorn.Config(app, host=host, port=port, access_log=False))
        self._scheduler, self._drain_seconds = app.state.scheduler, drain_seconds

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The signal handler, which runs between two steps of the event loop's thread."""
        if self._scheduler.draining:
            super().handle_exit(sig, frame)
            return
        self._scheduler.draining = True
        end = super().handle_exit
        loop = asyncio.get_running_loop()
        loop.call_soon_threadsafe(loop.call_later, self._drain_seconds, end, sig, None)
