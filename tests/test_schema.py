"""The schema of events: valid itself, whole, and with an eye for what is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import jsonschema
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.reasons import Reason
from tests import der, pki
from tests.schema import EVENTS, SCHEMA, problems
from tests.service import test_audit

REFERENCE = (Path(__file__).resolve().parent.parent / "docs" / "reference.md").read_text("utf-8")


def examples() -> Iterator[dict[str, Any]]:
    """A line of each event."""
    for make in (
        test_audit.probe,
        test_audit.refused,
        test_audit.accepted,
        test_audit.closed,
        test_audit.lost,
        test_audit.reloaded,
    ):
        yield test_audit.fields(make())


class SchemaTests(SynchronousTestCase):
    """docs/audit.schema.json"""

    def test_it_is_a_schema(self) -> None:
        jsonschema.Draft202012Validator.check_schema(SCHEMA)

    def test_it_has_every_event_and_no_other(self) -> None:
        known = {one["$ref"].rpartition("/")[2] for one in SCHEMA["oneOf"]}
        self.assertEqual(known, {kind.name for kind in EVENTS})
        self.assertEqual(known, {one["event"] for one in examples()})

    def test_it_has_every_reason(self) -> None:
        self.assertEqual(SCHEMA["$defs"]["reason"]["enum"], [reason.value for reason in Reason])

    def test_each_example_is_valid_and_is_one_event_only(self) -> None:
        whole = jsonschema.Draft202012Validator(SCHEMA)
        for fields in examples():
            self.assertEqual(problems(fields), [], fields)
            whole.validate(fields)

    def test_what_is_cut_from_a_long_certificate_is_valid(self) -> None:
        leaf = pki.authority().issue("alice", san=[f"{number}.example" for number in range(40)])
        serial = der.tlv(der.INTEGER, b"\x7f" * 1000)
        odd = der.signed(leaf.certificate, pki.key_for("x"), serial=serial)
        who = identity_of_der(odd)
        self.assertEqual(who.san[-1], "[... 8 more]")
        for told in (test_audit.refused(), test_audit.accepted()):
            fields = test_audit.fields(attrs.evolve(told, client=who))
            self.assertEqual(problems(fields), [])

    def test_every_field_is_always_there_and_no_other(self) -> None:
        for fields in examples():
            for name in fields:
                less = {key: value for key, value in fields.items() if key != name}
                self.assertNotEqual(problems(less), [], name)
            self.assertNotEqual(problems({**fields, "more": 1}), [])

    def test_wrong_values_are_seen(self) -> None:
        lines = {one["event"]: one for one in examples()}
        for name, wrong in (
            ("refused", {"reason": "because"}),
            ("refused", {"alert": 300}),
            ("refused", {"client": {}}),
            ("accepted", {"ts": "yesterday"}),
            ("accepted", {"ca": "c0ffee"}),
            ("closed", {"bytes_in": -1}),
            ("closed", {"end": {"client": "fin", "upstream": "bored"}}),
            ("closed", {"event": "ended"}),
            ("lost", {"lines": 0}),
        ):
            self.assertNotEqual(problems({**lines[name], **wrong}), [], wrong)

    def test_an_event_that_is_not_as_it_says_cannot_be_made_in_a_test(self) -> None:
        with self.assertRaises(AssertionError):
            test_audit.LinesLost(lines=0, since=test_audit.AT, detail="none")

    def test_the_reference_names_every_field_of_every_event(self) -> None:
        table = REFERENCE[REFERENCE.index("## Events") : REFERENCE.index("### Reasons")]
        told = set(re.findall(r"`(\w+)`", table))
        named: set[str] = set()

        def walk(part: Any) -> None:
            if isinstance(part, dict):
                named.update(part.get("properties", {}))
                for one in part.values():
                    walk(one)

        walk(SCHEMA)
        self.assertEqual(named - told, set(), json.dumps(sorted(named)))
