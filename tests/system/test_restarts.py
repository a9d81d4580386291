"""A container's restart: the first process of a PID namespace is killed and starts again."""

from __future__ import annotations

import os
import subprocess
import sys

from tests import pki
from tests.system.harness import AUTHORITY, CHECKOUT, PATIENCE, SystemTestCase, Tunnel, needs, run

NAMESPACE = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")

WITH_PID_FILE = (
    sys.executable,
    "-c",
    "import sys; sys.argv.remove('--pidfile='); from twisted.scripts.twistd import run; run()",
)


class RestartTests(SystemTestCase):
    """twistd is process 1, and all that it leaves behind names process 1."""

    def setUp(self) -> None:
        super().setUp()
        needs("unshare")
        try:
            works = subprocess.run([*NAMESPACE, "true"], capture_output=True, check=False)
        except OSError as error:
            self.give_up(str(error))
        if works.returncode:
            self.give_up("no PID namespace can be made here")
        cert, key = pki.server().write(self.directory, "server")
        ca = AUTHORITY.write(self.directory, "ca")
        self.options = [
            *("--port", f"unix:{self.directory}/port", "--admin", f"unix:{self.directory}/admin"),
            *("--cas", str(ca), "--cert", str(cert), "--key", str(key)),
        ]

    def run_and_kill(self, workers: int) -> None:
        options = [*self.options, "--workers", str(workers)]
        program = (*NAMESPACE, *WITH_PID_FILE)
        tunnel = Tunnel(self.directory, options, program=program)
        try:
            tunnel.wait_for_log("health and metrics on unix:")
            tunnel.listeners(1)
            for name in ("port", "admin"):
                self.assertEqual(os.readlink(self.directory / f"{name}.lock"), "1")
            self.assertEqual((self.directory / "twistd.pid").read_text(), "1")
        finally:
            # The namespace, and all that is in it, ends with SIGKILL.
            tunnel.process.kill()
            tunnel.process.wait(PATIENCE)
            for reader in tunnel._readers:
                reader.join(PATIENCE)
            for stream in (tunnel.process.stdout, tunnel.process.stderr):
                assert stream is not None
                stream.close()
        self.assertTrue((self.directory / "twistd.pid").exists())

    def test_process_1_starts_again_after_it_was_killed(self) -> None:
        for workers in (1, 1, 2, 2):
            self.run_and_kill(workers)

    def test_process_1_does_not_take_the_socket_of_another_container(self) -> None:
        for workers in (1, 2):
            tunnel = self.start(
                *self.options[4:], "--workers", str(workers), port=[f"unix:{self.directory}/port"]
            )
            (self.directory / "port.lock").unlink()
            (self.directory / "port.lock").symlink_to("1")
            finished = run(
                *(*NAMESPACE, *WITH_PID_FILE, "-n", "--pidfile=", "mtlstunnel", *self.options),
                environment={"PYTHONPATH": str(CHECKOUT)},
                cwd=self.directory,
            )
            self.assertEqual(finished.status, 1, finished)
            self.assertRegex(
                finished.err,
                r"(?m)^mtlstunnel: --port unix:\S+: cannot listen: a process listens there; "
                r"\S+/port\.lock names process 1; stop ",
            )
            (self.directory / "port.lock").unlink()
            (self.directory / "port.lock").symlink_to(str(tunnel.process.pid))
            self.stop(tunnel)
