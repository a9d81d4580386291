"""What to do where a chain breaks: for each way in which a CA of the bundle is not reached."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType

from mtlstunnel.advice.explanation import BreakKind, Objection
from mtlstunnel.advice.steps import NEW_KEY, SIGN_FOR_CLIENTS, Case, Step, Who, look, request


def unknown_ca(objection: Objection, case: Case) -> tuple[Step, ...]:
    """Where no CA of the bundle stands behind the client."""
    kind = BreakKind.STRANGER if case.broken is None else case.broken.kind
    return _UNKNOWN_CA_BY_KIND.get(kind, _stranger)(objection, case)


def _get_one_from_a_ca(case: Case) -> Step:
    return Step(
        Who.CLIENT,
        "Get a certificate from a CA of the bundle: send a request to those who run it. "
        "The key you have can stay.",
        (request(case),),
    )


def _self_signed(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        _get_one_from_a_ca(case),
        Step(Who.CA, "Sign the request.", SIGN_FOR_CLIENTS),
    )


def _add_the_ca(case: Case, what: str) -> Step:
    return Step(
        Who.OPERATOR,
        f"If clients of this CA should come in, append {what} to the bundle. Everyone whom that CA "
        "ever certifies then comes in, unless --allow rules say otherwise: never do this with a "
        "CA of the web.",
        (f"cat other-ca.pem >> {case.cas}", f"mtlstunnel check --cas {case.cas} {case.client}"),
    )


def _other_root(_: Objection, case: Case) -> tuple[Step, ...]:
    return (_add_the_ca(case, "its root"), _get_one_from_a_ca(case))


def _stranger(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        _get_one_from_a_ca(case),
        _add_the_ca(case, "the issuer's certificate"),
        Step(
            Who.CLIENT,
            "If the CA does belong to the bundle, an intermediate between the two is missing: "
            "append it to the file the client uses.",
            (*_fetch(case), f"cat intermediate.pem >> {case.client}"),
        ),
    )


def _fetch(case: Case) -> tuple[str, ...]:
    """How to get the issuer's certificate, where the client's own says so."""
    address = None if case.broken is None else case.broken.address
    if address is None:
        return ()
    return (
        f"curl -o intermediate.cer {shlex.quote(address)}",
        "openssl x509 -in intermediate.cer -out intermediate.pem",
    )


def _missing(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "Append the intermediate to the file the client uses; its own certificate stays first.",
            (*_fetch(case), f"cat intermediate.pem >> {case.client}"),
        ),
        Step(
            Who.OPERATOR,
            "Or put the intermediate in the bundle: it is an anchor by itself there, and clients "
            "need not send it.",
            (f"cat intermediate.pem >> {case.cas}",),
        ),
    )


def _namesake(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "If the CA was given a new key, put both of its certificates in the bundle, the old "
            "and the new, until no client of the old one is left.",
            (f"cat other-ca.pem >> {case.cas}", f"mtlstunnel check --cas {case.cas}"),
        ),
        Step(
            Who.CLIENT,
            "Or get a new certificate from the CA that is in the bundle.",
            (request(case),),
        ),
    )


def _damaged(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "If the certificate is damaged, get it from the CA again: what it signed is not what "
            "is in the file. If it came from there like this, have it issued anew.",
            (f"openssl verify -partial_chain -CAfile {case.cas} {case.client}",),
        ),
    )


def _renamed(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Put the CA's certificate with its earlier name back into the bundle beside the new "
            "one.",
            (f"cat old-ca.pem >> {case.cas}",),
        ),
        Step(
            Who.CLIENT,
            "Or get a new certificate, which will bear the CA's present name.",
            (request(case),),
        ),
    )


def _unfit(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "Get a new certificate from the CA as it is now.",
            (request(case), look(case, "-ext authorityKeyIdentifier")),
        ),
        Step(
            Who.OPERATOR,
            "Or put the CA's earlier certificate, which this one asks for, in the bundle.",
            (f"cat old-ca.pem >> {case.cas}",),
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
            (look(case, "-pubkey"), f"openssl pkey -in {case.key} -pubout"),
        ),
        Step(
            Who.CLIENT,
            "If that key is lost, get a new certificate for a new one.",
            (NEW_KEY, request(case, "client.key")),
        ),
    )
