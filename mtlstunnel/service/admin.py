"""``--admin``: /healthz, /readyz, /metrics and /status for those who look after it."""

from __future__ import annotations

import datetime
import io
import json
from collections.abc import Callable
from typing import Any

import attrs
from twisted.web.resource import Resource
from twisted.web.server import Request, Site

from mtlstunnel.service.admin_channel import AdminChannel, AdminClients
from mtlstunnel.service.metrics import Dates, Look, Situation

PATHS = ("/healthz", "/readyz", "/metrics", "/status")

_TEXT = "text/plain; charset=utf-8"
_NO_PROMETHEUS = (
    b"prometheus_client is not installed; install it with: pip install prometheus-client\n"
)


@attrs.frozen
class Page:
    """
    An answer.

    :ivar status: the HTTP status
    """

    content: bytes
    content_type: str = _TEXT
    status: int = 200


class _Leaf(Resource):
    """A page that is made when it is asked for."""

    isLeaf = True

    def __init__(self, make: Callable[[str], Page]) -> None:
        super().__init__()
        self._make = make

    def render_HEAD(self, request: Any) -> bytes:
        request.setHeader(b"content-length", b"%d" % len(self.render_GET(request)))
        return b""

    def render_GET(self, request: Any) -> bytes:
        accept = request.getHeader(b"accept") or b""
        page = self._make(accept.decode("ascii", "replace"))
        request.setResponseCode(page.status)
        request.setHeader(b"content-type", page.content_type.encode("ascii"))
        request.setHeader(b"cache-control", b"no-store")
        return page.content


class _Nothing(io.BytesIO):
    """Where the body of a request goes: no page here wants one."""

    def write(self, data: Any) -> int:
        return len(data)


class AdminRequest(Request):
    """A request whose body is dropped; Twisted would keep it, on disk where it is large."""

    def gotLength(self, length: int | None) -> None:
        """The headers are there."""
        super().gotLength(0)
        self.content = _Nothing()


class AdminSite(Site):
    """A site that does not write each request into the log, and waits for nobody for long."""

    noisy = False
    protocol = AdminChannel  # type: ignore[assignment]
    requestFactory = AdminRequest

    def __init__(self, root: Resource, reactor: Any, proxy_header: bool = False) -> None:
        """
        :param proxy_header: whether a balancer in front sends a PROXY header
        """
        super().__init__(root, timeout=None, reactor=reactor)
        self.clients = AdminClients(reactor)
        self.proxy_header = proxy_header

    def log(self, request: Any) -> None:
        """Say nothing: health checks come every few seconds."""


def admin_site(
    look: Look, now: Callable[[], datetime.datetime], reactor: Any, proxy_header: bool = False
) -> AdminSite:
    """
    What ``--admin`` serves.

    :param look: asks how the service is
    :param now: the present, with its time zone
    :param proxy_header: whether a balancer in front sends a PROXY header
    """
    try:
        from mtlstunnel.service.exposition import Exposition
    except ImportError:
        # Installed without dependencies: health checks need none.
        exposition = None
    else:
        exposition = Exposition(look)

    def healthz(_accept: str) -> Page:
        return Page(b"ok\n")

    def readyz(_accept: str) -> Page:
        now = look()
        if now.ready:
            return Page(b"ready\n")
        if now.workers is not None and now.listeners:
            said = [f"{now.workers.ready} of {now.workers.wanted} workers ready"]
            said += [f"{one} does not answer" for one in now.workers.silent]
            return Page("\n".join([*said, ""]).encode("ascii"), status=503)
        return Page(b"not listening\n", status=503)

    def metrics(accept: str) -> Page:
        if exposition is None:
            return Page(_NO_PROMETHEUS, status=503)
        content_type, content = exposition.page(accept)
        return Page(content, content_type)

    def status(_accept: str) -> Page:
        text = json.dumps(status_of(look(), now()), indent=2)
        return Page(text.encode("ascii") + b"\n", "application/json")

    root = Resource()
    root.putChild(b"", _Leaf(lambda _accept: Page(("\n".join(PATHS) + "\n").encode("ascii"))))
    for path, make in zip(PATHS, (healthz, readyz, metrics, status), strict=True):
        root.putChild(path[1:].encode("ascii"), _Leaf(make))
    return AdminSite(root, reactor, proxy_header)


def _date(moment: datetime.datetime | None) -> str | None:
    return None if moment is None else moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _dates(one: Dates) -> dict[str, object]:
    return {"name": one.name, "since": _date(one.since), "until": _date(one.until)}


def status_of(now: Situation, at: datetime.datetime) -> dict[str, object]:
    """The fields of ``/status``."""
    from mtlstunnel import __version__

    counted = now.metrics
    uptime = None if now.started is None else round((at - now.started).total_seconds(), 3)
    return {
        "version": __version__,
        "ready": now.ready,
        "started": _date(now.started),
        "uptime": uptime,
        "workers": None if now.workers is None else attrs.asdict(now.workers),
        "listeners": list(now.listeners),
        "upstream": now.upstream,
        "server_certificate": {"until": _date(now.server_not_after)},
        "generation": now.generation,
        "cas": [
            {**_dates(ca), "sha256": ca.key, "authenticated": counted.authenticated.get(ca.key, 0)}
            for ca in now.cas
        ],
        "crls": [_dates(crl) for crl in now.crls],
        "connections": {"open": now.open, "total": counted.accepted},
        "refused": {reason: count for reason, count in counted.refused.items() if count},
        "observed": {reason: count for reason, count in counted.observed.items() if count},
        "probes": counted.probes,
        "upstream_failures": {
            reason: count for reason, count in counted.upstream_failures.items() if count
        },
        "bytes_in": now.bytes_in,
        "bytes_out": now.bytes_out,
        "audit_lines_lost": now.lost_lines,
        "log_lines_lost": now.lost_log_lines,
        "accept_failures": {
            reason: count for reason, count in counted.accept_failures.items() if count
        },
        "handshakes": {"in_progress": now.in_handshake, "limit": now.most_handshakes},
        "waiting": now.waiting,
        "descriptors": [attrs.asdict(one) for one in now.descriptors],
    }
