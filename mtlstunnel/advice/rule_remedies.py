"""What to do where no access rule lets in a client: the rules that would."""

from __future__ import annotations

import base64
import shlex

from cryptography.x509.oid import NameOID

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.description import attempt, name_parts
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.steps import RESTART, Case, Step, Who
from mtlstunnel.settings import AllowedNames
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.rules import access_rules, odd_string_type


def not_allowed(_: Objection, case: Case) -> tuple[Step, ...]:
    rules = tuple(_rules_for(case.own)) if case.own is not None else ()
    odd = "" if case.own is None else _odd_name(case.own)
    return (
        Step(
            Who.OPERATOR,
            (
                "If this client should come in, add a rule that fits it; any one of these does. "
                f"{RESTART}"
                if rules
                else "If this client should come in, add an --allow rule that fits it."
            )
            + odd,
            rules,
        ),
        Step(
            Who.CLIENT,
            "Otherwise get a certificate with one of the names that the rules let in; the "
            "operator knows them.",
        ),
    )


def _odd_name(der: bytes) -> str:
    """What keeps the common name from being matched, where something does."""
    certificate = read_certificate(der)
    kind = None if certificate is None else odd_string_type(certificate)
    if kind is None:
        return ""
    return (
        f" (Its common name is a {kind}, which may read like another name, so no --allow-cn ever "
        "matches it: have it issued anew with UTF8String, or go by another name or the key.)"
    )


def _rules_for(der: bytes) -> list[str]:
    """Options that would let in this certificate, the most telling first."""
    who = identity_of_der(der)
    certificate = read_certificate(der)
    found: list[tuple[str, str]] = []
    for name in who.san[:3]:
        kind, _, value = name.partition(":")
        if kind in ("dns", "uri", "email", "ip"):
            found.append((kind, value))
    if certificate is not None:
        for kind, oid in (
            ("cn", NameOID.COMMON_NAME),
            ("ou", NameOID.ORGANIZATIONAL_UNIT_NAME),
        ):
            names = name_parts(lambda: certificate.subject, oid)
            found += [(kind, name) for name in names[:1]]
    if who.spki_sha256:
        pin = base64.b64encode(bytes.fromhex(who.spki_sha256)).decode()
        found.append(("spki", f"sha256//{pin}"))
    return [
        f"--allow-{kind} {shlex.quote(value)}" for kind, value in found if _fits(kind, value, der)
    ]


def _fits(kind: str, value: str, der: bytes) -> bool:
    """Whether a rule lets in this certificate, and is safe to show."""
    rule = attempt(lambda: access_rules(AllowedNames(**{kind: (value,)})), None)
    return rule is not None and value.isprintable() and rule.allow(der)
