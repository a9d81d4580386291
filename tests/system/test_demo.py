"""The demo, with the very lines it prints."""

from __future__ import annotations

import itertools
import re
import stat

from mtlstunnel.commands.tunnel import demo_places
from mtlstunnel.places import Address, EndpointString
from tests.system.harness import CHECKOUT, TWISTD, SystemTestCase, needs, run


class DemoTests(SystemTestCase):
    """What a person who pastes the lines of ``--demo`` gets."""

    def test_each_printed_line_does_what_is_printed_below_it(self) -> None:
        needs("curl", "sh")
        tunnel = self.start("--demo")
        tunnel.wait_for_log("Ctrl-C ends the demo")
        printed = list(tunnel.log)
        pasted = {}
        for line, below in itertools.pairwise(printed):
            if line.strip().startswith("curl "):
                pasted[line.strip()] = below
        self.assertEqual(len(pasted), 4, printed)
        refused = 0
        for line, outcome in pasted.items():
            finished = run("sh", "-c", line, cwd=self.directory)
            if "refused" in outcome:
                refused += 1
                self.assertNotEqual(finished.status, 0, line)
                self.assertEqual(finished.out, b"", line)
                alert = int(re.findall(r"alert (\d+)", outcome)[0])
                self.assertEqual(tunnel.wait_for("refused", count=refused)["alert"], alert, line)
            else:
                self.assertEqual(finished.status, 0, finished)
                self.assertIn(b"Hello!", finished.out)
        reasons = [event["reason"] for event in tunnel.events_named("refused")]
        self.assertEqual(reasons, ["unknown_ca", "expired", "no_certificate"])
        tunnel.wait_for("accepted")
        self.assertEqual(len(tunnel.events_named("accepted")), 1)

    def test_its_files_are_in_one_directory_and_its_keys_are_secret(self) -> None:
        self.start("--demo")
        folder = self.directory / "mtlstunnel-demo"
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.glob("*.key")}
        self.assertEqual(set(modes.values()), {0o600}, modes)
        self.assertTrue({"good.key", "server.key", "expired.key", "foreign.key"} <= set(modes))

    def test_a_second_one_in_the_same_place_leaves_the_first_as_it_is(self) -> None:
        first = self.start("--demo")
        good = (self.directory / "mtlstunnel-demo" / "good.pem").read_bytes()
        finished = run(
            *(*TWISTD, "-n", "--pidfile=", "mtlstunnel", "--demo", "--port"),
            f"127.0.0.1:{first.port}",
            environment={"PYTHONPATH": str(CHECKOUT)},
            cwd=self.directory,
        )
        self.assertEqual(finished.status, 1, finished)
        self.assertIn("cannot listen", finished.err)
        self.assertEqual((self.directory / "mtlstunnel-demo" / "good.pem").read_bytes(), good)

    def test_a_port_alone_is_one_of_this_machine_only(self) -> None:
        places = demo_places(
            (Address("", 9443), Address("192.0.2.1", 443), EndpointString("unix:x"))
        )
        self.assertEqual(
            [str(one) for one in places], ["127.0.0.1:9443", "192.0.2.1:443", "unix:x"]
        )
        self.assertEqual([str(one) for one in demo_places(())], ["127.0.0.1:8443"])
