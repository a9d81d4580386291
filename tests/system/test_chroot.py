"""twistd's ``--chroot``: what is missing is one line; with all in place it serves and reloads."""

from __future__ import annotations

import os
import shutil
import signal
import stat
from pathlib import Path

from tests import pki
from tests.system.harness import (
    AUTHORITY,
    CHECKOUT,
    GREETING,
    TWISTD,
    Finished,
    SystemTestCase,
    TLSClient,
    Tunnel,
    run,
)


class ChrootTests(SystemTestCase):
    """A directory that has what the reference says, and one for each thing that it lacks."""

    def setUp(self) -> None:
        super().setUp()
        self.program = TWISTD
        if os.geteuid() != 0:
            # An account of its own name space is root in there.
            if shutil.which("unshare") is None or run("unshare", "-r", "true").status:
                self.give_up("this account may not change its root")
            self.program = ("unshare", "-r", *TWISTD)
        self.jail = self.directory / "jail"
        self.files = [AUTHORITY.write(self.directory, "ca")]
        self.files += pki.server().write(self.directory, "server")
        (self.jail / "etc").mkdir(parents=True)
        (self.jail / "dev").mkdir()
        self.device()
        for file in self.files:
            inside = Path(f"{self.jail}{file}")
            inside.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, inside)
        (self.jail / "etc/hosts").write_text("127.0.0.1 upstream.example localhost\n")
        (self.jail / "etc/nsswitch.conf").write_text("hosts: files\n")

    def device(self) -> None:
        null = self.jail / "dev/null"
        if os.geteuid() == 0:
            os.mknod(null, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        else:
            null.touch()

    def options(self) -> tuple[str, ...]:
        ca, cert, key = map(str, self.files)
        return ("--cas", ca, "--cert", cert, "--key", key)

    def attempt(self, *options: str | Path, before: tuple[str | Path, ...] = ()) -> Finished:
        return run(
            *(*self.program, "-n", "--pidfile=", "--chroot", self.jail, *before, "mtlstunnel"),
            *("--port", "127.0.0.1:0", *self.options(), *options),
            environment={"PYTHONPATH": str(CHECKOUT)},
            cwd=self.directory,
        )

    def test_it_serves_by_name_and_reloads_from_inside(self) -> None:
        upstream = self.serve()
        tunnel = Tunnel(
            self.directory,
            ("--port", "127.0.0.1:0", *self.options())
            + ("--upstream", f"upstream.example:{upstream.port}", "--admin", "0"),
            program=(*self.program, "--chroot", str(self.jail)),
        )
        self.addCleanup(self.stop, tunnel)
        good = self.pair(pki.client(), "good")
        for number in (1, 2):
            client = TLSClient(tunnel.address, good)
            self.addCleanup(client.close)
            client.handshake()
            self.assertEqual(client.receive_all(), GREETING)
            if number == 1:
                # The files that it was started with are of no interest any more.
                for file in self.files:
                    file.unlink()
                tunnel.process.send_signal(signal.SIGHUP)
                tunnel.wait_for("reload", success=True)

    def test_what_is_missing_is_one_line_each(self) -> None:
        ca, jail = self.files[0], self.jail
        for inside, why in (
            (jail / "dev/null", "is opened at the start; make it: mknod"),
            (Path(f"{jail}{ca}"), "SIGHUP reads --cas there; copy it there"),
            (Path(f"{jail}{self.files[1]}"), "SIGHUP reads --cert there; copy it there"),
        ):
            kept = inside.with_name("kept")
            inside.rename(kept)
            finished = self.attempt()
            self.assertEqual((finished.status, finished.out), (1, b""), finished)
            self.assertEqual(finished.err.count("\n"), 1, finished)
            self.assertIn(f"--chroot {jail}: {inside} is missing, and {why}", finished.err)
            kept.rename(inside)
        (jail / "etc/hosts").unlink()
        for options, said in (
            (("--upstream", "db.example:5432"), "the name of --upstream db.example:5432 is looked"),
            (("--upstream", "unix:/run/db.sock"), f"{jail}/run is missing, and the socket of --up"),
            (("--audit-log", self.directory / "audit.log"), "is opened again as"),
            (("--workers", "2"), "which each worker starts; leave out --workers, or --chroot"),
        ):
            finished = self.attempt(*options)
            self.assertEqual((finished.status, finished.out), (1, b""), finished)
            self.assertEqual(finished.err.count("\n"), 1, finished)
            self.assertIn(said, finished.err)
        shutil.rmtree(jail)
        self.assertIn("there is no such directory; make it\n", self.attempt().err)
