"""A scaled set of what ``make soak`` plays at full size, and that its judges can say no."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import SkipTest

import attrs
from twisted.trial.unittest import SynchronousTestCase

from tests.soak.chaos import Passage, Records, Way
from tests.soak.judgement import Seen, complaints
from tests.soak.load import Link
from tests.soak.report import BEGIN, END, Row, markdown, write_between_markers
from tests.soak.scale import SMALL
from tests.soak.scenarios import SCENARIOS, play, warm_up
from tests.soak.stage import Reading, Stage
from tests.soak.upstream import REQUEST_SIZE, Heard, Mode, Request, Upstream, answer_number
from tests.streams import digest_of, stream
from tests.system.harness import SMALL as SMALL_RUN
from tests.system.harness import run

SEED = "the seed of the tests"


class SoakTests(SynchronousTestCase):
    """The tunnel survives, and holds nothing more afterwards than before."""

    def setUp(self) -> None:
        if not os.path.isdir("/proc/self/fd"):
            raise SkipTest("there is no /proc here")
        self.directory = Path(tempfile.mkdtemp(prefix="soak-")).resolve()
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)

    def survive(self, *names: str) -> None:
        """Play some scenarios on one tunnel."""

        async def all_of_them() -> list[Row]:
            upstream = Upstream()
            await upstream.start()
            stage = Stage(self.directory, SMALL, SEED, upstream, lambda _: None)
            door = await stage.door()
            try:
                await warm_up(door)
                return [
                    await play(scenario, stage, door)
                    for scenario in SCENARIOS
                    if scenario.name in names
                ]
            finally:
                await door.stop()
                await upstream.close()

        rows = asyncio.run(all_of_them())
        self.assertEqual(len(rows), len(names))
        self.assertEqual([row for row in rows if not row.good], [])

    def test_random_faults_cut_no_stream_that_then_looks_whole(self) -> None:
        self.survive("chaos")

    def test_clock_steps_pauses_and_logs_that_nobody_reads(self) -> None:
        if SMALL_RUN:
            raise SkipTest("not in the smaller set")
        self.survive("trouble")

    def test_workers_that_are_killed_or_hang_among_them(self) -> None:
        if SMALL_RUN:
            raise SkipTest("not in the smaller set")
        self.survive("trouble-workers")

    def test_crowds_that_come_go_stay_and_do_not_read(self) -> None:
        if SMALL_RUN:
            raise SkipTest("not in the smaller set")
        self.survive("churn", "idle", "stalled", "handshakes")

    def test_resets_an_upstream_that_is_gone_and_one_that_stands_still(self) -> None:
        if SMALL_RUN:
            raise SkipTest("not in the smaller set")
        self.survive("resets", "down", "stopped", "reload")


def passages() -> tuple[Seen, Heard, Passage, Passage]:
    """Those of a connection to which nothing happened."""
    size, digest = digest_of(1000, 7)
    down, answer = digest_of(2000, answer_number(7))
    near = Passage(forth=Way(900, 900, "fin", "fin"), back=Way(900, 900, "fin", "fin"))
    far = Passage(
        forth=Way(REQUEST_SIZE + size, REQUEST_SIZE + size, "fin", "fin"),
        back=Way(down, down, "fin", "fin"),
    )
    seen = Seen(7, size, down, answer, "close_notify", True)
    return seen, Heard(size, digest, "fin"), near, far


def _middle_of_a_record() -> Way:
    way = Way(900, 500, "fin", "cut")
    way.records.take(b"\x17\x03\x03\x01\x00half")
    return way


class Judgement(SynchronousTestCase):
    """What may never be, is seen."""

    def judge(
        self, *, seen: Any = None, heard: Any = None, near: Any = None, far: Any = None
    ) -> list[str]:
        the_seen, the_heard, the_near, the_far = passages()
        return list(
            complaints(
                attrs.evolve(the_seen, **(seen or {})),
                attrs.evolve(the_heard, **(heard or {})),
                attrs.evolve(the_near, **(near or {})),
                attrs.evolve(the_far, **(far or {})),
            )
        )

    def test_nothing_is_said_of_one_that_went_well(self) -> None:
        self.assertEqual(self.judge(), [])

    def test_each_fault_is_named(self) -> None:
        short = dict(zip(("size", "digest"), digest_of(1500, answer_number(7)), strict=True))
        lost = REQUEST_SIZE + 500
        for what, case in (
            ("other bytes than the upstream", {"seen": {"digest": "0" * 64}}),
            ("other bytes than the client", {"heard": {"digest": "0" * 64}}),
            ("close_notify after 1500 of 2000", {"seen": short}),
            ("had not ended in order", {"far": {"back": Way(2000, 2000, "reset", "reset")}}),
            ("a FIN to the upstream after", {"far": {"forth": Way(lost, lost, "fin", "fin")}}),
            (
                "a FIN to the upstream after",
                {
                    "far": {"forth": Way(lost, lost, "fin", "fin")},
                    "near": {"forth": _middle_of_a_record()},
                },
            ),
            ("bytes went up", {"far": {"forth": Way(lost, lost, "reset", "reset")}}),
            ("a FIN without close_notify", {"seen": {"ending": "fin"}}),
            ("it ended by reset", {"seen": {"ending": "reset"}}),
        ):
            said = self.judge(**case)  # type: ignore[arg-type]
            self.assertTrue(any(what in one for one in said), (what, said))

    def test_a_cut_that_shows_is_no_fault(self) -> None:
        lost = REQUEST_SIZE + 500
        size, digest = digest_of(500, 7)
        cut = {"ending": "reset", "finished": False}
        gone = {"size": size, "digest": digest, "ending": "reset"}
        for case in (
            # The client's network resets.
            {
                "seen": cut,
                "heard": gone,
                "near": {"was_reset": True, "forth": Way(500, 500, None, "reset")},
                "far": {"forth": Way(lost, lost, "reset", "reset"), "was_reset": True},
            },
            # The client ends between two records by FIN alone.
            {
                "heard": {**gone, "ending": "fin"},
                "near": {"forth": Way(900, 500, "fin", "cut")},
                "far": {"forth": Way(lost, lost, "fin", "fin")},
            },
            # The upstream's network ends early, in order: the client sees what came, and the end.
            {
                "seen": dict(zip(("size", "digest"), digest_of(9, answer_number(7)), strict=True)),
                "far": {"back": Way(2000, 9, "fin", "cut")},
            },
        ):
            self.assertEqual(self.judge(**case), [])  # type: ignore[arg-type]


class Tools(SynchronousTestCase):
    """What the scenarios stand on."""

    def test_records_are_followed_in_pieces_of_any_size(self) -> None:
        wire = b"".join(b"\x17\x03\x03" + n.to_bytes(2, "big") + bytes(n) for n in (3, 0, 300))
        for size in (1, 2, 3, 5, 7, 308, len(wire)):
            records = Records()
            between = set()
            for at in range(0, len(wire), size):
                records.take(wire[at : at + size])
                if records.between:
                    between.add(at + size)
            self.assertLessEqual(between, {8, 13, *range(len(wire), len(wire) + size)})
            self.assertTrue(records.between)

    def test_a_link_tells_a_reset_from_an_end(self) -> None:
        async def ending(leave: Callable[[Link], None]) -> str | None:
            one, other = map(Link, _pair())
            await other.send(b"last words")
            leave(other)
            got = await one.receive_exactly(100)
            one.close()
            other.close()
            return one.ending if got in (b"last words", b"") else None

        async def both() -> list[str | None]:
            return [await ending(Link.fin), await ending(Link.reset)]

        self.assertEqual(asyncio.run(both()), ["fin", "reset"])

    def test_streams_differ_and_their_beginnings_are_known(self) -> None:
        first, second = (b"".join(stream(3_000_000, number, 4099)) for number in (1, 2))
        self.assertNotEqual(first[:100], second[:100])
        self.assertEqual(first, b"".join(stream(3_000_000, 1)))
        self.assertEqual(digest_of(1000, 1)[0], 1000)
        self.assertNotEqual(digest_of(1000, 1), digest_of(1000, 2))

    def test_a_request_is_read_as_it_was_written(self) -> None:
        request = Request(Mode.BREAK, 3, 2**40, 9)
        self.assertEqual(Request.read(bytes(request)), request)

    def test_the_table_goes_between_its_markers(self) -> None:
        page = Path(self.mktemp())
        page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
        reading = Reading(12, 0, 1 << 26)
        rows = [Row("a load", "all | well", True, reading, reading), Row("a fault", "bad", False)]
        write_between_markers(page, markdown(rows, "x", 60))
        text = page.read_text()
        self.assertIn("| a load | all \\| well | 12 to 12 | 64.0 to 64.0 MiB |", text)
        self.assertIn("**failed**: bad", text)
        self.assertTrue(text.startswith("before") and text.endswith("after\n"))
        self.assertNotIn("old", text)

    def test_a_leak_is_no_coming_back(self) -> None:
        before = Reading(12, 0, 100 << 20)
        for after, is_back in (
            (Reading(12, 0, 109 << 20), True),
            (Reading(12, 0, 111 << 20), False),
            (Reading(13, 0, 100 << 20), False),
            (Reading(12, 1, 100 << 20), False),
        ):
            self.assertEqual(after.has_come_back_to(before), is_back)

    def test_it_says_how_to_run_it(self) -> None:
        done = run(sys.executable, "-m", "tests.soak", "--help")
        self.assertEqual(done.status, 0, done)
        self.assertIn("--seed", done.text)


def _pair() -> Iterator[socket.socket]:
    listening = socket.create_server(("127.0.0.1", 0))
    yield socket.create_connection(listening.getsockname())
    yield listening.accept()[0]
    listening.close()
