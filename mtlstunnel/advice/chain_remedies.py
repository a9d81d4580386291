"""What to do where a chain breaks: for each way in which a CA of the bundle is not reached."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.command_lines import ca_files, look
from mtlstunnel.advice.description import attempt
from mtlstunnel.advice.explanation import BreakKind, Objection
from mtlstunnel.advice.issuing import get_a_new_one, new_key_and_certificate
from mtlstunnel.advice.nearest import looks_like_an_intermediate
from mtlstunnel.advice.steps import RELOAD, Case, Step, Who, fresh


def unknown_ca(objection: Objection, case: Case) -> tuple[Step, ...]:
    """Where no CA of the bundle stands behind the client."""
    kind = BreakKind.STRANGER if case.broken is None else case.broken.kind
    return _UNKNOWN_CA_BY_KIND.get(kind, _stranger)(objection, case)


def _from_the_bundle(case: Case, text: str) -> tuple[Step, ...]:
    """A certificate of a CA that is trusted already."""
    return get_a_new_one(case, text, (ca_files(case, case.anchor), ()))


def _get_one_from_a_ca(case: Case) -> tuple[Step, ...]:
    return _from_the_bundle(
        case,
        "Get a certificate from a CA of the bundle: send a request to those who run it. "
        "The key you have can stay.",
    )


def _self_signed(_: Objection, case: Case) -> tuple[Step, ...]:
    return _get_one_from_a_ca(case)


def _add_the_ca(case: Case, what: str) -> Step:
    how = "copy" if case.is_directory else "append"
    return Step(
        Who.OPERATOR,
        f"If clients of this CA should come in, {how} {what} to the bundle. Everyone whom that CA "
        "ever certifies then comes in, unless --allow rules say otherwise: never do this with a "
        f"CA of the web. {RELOAD}",
        (case.add_ca("other-ca.pem"), case.check()),
    )


def _other_root(_: Objection, case: Case) -> tuple[Step, ...]:
    return (_add_the_ca(case, "its root"), *_get_one_from_a_ca(case))


def _stranger(_: Objection, case: Case) -> tuple[Step, ...]:
    other = (*_get_one_from_a_ca(case), _add_the_ca(case, "the issuer's certificate"))
    missing = _send_along(
        case,
        "If the CA does belong to the bundle, an intermediate between the two is missing: "
        "put it behind the certificate, in the file that the client uses.",
    )
    return (missing, *other) if _calls_itself_an_intermediate(case) else (*other, missing)


def _calls_itself_an_intermediate(case: Case) -> bool:
    top = read_certificate(case.path[-1]) if case.path else None
    return top is not None and attempt(lambda: looks_like_an_intermediate(top.issuer), False)


def _send_along(case: Case, text: str) -> Step:
    fetch, intermediate = _fetch(case)
    stem = case.new(f"{case.base}-chain")
    return Step(
        Who.CLIENT,
        f"{text} Programs send the whole of that file, but for openssl s_client, which sends what "
        "is given with -cert_chain.",
        (
            *fetch,
            f"cat {case.client} {intermediate} > {stem}.pem",
            case.check(f"{stem}.pem"),
        ),
    )


def _fetch(case: Case) -> tuple[tuple[str, ...], str]:
    """How to get the issuer's certificate, where the client's own says so, and its file."""
    address = None if case.broken is None else case.broken.address
    if address is None:
        return (), "intermediate.pem"
    stem = fresh("intermediate", case.taken)
    return (
        f"curl -o {stem}.cer {shlex.quote(address)}",
        f"openssl x509 -in {stem}.cer -out {stem}.pem",
    ), f"{stem}.pem"


def _missing(_: Objection, case: Case) -> tuple[Step, ...]:
    intermediate = _fetch(case)[1]
    return (
        _send_along(
            case,
            "Put the intermediate behind the client's own certificate, which stays first, in the "
            "file that the client uses.",
        ),
        Step(
            Who.OPERATOR,
            "Or put the intermediate in the bundle: it is an anchor by itself there, and clients "
            f"need not send it. {RELOAD}",
            (case.add_ca(intermediate), case.check()),
        ),
    )


def _namesake(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "If the CA was given a new key, put both of its certificates in the bundle, the old "
            f"and the new, until no client of the old one is left. {RELOAD}",
            (case.add_ca("other-ca.pem"), case.check()),
        ),
        *_from_the_bundle(case, "Or get a new certificate from the CA that is in the bundle."),
    )


def _damaged(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "If the certificate is damaged, get it from the CA again: what it signed is not what "
            "is in the file. If it came from there like this, have it issued anew.",
            ()
            if case.is_directory
            else (f"openssl verify -partial_chain -CAfile {case.cas[0]} {case.client}",),
        ),
    )


def _renamed(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Put the CA's certificate with its earlier name back into the bundle beside the new "
            f"one. {RELOAD}",
            (case.add_ca("old-ca.pem"), case.check()),
        ),
        *_from_the_bundle(case, "Or get a new certificate, which will bear the CA's present name."),
    )


def _unfit(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        *_from_the_bundle(case, "Get a new certificate from the CA as it is now."),
        Step(
            Who.OPERATOR,
            "Or put the CA's earlier certificate, which this one asks for, in the bundle. "
            f"{RELOAD}",
            (
                look(case.client, "-ext authorityKeyIdentifier"),
                case.add_ca("old-ca.pem"),
                case.check(),
            ),
        ),
    )


_UNKNOWN_CA_BY_KIND: Mapping[BreakKind, Callable[[Objection, Case], tuple[Step, ...]]] = (
    MappingProxyType(
        {
            BreakKind.SELF_SIGNED: _self_signed,
            BreakKind.OTHER_ROOT: _other_root,
            BreakKind.NAMESAKE: _namesake,
            BreakKind.RENAMED: _renamed,
            BreakKind.UNFIT: _unfit,
            BreakKind.MISSING: _missing,
        }
    )
)


def bad_signature(objection: Objection, case: Case) -> tuple[Step, ...]:
    """Where a signature, or the proof of the key, is not good."""
    if objection.culprit is not None:
        if case.broken is not None and case.broken.kind is BreakKind.NAMESAKE:
            return (*_namesake(objection, case), *_damaged(objection, case))
        return _damaged(objection, case)
    return (
        Step(
            Who.CLIENT,
            "Use the key that the certificate was made for. These two must print the same:",
            (look(case.client, "-pubkey"), f"openssl pkey -in {case.key} -pubout"),
        ),
        *new_key_and_certificate(case, "If that key is lost, get a new certificate for a new one."),
    )
