"""What holds for every request: hosts that are served, headers for browsers, HEAD."""

import ipaddress
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY_ADDRESS = "any address"  # among the allowed hosts: numeric ones, which no other site can make a browser send
EVERYWHERE = ("", "0.0.0.0", "::")
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'self'; img-src blob: data:; frame-ancestors 'none'; base-uri 'none'; "
    "form-action 'none'; object-src 'none'",
}


def hosts_of(address: str) -> tuple[str, ...]:
    """The hosts that are allowed by default when the service listens on `address`."""
    return (*LOOPBACK, ANY_ADDRESS if address in EVERYWHERE else address)


def error_content(path: str, detail: str) -> dict[str, str]:
    """The JSON of an error: under the key that clients of the protocol look for, or that of the rest."""
    return {"error" if path.startswith("/v2") else "detail": detail}


class Guard:
    """Refuses requests to hosts other than `allowed` ("*" allows all): a page of another site that has its own name
    point here would otherwise read the answers ("DNS rebinding"). HEAD is answered as GET, by the server without body.
    """

    def __init__(self, app: ASGIApp, allowed: Collection[str]) -> None:
        self._app, self._allowed = app, {each.lower().strip("[]") for each in allowed}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        hosts = Headers(scope=scope).getlist("host")  # HTTP/1.0 does without, and browsers never do
        app = self._app
        if not all(map(self._allows, hosts)):
            detail = f"this service does not answer for {hosts[0]!r:.100}; its option --allowed-hosts says for whom"
            app = JSONResponse(error_content(scope["path"], detail), 400, {"Connection": "close"})
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await app({**scope, "method": method}, receive, send_guarded)

    def _allows(self, host: str) -> bool:
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        return "*" in self._allowed or name in self._allowed or (ANY_ADDRESS in self._allowed and _is_address(name))


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False
