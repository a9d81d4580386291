"""The tests.  No event can be made in them that is not as docs/audit.schema.json says."""

from tests.schema import hold_every_event

hold_every_event()
