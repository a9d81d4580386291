"""What is shipped for those who run it: it must go with the options there are."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import SkipTest

from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.commands.tunnel import Options

UNIT = Path(__file__).resolve().parent.parent / "deploy" / "mtlstunnel.service"


class TheUnit(SynchronousTestCase):
    """deploy/mtlstunnel.service"""

    def setting(self, name: str) -> str:
        """The value of one, with continued lines as one."""
        text = UNIT.read_text("utf-8").replace("\\\n", " ")
        (value,) = [line.partition("=")[2] for line in text.splitlines() if line.startswith(name)]
        return value

    def test_its_command_is_understood(self) -> None:
        command = shlex.split(self.setting("ExecStart="))
        options = Options()
        options.parseOptions(command[command.index("mtlstunnel") + 1 :])
        settings = options.settings()
        self.assertEqual(settings.upstream.port, 5432)  # type: ignore[union-attr]
        self.assertGreater(int(self.setting("TimeoutStopSec=")), settings.limits.drain)
        self.assertIn("-HUP", self.setting("ExecReload="))

    def test_it_waits_for_what_is_told(self) -> None:
        # A process in the background would be another than the one that systemd listens to.
        self.assertIn("-n", shlex.split(self.setting("ExecStart=")))
        self.assertEqual(self.setting("Type="), "notify")
        self.assertGreater(int(self.setting("WatchdogSec=")), 0)
        self.assertIn("AF_UNIX", self.setting("RestrictAddressFamilies="))

    def test_systemd_has_nothing_against_it(self) -> None:
        program = shutil.which("systemd-analyze")
        if program is None:
            raise SkipTest("systemd-analyze is not installed")
        # It also minds that the program is not there, which on this machine it need not be.
        said = subprocess.run(
            [program, "verify", str(UNIT)], capture_output=True, text=True, check=False
        ).stderr
        faults = [line for line in said.splitlines() if "mtlstunnel.service:" in line]
        self.assertEqual([one for one in faults if "is not executable" not in one], [])
