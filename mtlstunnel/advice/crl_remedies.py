"""What to do where a CRL refuses a client: it is revoked, or its CRL is missing or late."""

from __future__ import annotations

import shlex

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.command_lines import (
    CaFiles,
    ca_files,
    make_ca_of,
    publish_crl,
)
from mtlstunnel.advice.description import attempt, crl_address
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.issuing import (
    is_the_clients,
    new_key_and_certificate,
)
from mtlstunnel.advice.steps import RELOAD, RESTART, Case, Step, Who
from mtlstunnel.trust.crl import may_sign_crls
from mtlstunnel.trust.identity import identity_of_der


def revoked(objection: Objection, case: Case) -> tuple[Step, ...]:
    if not is_the_clients(objection):
        return (
            Step(
                Who.CA,
                "An intermediate has been withdrawn by the CA above it, and with it all that it "
                "signed: have its clients certified by another CA.",
            ),
        )
    return (
        *new_key_and_certificate(
            case,
            "The CA has withdrawn the certificate. Ask why; if you should still come in, make a "
            "new key and get a new certificate for it.",
        ),
        Step(
            Who.CA,
            "A revocation is for good (only a certificateHold can be lifted). If it was a "
            "mistake, issue a new certificate.",
        ),
    )


_OWN_INDEX = (
    "with the database that the CA keeps its certificates in (openssl.cnf here stands for the "
    "CA's own settings, which name it). CAUTION: a CRL lists what that database says and nothing "
    "else; made with an empty or a new index.txt it lifts every revocation there ever was."
)


def _issuer_of(objection: Objection, case: Case) -> CaFiles:
    """The CA whose CRL an objection is about."""
    depth = (objection.depth or 0) + 1
    return ca_files(case, case.path[depth] if depth < len(case.path) else None)


def _next_ca(objection: Objection, case: Case) -> bytes | None:
    depth = (objection.depth or 0) + 2
    return case.path[depth] if depth < len(case.path) else None


def _crl_file(objection: Objection, stem: str) -> tuple[str, ...]:
    """How to get the CRL, where the certificate says where it is."""
    certificate = None if objection.culprit is None else read_certificate(objection.culprit)
    address = None if certificate is None else crl_address(certificate)
    return () if address is None else (f"curl -o {stem}.crl {shlex.quote(address)}",)


def _publish(ca: CaFiles, stem: str, text: str) -> Step:
    return Step(Who.CA, f"{text}, {_OWN_INDEX}", (publish_crl(stem, ca),))


def crl_missing(objection: Objection, case: Case) -> tuple[Step, ...]:
    ca = _issuer_of(objection, case)
    stem = case.new(ca.base)
    certificate = None if ca.der is None else read_certificate(ca.der)
    whose = "the CA that issued this certificate"
    if certificate is not None and ca.der is not None:
        whose = identity_of_der(ca.der).subject or whose
        if not attempt(lambda: may_sign_crls(certificate), True):
            return (
                Step(
                    Who.CA,
                    f"The keyUsage of {whose} lacks cRLSign, so no CRL of it counts: issue it "
                    "anew with keyUsage keyCertSign and cRLSign. Its key can stay, and so can the "
                    "CRL.",
                    make_ca_of(case, stem, ca, _next_ca(objection, case)),
                ),
                Step(
                    Who.OPERATOR,
                    "Put it in the bundle, or have the clients send it in place of the old one. "
                    f"{RELOAD}",
                    (case.add_ca(f"{stem}.pem"), case.check()),
                ),
            )
    fetch = _crl_file(objection, stem)
    publish = _publish(ca, stem, f"Publish a CRL of {whose}, even one that revokes nothing")
    give = Step(
        Who.OPERATOR,
        f"Get the CRL of {whose} and give it with one more --crl, beside those that are given "
        f"already. {RESTART}",
        (*fetch, case.check(crl=f"{stem}.crl")),
    )
    return (give, publish) if fetch else (publish, give)


def crl_expired(objection: Objection, case: Case) -> tuple[Step, ...]:
    ca = _issuer_of(objection, case)
    stem = case.new(ca.base)
    fetch = _crl_file(objection, stem)
    publish = _publish(ca, stem, "Publish a CRL in time; if there is no newer one, make it")
    give = Step(
        Who.OPERATOR,
        f"Get the present CRL, see that it is newer, and move it over the old one. {RELOAD} "
        "Let a timer do it well before each nextUpdate. Until you have it, --crl-expired says what "
        "an old one is good for.",
        (
            *fetch,
            f"openssl crl -in {stem}.crl -noout -lastupdate -nextupdate",
            case.check(crl=f"{stem}.crl"),
        ),
    )
    return (give, publish) if fetch else (publish, give)
