"""Who may ask: the browser that was given the token, on a page of ours."""

from __future__ import annotations

import hmac
import ipaddress
import re
from http.cookies import CookieError, SimpleCookie
from typing import Final
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",  # with less, a form of ours would come with the Origin "null"
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


_HOST = re.compile(r"([a-z0-9.-]+|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?", re.IGNORECASE).fullmatch


class Guard:
    """Lets nobody in without the token, nor under another name than the server's, nor from another page.

    Another name in the Host header is what a page of somebody else's has that made its own name point here (DNS
    rebinding).  An address in numbers is nobody's name; and the port may be a tunnel's.

    Args:
        names: what this machine may be called, besides ``localhost``.
        token: opens the first page; a cookie keeps it from then on.
    """

    def __init__(self, app: ASGIApp, *, names: frozenset[str], token: str) -> None:
        self._app = app
        self._names = names | {"localhost"}
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, guarded)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.getlist("host")
        if len(host) != 1 or not self._is_ours(host[0]):
            return PlainTextResponse("This server has another name.", 421)
        if scope["method"] not in ("GET", "HEAD") and headers.getlist("origin") != [f"http://{host[0]}"]:
            return PlainTextResponse("This came from another page.", 403)
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = dict(query).get("token")
        if given is not None and self._is_token(given) and scope["method"] == "GET":
            # Away with it: an address is seen, kept and passed on.
            rest = urlencode([each for each in query if each[0] != "token"])
            target = scope["path"] if scope["path"].startswith("/") and not scope["path"].startswith("//") else "/"
            answer = RedirectResponse(target + (f"?{rest}" if rest else ""), 303)
            answer.set_cookie(self._cookie(scope), self._token, httponly=True, samesite="strict")
            return answer
        if self._is_token(self._kept(scope, headers)):
            return None
        return PlainTextResponse(
            "This page opens with the address that `kvpersist ui` has printed, with the token in it.", 403
        )

    def _is_ours(self, host: str) -> bool:
        found = _HOST(host)
        if found is None:
            return False
        try:
            ipaddress.ip_address(found[1].strip("[]"))
        except ValueError:
            return found[1] in self._names
        return True

    def _kept(self, scope: Scope, headers: Headers) -> str:
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(self._cookie(scope))
        except CookieError:
            return ""
        return "" if kept is None else kept.value

    def _cookie(self, scope: Scope) -> str:
        # Cookies know no ports: two servers on one machine must not take each other's.
        return f"kvpersist-{(scope.get('server') or ('', 0))[1]}"

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())
