"""One generation of trust of a tunnel: everything that was read from files to judge clients by."""

from __future__ import annotations

import os

import attrs

from mtlstunnel.service.metrics import Dates
from mtlstunnel.service.selfmade import default_state_dir, pin_advice, selfmade_credentials
from mtlstunnel.settings import TunnelSettings
from mtlstunnel.tls.context import DoorContext, utc_now
from mtlstunnel.tls.credentials import Credentials, load_credentials
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.identity import display_name
from mtlstunnel.trust.policy import load_trust
from mtlstunnel.trust.strategy import loud_notes


@attrs.frozen
class Generation:
    """
    What clients are judged by until the next one.

    :ivar context: judges them
    :ivar cas: the CAs of the bundle and their dates
    :ivar crls: the newest CRLs and their dates
    :ivar notes: finished lines for the log
    """

    context: DoorContext
    cas: tuple[Dates, ...]
    crls: tuple[Dates, ...]
    notes: tuple[str, ...]

    @property
    def number(self) -> int:
        """Counted from 1."""
        return self.context.generation

    def cas_beside(self, other: Generation) -> tuple[str, ...]:
        """The names of the CAs that are in this one and not in the other."""
        known = {ca.key for ca in other.cas}
        return tuple(ca.name for ca in self.cas if ca.key not in known)


def load_generation(settings: TunnelSettings, number: int) -> Generation:
    """
    Read all the files that the settings name.

    :raises MtlstunnelError: one of them cannot be used
    """
    trust = load_trust(settings, utc_now())
    credentials, notes = _credentials(settings)
    context = DoorContext(
        bundle=trust.bundle,
        credentials=credentials,
        min_version=settings.min_version,
        max_version=settings.max_version,
        alert=settings.alert,
        policy=trust.policy,
        verify=settings.verify,
        resumption=settings.resumption,
        alpn=settings.application_protocols,
        generation=number,
    )
    return Generation(
        context,
        tuple(map(_dates_of, trust.bundle.anchors)),
        tuple(
            Dates(crl.name, "", crl.this_update, crl.next_update)
            for crl in trust.policy.revocation.newest()
        ),
        (*loud_notes(settings.verify), *trust.notes, *notes),
    )


def _credentials(settings: TunnelSettings) -> tuple[Credentials, tuple[str, ...]]:
    if settings.cert is not None:
        credentials = load_credentials(settings.cert, settings.key, utc_now())
        return credentials, credentials.warnings
    state_dir = settings.state_dir or default_state_dir(os.environ)
    credentials, path = selfmade_credentials(state_dir, settings.domains, utc_now())
    return credentials, pin_advice(credentials, path)


def _dates_of(anchor: Anchor) -> Dates:
    # CAs may have the same name, and the whole digest is more than a graph has room for.
    name = f"{display_name(anchor.certificate)} ({anchor.sha256[:8]})"
    certificate = anchor.certificate
    return Dates(
        name, anchor.sha256, certificate.not_valid_before_utc, certificate.not_valid_after_utc
    )
