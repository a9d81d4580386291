"""The CRLs that a person gives: reading files and directories, and refusing what cannot be used."""

from __future__ import annotations

import codecs
import datetime
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import attrs
from cryptography import x509
from cryptography.hazmat.primitives.serialization import load_der_private_key

from mtlstunnel.errors import CrlError
from mtlstunnel.settings import REFUSE_EXPIRED, CrlCheck, CrlExpired
from mtlstunnel.trust.bundle import Anchor
from mtlstunnel.trust.crl import Crl, UnfitCrl, may_sign_crls, read_crl
from mtlstunnel.trust.files import Wanted, read_files
from mtlstunnel.trust.identity import display_name, quietly, spki_sha256
from mtlstunnel.trust.names import NameKey, name_key
from mtlstunnel.trust.pem import CERTIFICATE_LABELS, Block, blocks, shown_path

_WANTED = Wanted(
    suffixes=(".pem", ".crl", ".der"),
    give="give a PEM or DER file with CRLs",
    put="put the CRLs there as PEM or DER files",
)
_LABEL = b"X509 CRL"
_PKCS7_LABELS = frozenset({b"PKCS7", b"CMS", b"PKCS #7 SIGNED DATA"})
_MOST_NAMED = 3


@attrs.frozen
class LoadedCrls:
    """
    What was found in the files.

    :ivar crls: each once, in the order of the files
    :ivar notes: finished lines about what works, but perhaps not as it was meant
    """

    crls: tuple[Crl, ...]
    notes: tuple[str, ...] = ()


def _crl(der: bytes, where: str) -> Crl | str:
    try:
        return read_crl(der, where)
    except UnfitCrl as unfit:
        return f"{where}, {unfit.issuer}): {unfit}" if unfit.issuer else f"{where}): {unfit}"


def _is_der(data: bytes) -> bool:
    # SEQUENCE and a length of several octets: no text begins so, and every CRL does.
    return data[:1] == b"\x30" and data[1:2] >= b"\x80"


def _declared_size(data: bytes) -> int:
    octets = data[1] & 0x7F
    return 2 + octets + int.from_bytes(data[2 : 2 + octets], "big") if octets <= 8 else 0


def _is_private_key(der: bytes) -> bool:
    try:
        load_der_private_key(der, None)
    except TypeError:
        return True  # It is encrypted.
    except Exception:
        return False
    return True


def _not_a_crl(where: str, der: bytes) -> str | None:
    """The line where it is something else; None where it is not known what."""
    try:
        name = display_name(x509.load_der_x509_certificate(der))
    except Exception:
        return None
    return (
        f"{where}, {name}): a CRL is wanted here; "
        "give the CRL that this CA issues, and CAs with --cas"
    )


def _parse_der(path: Path, data: bytes) -> Crl | str:
    shown = shown_path(path)
    where = f"{shown}: CRL 1 (DER"
    size = _declared_size(data)
    if size > len(data):
        return f"{where}): is cut off: {len(data)} of its {size} bytes are there; get it again"
    found = _crl(data, where)
    if isinstance(found, Crl):
        return found
    if _is_private_key(data):
        return (
            f"{shown}: is a private key (DER); a CRL is not secret: give the CRL, and replace "
            "the key if others could read this file"
        )
    return _not_a_crl(f"{shown}: certificate (DER", data) or found


def _parse_pem(path: Path, data: bytes) -> Iterator[Crl | str]:
    shown = shown_path(path)
    number = others = 0
    for block in blocks(data):
        if block.is_private_key:
            others += 1
            yield (
                f"{shown}: a private key in line {block.line}; a CRL file is not secret: "
                "take the key out of it, and replace the key if others could read this file"
            )
        elif block.label in CERTIFICATE_LABELS:
            others += 1
            yield _certificate_block(shown, block)
        elif block.label in _PKCS7_LABELS:
            others += 1
            yield (
                f"{shown}: PKCS #7 in line {block.line}; write its CRLs plainly "
                "with: openssl pkcs7 -print_certs -in FILE"
            )
        elif block.label == _LABEL:
            number += 1
            yield _crl_block(f"{shown}: CRL {number} (line {block.line}", block)
    if not number and not others:
        yield _file_without_crl(shown, data)


def _certificate_block(shown: str, block: Block) -> str:
    where = f"{shown}: certificate (line {block.line}"
    try:
        found = _not_a_crl(where, block.der())
    except ValueError:
        found = None
    return found or f"{where}): a CRL is wanted here; give CRLs, and CAs with --cas"


def _crl_block(where: str, block: Block) -> Crl | str:
    if block.fault:
        return f"{where}): {block.fault}; paste the whole CRL again"
    try:
        der = block.der()
    except ValueError as error:
        return f"{where}): is not a CRL that can be read ({error}); paste the whole CRL again"
    return _crl(der, where)


def _file_without_crl(shown: str, data: bytes) -> str:
    if not data.strip():
        return f"{shown}: the file is empty; put a CRL there, as PEM or DER"
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return f"{shown}: is UTF-16, not PEM; save it as plain ASCII, or give the CRL as DER"
    return f"{shown}: no CRL in it; give it as PEM (-----BEGIN X509 CRL-----) or DER"


def _forged(crl: Crl, cas: Sequence[Anchor]) -> str | None:
    """What is wrong with a CRL of a CA that is in the bundle; None where nothing is."""
    names = f"{crl.issuer} ({' or '.join(f'{anchor.where})' for anchor in cas[:_MOST_NAMED])})"
    signers = [
        anchor
        for anchor in cas
        if crl.is_signed_by(anchor.certificate.public_key(), spki_sha256(anchor.certificate))
    ]
    if not signers:
        return (
            f"{crl.title}: its signature does not verify with the key of {names}; "
            "get it again from that CA, or, if the CA has a new key, give its new certificate "
            "with --cas, too"
        )
    if not any(may_sign_crls(anchor.certificate) for anchor in signers):
        return (
            f"{crl.title}: the keyUsage of {names} lacks cRLSign, so that CA may not sign CRLs "
            "(RFC 5280, 4.2.1.3); renew the CA with keyUsage=critical,keyCertSign,cRLSign, "
            "or leave the CRL out"
        )
    return None


def _notes(crl: Crl, is_of_an_anchor: bool, at: datetime.datetime) -> Iterator[str]:
    if not is_of_an_anchor:
        yield (
            f"{crl.title}: is of no CA in the bundle, so it serves for an intermediate of that "
            "name only; leave it out if there is none"
        )
    if crl.this_update > at:
        yield (
            f"{crl.title}: is not valid before {crl.this_update}, so it is not used until then; "
            "check the clock"
        )
    if crl.next_update is None:
        yield (
            f"{crl.title}: does not say when the next one is due (nextUpdate), so it counts for "
            "ever; see to it that new ones arrive"
        )


def _late(crls: Sequence[Crl], at: datetime.datetime, expired: CrlExpired) -> Iterator[str]:
    """What becomes of the clients of each CA whose CRL is late."""
    for crl in crls:
        due = crl.next_update
        if due is None or not crl.is_expired(at):
            continue
        newer = [one for one in crls if one.name == crl.name and one.this_update > crl.this_update]
        if newer:
            yield f"{crl.title}: is late, and a newer one is there ({newer[0].title}); remove it"
        elif (at - due).total_seconds() > expired.grace:
            yield (
                f"{crl.title}: the next one was due at {due}, so every client of that CA is "
                f"refused as crl_expired (--crl-expired {expired}); get the new one from the CA"
            )
        elif (until := _after(due, expired.grace)) is None:
            yield (
                f"{crl.title}: the next one was due at {due}; the clients of that CA come in by "
                f"this one without limit (--crl-expired {expired}); get the new one from the CA"
            )
        else:
            yield (
                f"{crl.title}: the next one was due at {due}; the clients of that CA come in by "
                f"this one until {until} (--crl-expired {expired}) and are "
                "refused as crl_expired from then on; get the new one from the CA"
            )


def _after(moment: datetime.datetime, seconds: float) -> datetime.datetime | None:
    """None where that is beyond all times."""
    try:
        return moment + datetime.timedelta(seconds=seconds)
    except OverflowError:
        return None


def _unchecked(
    anchors: Sequence[Anchor], with_crl: frozenset[NameKey], check: CrlCheck
) -> Iterator[str]:
    names = [
        display_name(anchor.certificate)
        for anchor in anchors
        if name_key(anchor.certificate.subject) not in with_crl
    ]
    if names:
        more = len(names) - _MOST_NAMED
        which = ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
        if check is CrlCheck.CHAIN:
            yield (
                f"no CRL for {which}: clients whom these CAs signed themselves are not checked for "
                "revocation, and those by way of an intermediate that has a CRL are refused as "
                "crl_missing (--crl-check chain); give theirs with --crl, too"
            )
        else:
            yield (
                f"no CRL for {which}: clients of these CAs are not checked for revocation, unless "
                "by way of an intermediate that has a CRL; give theirs with --crl, too"
            )


@quietly
def load_crls(
    paths: Iterable[Path],
    anchors: Sequence[Anchor],
    at: datetime.datetime,
    *,
    check: CrlCheck = CrlCheck.LEAF,
    expired: CrlExpired = REFUSE_EXPIRED,
) -> LoadedCrls:
    """
    Read the CRLs in PEM and DER files and in the ``*.pem``, ``*.crl`` and ``*.der`` of directories.

    The signature of a CRL of a CA in the bundle is verified here, that of others when a path first
    has their CA.

    :param at: the present, with its time zone
    :param check: for which certificates a CRL will be asked for, to tell what comes of it
    :param expired: what becomes of clients whose CRL is late, the same
    :raises CrlError: a file or a part of it cannot be used; every problem is in it
    """
    problems: list[str] = []
    notes: list[str] = []
    crls: dict[str, Crl] = {}
    by_name: dict[NameKey, list[Anchor]] = {}
    for file in read_files(paths, _WANTED):
        if isinstance(file, str):
            problems.append(file)
            continue
        if not by_name:
            for anchor in anchors:
                by_name.setdefault(name_key(anchor.certificate.subject), []).append(anchor)
        path, data = file
        for crl in [_parse_der(path, data)] if _is_der(data) else _parse_pem(path, data):
            if isinstance(crl, str):
                problems.append(crl)
                continue
            if crl.sha256 in crls:
                first = crls[crl.sha256].where
                notes.append(f"{crl.title}: is the same as {first}); kept once, remove one")
                continue
            cas = by_name.get(crl.issuer_key, [])
            fault = _forged(crl, cas) if cas else None
            if fault is not None:
                problems.append(fault)
                continue
            crls[crl.sha256] = crl
            notes.extend(_notes(crl, bool(cas), at))
    if problems:
        raise CrlError(problems)
    if crls:
        with_crl = frozenset(crl.issuer_key for crl in crls.values())
        notes.extend(_late(tuple(crls.values()), at, expired))
        notes.extend(_unchecked(anchors, with_crl, check))
    return LoadedCrls(tuple(crls.values()), tuple(notes))
