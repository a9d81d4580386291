"""What to do where a certificate is not well-formed, or not as --strict wants it."""

from __future__ import annotations

from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.command_lines import (
    CaFiles,
    look,
    make_ca_of,
    request,
    sign,
)
from mtlstunnel.advice.description import authority_key_id
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.issuing import (
    above,
    culprit_files,
    get_a_new_one,
    is_the_clients,
    signer_of,
)
from mtlstunnel.advice.steps import RELOAD, Case, Step, Who
from mtlstunnel.trust.chain import strict_fault


def malformed(objection: Objection, case: Case) -> tuple[Step, ...]:
    is_own = is_the_clients(objection)
    file = case.client if is_own else culprit_files(objection, case).certificate
    steps = [
        Step(
            Who.CLIENT if is_own else Who.CA,
            "The certificate is not well-formed, or a part of it is missing or contradicts "
            "another. Have it issued anew, with software that follows RFC 5280.",
            (look(file, "-text"),)
            if case.strict
            else (
                look(file, "-text"),
                f"openssl x509 -in {file} -outform der | openssl asn1parse -inform der",
            ),
        )
    ]
    if case.strict:
        steps += _strictly(objection, case)
        steps.append(
            Step(
                Who.OPERATOR,
                "Or run the server without --strict, if that alone objects: the same command "
                "without it tells.",
                (case.check(strict=False),),
            )
        )
    return tuple(steps)


def _strictly(objection: Objection, case: Case) -> list[Step]:
    """How to issue what --strict does not object to."""
    ca, chain = signer_of(case)
    if not is_the_clients(objection):
        culprit = culprit_files(objection, case)
        stem = case.new(culprit.base)
        own = None if case.own is None else read_certificate(case.own)
        keeps = own is not None and authority_key_id(own) is not None
        return [
            Step(
                Who.CA,
                "This issues the CA anew, with its own key and name and all that --strict asks of "
                "it; its clients' certificates can stay, if they have what is asked of them.",
                make_ca_of(case, stem, culprit, above(objection, case)),
            ),
            Step(
                Who.OPERATOR,
                f"Put it in the bundle in place of the old one. {RELOAD}",
                (case.check(cas=f"{stem}.pem"),) if keeps else (),
            ),
        ]
    certificate = None if ca.der is None else read_certificate(ca.der)
    fault = None if certificate is None else strict_fault(certificate)
    if fault is None or chain:
        return list(get_a_new_one(case, "Send a request to the CA; the key can stay.", (ca, chain)))
    # The CA first, or what it signs is refused because of it.
    base, stem = case.new(ca.base), case.new(case.base)
    strict_ca = CaFiles(base, f"{base}.pem", ca.key)
    return [
        Step(
            Who.CA,
            f"The CA itself {fault}: issue it anew, with its own key and name.",
            make_ca_of(case, base, ca, None),
        ),
        Step(Who.CLIENT, "Send a request to it; the key can stay.", (request(case, stem),)),
        Step(Who.CA, "Sign the request.", sign(case, stem, strict_ca)),
        Step(
            Who.OPERATOR,
            f"Put the new certificate of the CA in the bundle in place of the old one. {RELOAD}",
            (case.check(f"{stem}.pem", cas=f"{base}.pem"),),
        ),
    ]
