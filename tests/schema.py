"""The published schema of events, and a way to hold every event that a test makes against it."""

from __future__ import annotations

import datetime
import functools
import json
import typing
from pathlib import Path
from typing import Any

import jsonschema

from mtlstunnel import events
from mtlstunnel.service.audit import json_line

PATH = Path(__file__).resolve().parent.parent / "docs" / "audit.schema.json"
SCHEMA: dict[str, Any] = json.loads(PATH.read_text("utf-8"))

EVENTS: tuple[Any, ...] = typing.get_args(events.Event)
"""The classes of events."""

_AT = datetime.datetime(2030, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)


def _closed(part: Any) -> Any:
    """The same schema, in which no object may have a field that it does not name."""
    if isinstance(part, list):
        return [_closed(one) for one in part]
    if not isinstance(part, dict):
        return part
    closed = {key: _closed(value) for key, value in part.items()}
    return {"additionalProperties": False, **closed} if "properties" in part else closed


@functools.cache
def _validator(name: str) -> Any:
    # Of the one event, which says more clearly what is wrong than "is none of these".
    one = {**_closed(SCHEMA), "$ref": f"#/$defs/{name}"}
    del one["oneOf"]
    return jsonschema.Draft202012Validator(
        one, format_checker=jsonschema.Draft202012Validator.FORMAT_CHECKER
    )


def problems(fields: dict[str, Any]) -> list[str]:
    """What is wrong with the fields of a line; a field that the schema does not name is, too."""
    name = fields.get("event")
    if {"$ref": f"#/$defs/{name}"} not in SCHEMA["oneOf"]:
        return [f"no such event: {name}"]
    return [f"{one.json_path}: {one.message}" for one in _validator(name).iter_errors(fields)]


def _held(make: Any) -> Any:
    @functools.wraps(make)
    def make_and_hold(self: Any, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)
        wrong = problems(json.loads(json_line(self, _AT)))
        assert not wrong, (self, wrong)

    return make_and_hold


def hold_every_event() -> None:
    """From now on an event that is not as the schema says cannot be made."""
    for kind in EVENTS:
        kind.__init__ = _held(kind.__init__)
