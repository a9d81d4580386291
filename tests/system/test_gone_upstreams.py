"""Clients that write on after an upstream that is gone has ended in order."""

from __future__ import annotations

import select

from tests.system.harness import AUTHORITY, PATIENCE, SMALL, Link, SystemTestCase, TLSClient


def end_and_go(link: Link) -> None:
    """Answer and end both directions, as a process that exits does."""
    link.receive()
    link.send(b"bye")


def end_and_read(link: Link) -> int:
    """End, and read what still comes."""
    link.send(b"bye")
    link.finish()
    return link.receive_all()


class GoneUpstreams(SystemTestCase):
    """After close_notify."""

    workers = "1"

    def ended(self, handler: object) -> TLSClient:
        self.upstream = self.serve(handler)  # type: ignore[arg-type]
        self.tunnel = self.door(self.upstream, "--workers", self.workers)
        client = self.client(self.tunnel, self.pair(AUTHORITY.issue("alice"), "alice"))
        client.send(b"x")
        self.assertEqual(client.receive_all(), b"bye")
        self.assertEqual(client.ending, "close_notify")
        return client

    def test_one_write_to_an_upstream_that_is_gone_resets_the_client(self) -> None:
        client = self.ended(end_and_go)
        self.upstream.outcome()
        client.send(b"more")
        poll = select.poll()
        poll.register(client.socket, select.POLLERR)
        # The time-out of a half-close, 60 s, would come later.
        self.assertTrue(poll.poll(PATIENCE / 2 * 1000))
        event = self.tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "aborted", "upstream": "fin"})

    def test_an_upstream_that_reads_on_gets_all(self) -> None:
        client = self.ended(end_and_read)
        for _ in range(20):
            client.send(b"more")
        client.close_notify()
        client.fin()
        self.assertEqual(self.upstream.outcome(), 81)
        event = self.tunnel.wait_for("closed")
        self.assertEqual(event["end"], {"client": "close_notify", "upstream": "fin"})


class GoneUpstreamsOfWorkers(GoneUpstreams):
    """--workers 2"""

    skip = "not in the smaller set" if SMALL else None

    workers = "2"
