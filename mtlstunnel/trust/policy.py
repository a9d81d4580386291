"""What decides on a client besides its certificate and the time: from settings to values."""

from __future__ import annotations

import datetime
from collections.abc import Iterator

import attrs

from mtlstunnel.settings import VerdictSettings
from mtlstunnel.trust.bundle import Bundle, load_bundle
from mtlstunnel.trust.chain import strict_fault
from mtlstunnel.trust.crl_files import load_crls
from mtlstunnel.trust.revocation import NOTHING_REVOKED, Revocation
from mtlstunnel.trust.rules import EVERYONE, AccessRules, access_rules


@attrs.frozen(kw_only=True)
class Policy:
    """
    What a good path must also satisfy.

    :ivar rules: which of the verified clients come in
    :ivar strict: whether every certificate must keep to the whole of RFC 5280
    :ivar revocation: which certificates have been revoked
    """

    rules: AccessRules = EVERYONE
    strict: bool = False
    revocation: Revocation = NOTHING_REVOKED


EVERY_GOOD_PATH = Policy()
"""Nothing but a good path is asked for."""


@attrs.frozen(kw_only=True)
class Trust:
    """
    One generation of trust, as it was loaded.

    :ivar notes: finished lines about what works but will not for long
    """

    bundle: Bundle
    policy: Policy
    notes: tuple[str, ...] = ()


def load_trust(settings: VerdictSettings, at: datetime.datetime) -> Trust:
    """
    Read everything that decides on clients.

    :param at: the present, with its time zone
    :raises BundleError: a CA file cannot be used
    :raises CrlError: a CRL cannot be used
    :raises SettingsError: an access rule cannot be used
    """
    bundle = load_bundle(settings.cas, at)
    crls = load_crls(
        settings.crl, bundle.anchors, at, check=settings.crl_check, expired=settings.crl_expired
    )
    policy = Policy(
        rules=access_rules(settings.allow),
        strict=settings.strict,
        revocation=Revocation(
            crls=crls.crls, check=settings.crl_check, expired=settings.crl_expired
        ),
    )
    notes = (*bundle.warnings, *(_too_strict(bundle) if settings.strict else ()), *crls.notes)
    return Trust(bundle=bundle, policy=policy, notes=notes)


def _too_strict(bundle: Bundle) -> Iterator[str]:
    for anchor in bundle.anchors:
        fault = strict_fault(anchor.certificate)
        if fault is not None:
            yield (
                f"{anchor.title}: {fault}, so with --strict every client of it is refused as "
                "malformed; issue it anew, with its own key and name (mtlstunnel check says how), "
                "or leave --strict out"
            )
