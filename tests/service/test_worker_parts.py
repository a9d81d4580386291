"""What a parent makes of its workers: sums, waits, causes, and what it is told."""

from __future__ import annotations

import json
import signal
from typing import Any

import attrs
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import ProcessDone, ProcessTerminated
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.events import Event
from mtlstunnel.service.backoff import MOST_SECONDS, STEADY_SECONDS, Backoff
from mtlstunnel.service.metrics import Metrics
from mtlstunnel.service.reports import Report, total
from mtlstunnel.service.worker_messages import TELLS, line_of
from mtlstunnel.service.worker_process import WorkerProcess
from tests.service.test_audit import closed, probe, refused
from tests.service.test_metrics import accepted_with, counted, failed, situation

EVENTS = (probe(), refused(), accepted_with(), closed(), failed("refused"))


class SumTests(SynchronousTestCase):
    """Several processes' counts are those that one would have had."""

    @given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, len(EVENTS) - 1)), max_size=30))
    def test_it_does_not_matter_who_has_counted(self, happened: list[tuple[int, int]]) -> None:
        events: list[Event] = [EVENTS[kind] for _, kind in happened]
        parts = [
            counted(*(EVENTS[kind] for who, kind in happened if who == worker))
            for worker in range(3)
        ]
        whole = Metrics()
        for part in parts:
            whole.add(Metrics.of_plain(json.loads(json.dumps(part.as_plain()))))
        self.assertEqual(_rounded(whole), _rounded(counted(*events)))

    def test_reports_are_added_up_and_stay_what_they_are(self) -> None:
        one = Report.of(situation(counted(*EVENTS)))
        two = Report.of_plain(json.loads(json.dumps(one.as_plain())))
        self.assertEqual(one, two)
        before = json.dumps(one.as_plain())
        whole = total([one, two, Report()])
        self.assertEqual((whole.open, whole.bytes_in, whole.bytes_out), (4, 200, 400))
        self.assertEqual(whole.lost_lines, 6)
        self.assertEqual(whole.metrics.accepted, 2 * one.metrics.accepted)
        self.assertEqual(json.dumps(one.as_plain()), before)

    def test_of_one_that_is_gone_nothing_is_open_and_all_else_stays(self) -> None:
        report = Report.of(situation(counted(*EVENTS)))
        self.assertEqual(report.without_open(), attrs.evolve(report, open=0))

    def test_what_is_no_report_is_refused(self) -> None:
        good = Report().as_plain()
        metrics = good["metrics"]
        for bad in (
            {},
            {**good, "open": "many"},
            {**good, "metrics": {**metrics, "handshakes": {"counts": [1], "total": 0}}},
            {**good, "metrics": {**metrics, "refused": {"other": None}}},
            {**good, "metrics": {}},
        ):
            with self.assertRaises((LookupError, TypeError, ValueError)):
                Report.of_plain(bad)


def _rounded(metrics: Metrics) -> dict[str, Any]:
    # Sums of floats depend on their order.
    return json.loads(json.dumps(metrics.as_plain()), parse_float=lambda text: round(float(text)))


class BackoffTests(SynchronousTestCase):
    """The wait before the next start."""

    def test_it_doubles_up_to_a_bound_and_begins_anew_after_a_long_life(self) -> None:
        backoff = Backoff()
        waits = [backoff.after(1.0) for _ in range(12)]
        self.assertEqual(waits[:4], [0.1, 0.2, 0.4, 0.8])
        self.assertEqual(waits[-1], MOST_SECONDS)
        self.assertEqual(backoff.after(STEADY_SECONDS - 1), MOST_SECONDS)
        self.assertEqual(backoff.after(STEADY_SECONDS), 0.1)
        self.assertEqual(backoff.after(0.0), 0.2)


class Owner:
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.told: list[object] = []

    def worker_is_ready(self, worker: WorkerProcess) -> None:
        self.told.append("ready")

    def worker_events(self, lines: list[str]) -> None:
        self.told += lines

    def worker_client(self, worker: WorkerProcess, client: str, count: int) -> None:
        self.told.append((client, count))

    def worker_ended(self, worker: WorkerProcess, cause: str) -> None:
        self.told.append(cause)


class Pipes:
    """The parent's ends."""

    pid: int | None = 4711

    def __init__(self) -> None:
        self.written: list[tuple[int, bytes]] = []

    def pauseProducing(self) -> None:
        self.written.append((-1, b"pause"))

    def resumeProducing(self) -> None:
        self.written.append((-1, b"resume"))

    def writeToChild(self, descriptor: int, data: bytes) -> None:
        self.written.append((descriptor, data))


class ProcessTests(SynchronousTestCase):
    """What a worker says, and how it ended."""

    def setUp(self) -> None:
        self.owner = Owner()
        self.pipes = Pipes()
        self.clock = Clock()
        self.worker = WorkerProcess(self.clock, 2, b"orders", self.owner, 0.5)
        self.logged: list[str] = []

        def observe(event: LogEvent) -> None:
            if event.get("log_namespace") == "mtlstunnel":
                self.logged.append(f"{event['log_level'].name} {formatEvent(event)}")

        globalLogPublisher.addObserver(observe)
        self.addCleanup(globalLogPublisher.removeObserver, observe)
        self.worker.makeConnection(self.pipes)

    def hear(self, *lines: bytes) -> None:
        self.worker.childDataReceived(TELLS, b"".join(lines))

    def test_orders_come_first(self) -> None:
        self.worker.tell("drain")
        self.assertEqual(self.pipes.written, [(0, b"\0" * 7 + b"\x06orders"), (0, b"drain null\n")])

    def test_what_it_tells_is_heard(self) -> None:
        report = Report.of(situation(counted(*EVENTS)))
        self.hear(
            line_of("ready", "c0ffee"),
            b'{"event": "probe"}\n',
            line_of("client", ["key", 2]),
            line_of("report", report.as_plain()),
            line_of("log", ["warn", "late\nCRL {x}"]),
        )
        self.assertEqual(self.owner.told, ["ready", '{"event": "probe"}', ("key", 2)])
        self.assertEqual((self.worker.is_ready, self.worker.id_prefix), (True, "c0ffee"))
        self.assertEqual((self.worker.report, self.worker.clients), (report, {"key": 2}))
        self.assertEqual(self.logged, ["warn worker 2: late\nCRL {x}"])
        self.hear(line_of("client", ["key", 0]))
        self.assertEqual(self.worker.clients, {})

    def test_one_that_has_told_all_is_let_alone_for_a_while(self) -> None:
        self.pipes.written.clear()
        self.hear(b"log [" + b" " * 8000)
        self.assertEqual(self.pipes.written, [])
        self.hear(b'"info", "x"]\n')
        self.assertEqual(self.pipes.written, [(-1, b"pause")])
        self.clock.advance(0.5)
        self.assertEqual(self.pipes.written, [(-1, b"pause"), (-1, b"resume")])

    def test_what_cannot_be_understood_is_logged_and_forgotten(self) -> None:
        for line in (b"what 1\n", b"report {}\n", b'log ["loud", "x"]\n', b"client 7\n", b"\0\n"):
            self.hear(line)
            self.assertEqual(
                self.logged.pop(), "error worker 2 (pid 4711): what it tells cannot be understood"
            )
        self.assertEqual((self.owner.told, self.logged), ([], []))

    def test_what_a_dying_interpreter_says_is_logged_line_by_line(self) -> None:
        self.worker.childDataReceived(2, b"Fatal Python\x1b error\nno ")
        self.worker.childDataReceived(2, b"memory")
        self.worker.processEnded(Failure(ProcessTerminated(None, signal.SIGABRT, 134)))
        self.assertEqual(
            self.logged,
            [
                "error worker 2 (pid 4711): Fatal Python\\x1b error",
                "error worker 2 (pid 4711): no memory",
            ],
        )

    def test_why_it_ended(self) -> None:
        for ended, cause, is_clean in (
            (ProcessDone(0), "exited with status 0", True),
            (ProcessTerminated(1, None, 256), "exited with status 1", False),
            (ProcessTerminated(None, signal.SIGKILL, 9), "was ended by SIGKILL", False),
            (ProcessTerminated(None, 77, 77), "was ended by signal 77", False),
        ):
            self.worker.is_ready = True
            self.worker.processEnded(Failure(ended))
            self.assertEqual(self.owner.told.pop(), cause)
            self.assertEqual((self.worker.is_clean, self.worker.is_ready), (is_clean, False))
        self.worker.processEnded(Failure(ProcessTerminated(None, signal.SIGKILL, 9)))
        self.assertTrue(self.worker.is_clean, "it had not begun")

    def test_an_event_that_was_cut_off_counts_as_lost_and_is_not_told(self) -> None:
        self.hear(b'{"event": "probe"}\n{"event": "pro')
        self.worker.processEnded(Failure(ProcessTerminated(None, signal.SIGKILL, 9)))
        self.assertEqual(self.worker.report.lost_lines, 1)
        self.assertEqual(self.owner.told, ['{"event": "probe"}', "was ended by SIGKILL"])
