"""What to do about each reason: who has to do it, in words, with the command where there is one."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Callable, Mapping
from types import MappingProxyType

from cryptography.x509.oid import NameOID

from mtlstunnel.advice.chain_remedies import bad_signature, unknown_ca
from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.description import attempt, constraint_words, crl_address, purpose_words
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.steps import (
    NEW_CA,
    NEW_KEY,
    SIGN_FOR_CLIENTS,
    Case,
    Step,
    Who,
    look,
    request,
)
from mtlstunnel.trust.identity import escape, identity_of_der
from mtlstunnel.trust.reasons import Reason

_PUBLISH_A_CRL = (
    "touch index.txt",
    "printf '[ca]\\ndefault_ca=own\\n[own]\\ndatabase=index.txt\\ndefault_md=sha256\\n' > ca.cnf",
    "openssl ca -config ca.cnf -gencrl -keyfile ca.key -cert ca.pem -crldays 30 -out ca.crl",
)


def remedies(objection: Objection, case: Case) -> tuple[Step, ...]:
    """What to do about one objection, the likeliest cure first."""
    return _BY_REASON[objection.reason](objection, case)


def _is_the_clients(objection: Objection) -> bool:
    return not objection.depth


def _no_certificate(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "Tell the program which certificate and key to show. Many programs send none when the "
            "key is missing, the file has a passphrase, or their own settings name another server.",
            (
                f"curl --cert {case.client} --key {case.key} https://HOST:PORT/",
                f"openssl s_client -connect HOST:PORT -cert {case.client} -key {case.key}",
            ),
        ),
        Step(
            Who.CLIENT,
            "A browser or Windows takes certificate and key in one PKCS #12 file, to be imported.",
            (f"openssl pkcs12 -export -in {case.client} -inkey {case.key} -out client.p12",),
        ),
    )


def _expired(objection: Objection, case: Case) -> tuple[Step, ...]:
    if _is_the_clients(objection):
        return (
            Step(
                Who.CLIENT,
                "Renew the certificate: send a request to the CA; the key can stay. "
                "(With step: step ca renew.)",
                (request(case),),
            ),
            Step(Who.CA, "Sign the request.", SIGN_FOR_CLIENTS),
        )
    return (
        Step(
            Who.CA,
            "Renew the CA with its own key and name: what it has signed stays good, and no "
            "client's certificate has to be changed.",
            ("openssl x509 -in ca.pem -signkey ca.key -days 3650 -out ca-renewed.pem",),
        ),
        Step(
            Who.OPERATOR,
            "Put the renewed CA in the bundle in place of the old one. If it is an intermediate "
            "that the clients send, they append the renewed one to their certificates.",
            (f"mtlstunnel check --cas {case.cas}",),
        ),
    )


def _not_yet_valid(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Compare the server's clock with the certificate. If the clock is wrong, set it "
            "right and keep it so with NTP.",
            ("date -u", look(case, "-startdate")),
        ),
        Step(
            Who.CA,
            "If the clock of the CA goes ahead, set that right and issue the certificate again; "
            "an hour's allowance before notBefore is usual. Otherwise wait.",
        ),
    )


def _not_a_ca(objection: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "The certificate was signed by one that may not sign any: a client's or server's "
            "certificate, or a CA made without basicConstraints. Get one from a real CA.",
            (request(case),),
        ),
        Step(
            Who.CA,
            "A CA needs basicConstraints CA:TRUE and, where it has a keyUsage, keyCertSign in it. "
            "Look at yours; if it lacks them, make it anew, and what it signed, too.",
            ("openssl x509 -in ca.pem -noout -ext basicConstraints,keyUsage", NEW_CA),
        ),
    )


def _path_too_long(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "Get a certificate from a CA further up: one in the chain allows fewer CAs below it "
            "(pathlen of its basicConstraints, or the most that are looked at) than there are.",
            (request(case),),
        ),
        Step(
            Who.CA,
            "Or issue the upper CA anew with a larger pathlen, or without one.",
            ("openssl x509 -in ca.pem -noout -ext basicConstraints",),
        ),
        Step(
            Who.OPERATOR,
            "Or put the lowest CA in the bundle in place of the upper one: it is an anchor by "
            "itself there, and what stands above it does not count any more.",
        ),
    )


def _wrong_purpose(objection: Objection, case: Case) -> tuple[Step, ...]:
    certificate = None if objection.culprit is None else read_certificate(objection.culprit)
    purposes = ", ".join(purpose_words(certificate)) if certificate is not None else ""
    allows = f" (it allows {purposes})" if purposes else ""
    if not _is_the_clients(objection):
        return (
            Step(
                Who.CA,
                f"The extendedKeyUsage of this CA{allows} lacks clientAuth, so nothing below it "
                "may be used by a client. Issue the CA anew with clientAuth or without that "
                "extension, or use another CA for clients.",
                ("openssl x509 -in ca.pem -noout -ext extendedKeyUsage",),
            ),
        )
    return (
        Step(
            Who.CLIENT,
            f"Get a certificate that is made for TLS clients{allows and ': this one is not'}"
            f"{allows}. Public CAs (Let's Encrypt, DigiCert, Sectigo and the others of the web) "
            "stopped issuing such certificates in 2026, so one that worked before it was renewed "
            "may be refused now: use a CA of your own.",
            (look(case, "-ext extendedKeyUsage,keyUsage"), request(case)),
        ),
        Step(
            Who.CA,
            "Sign the request with extendedKeyUsage clientAuth (or without that extension).",
            SIGN_FOR_CLIENTS,
        ),
    )


def _weak_key(objection: Objection, case: Case) -> tuple[Step, ...]:
    if _is_the_clients(objection):
        return (
            Step(
                Who.CLIENT,
                "Make a new key, EC P-256 or RSA of 2048 bits and more, and have it certified; "
                "the signature must be by SHA-256 or better.",
                (NEW_KEY, request(case, "client.key")),
            ),
            Step(Who.CA, "Sign the request.", SIGN_FOR_CLIENTS),
        )
    return (
        Step(
            Who.CA,
            "The key or the signature of a CA is too weak: make a new CA, with RSA of 2048 bits "
            "and more or EC P-256, and SHA-256.",
            (NEW_CA,),
        ),
        Step(
            Who.OPERATOR,
            "Put the new CA in the bundle beside the old one until every client has a certificate "
            "from it.",
            (f"cat ca.pem >> {case.cas}",),
        ),
    )


def _name_constraints(_: Objection, case: Case) -> tuple[Step, ...]:
    chain = [read_certificate(der) for der in case.path[1:]]
    bounds = [bound for one in chain if one is not None for bound in constraint_words(one)]
    limits = f" In its chain: {', '.join(bounds)}." if bounds else ""
    return (
        Step(
            Who.CLIENT,
            f"Get a certificate whose names all lie within what its CA may sign.{limits}",
            (
                look(case, "-subject -ext subjectAltName"),
                "openssl x509 -in ca.pem -noout -ext nameConstraints",
            ),
        ),
        Step(Who.CA, "Or issue it from a CA that is not limited so."),
    )


def _revoked(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "The CA has withdrawn the certificate. Ask why; if you should still come in, make a "
            "new key and get a new certificate for it.",
            (NEW_KEY, request(case, "client.key")),
        ),
        Step(
            Who.CA,
            "A revocation is for good (only a certificateHold can be lifted). If it was a "
            "mistake, issue a new certificate.",
        ),
    )


def _fetch_crl(objection: Objection) -> tuple[str, ...]:
    """How to get the CRL, where the certificate says where it is."""
    certificate = None if objection.culprit is None else read_certificate(objection.culprit)
    address = None if certificate is None else crl_address(certificate)
    return () if address is None else (f"curl -o ca.crl {shlex.quote(address)}",)


def _crl_missing(objection: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Get the CRL of the CA that issued this certificate and give it with --crl, "
            "beside those that are given already.",
            (
                *_fetch_crl(objection),
                f"mtlstunnel check --cas {case.cas} --crl ca.crl {case.client}",
            ),
        ),
        Step(
            Who.CA,
            "Publish a CRL, even one that revokes nothing, by the index that the CA keeps (here "
            "index.txt).",
            _PUBLISH_A_CRL,
        ),
    )


def _crl_expired(objection: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Get the present CRL and replace the old one; let a timer do it well before each "
            "nextUpdate. Until you have it, --crl-expired says what an old one is good for.",
            (*_fetch_crl(objection), "openssl crl -in ca.crl -noout -lastupdate -nextupdate"),
        ),
        Step(
            Who.CA,
            "If there is no newer one, publish it.",
            _PUBLISH_A_CRL,
        ),
    )


def _not_allowed(_: Objection, case: Case) -> tuple[Step, ...]:
    rules = tuple(_rules_for(case.own)) if case.own is not None else ()
    return (
        Step(
            Who.OPERATOR,
            "If this client should come in, add a rule that fits it; any one of these does."
            if rules
            else "If this client should come in, add an --allow rule that fits it.",
            rules,
        ),
        Step(
            Who.CLIENT,
            "Otherwise get a certificate with one of the names that the rules let in; the "
            "operator knows them.",
        ),
    )


def _rules_for(der: bytes) -> list[str]:
    """Options that would let in this certificate, the most telling first."""
    who = identity_of_der(der)
    certificate = read_certificate(der)
    options = {"dns": "--allow-dns", "uri": "--allow-uri", "email": "--allow-email"}
    found = []
    for name in who.san[:3]:
        kind, _, value = name.partition(":")
        option = {**options, "ip": "--allow-ip"}.get(kind)
        if option is not None and "\\" not in value and "*" not in value:
            found.append(f"{option} {shlex.quote(value)}")
    if certificate is not None:
        names = attempt(
            lambda: certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME), None
        )
        if names and str(names[0].value).isprintable():
            found.append(f"--allow-cn {shlex.quote(escape(str(names[0].value)))}")
    if who.spki_sha256:
        pin = base64.b64encode(bytes.fromhex(who.spki_sha256)).decode()
        found.append(f"--allow-spki sha256//{pin}")
    return found


def _malformed(objection: Objection, case: Case) -> tuple[Step, ...]:
    anew = Step(
        Who.CLIENT if _is_the_clients(objection) else Who.CA,
        "The certificate is not well-formed, or a part of it is missing or contradicts another. "
        "Have it issued anew, with software that follows RFC 5280.",
        (
            look(case, "-text"),
            f"openssl x509 -in {case.client} -outform der | openssl asn1parse -inform der",
        ),
    )
    if not case.strict:
        return (anew,)
    lax = Step(
        Who.OPERATOR,
        "Or run the server without --strict, if that alone objects: the same command without it "
        "tells.",
        (f"mtlstunnel check --cas {case.cas} {case.client}",),
    )
    return (anew, lax)


def _other(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "The sentence above says what happened. If the client does not trust the server, give "
            "it the server's CA; if there is no common version or cipher, update it (TLS 1.2 is "
            "the oldest that is spoken); if it sends too much, leave out what is not of its chain.",
            (f"openssl s_client -connect HOST:PORT -cert {case.client} -key {case.key}",),
        ),
    )


_BY_REASON: Mapping[Reason, Callable[[Objection, Case], tuple[Step, ...]]] = MappingProxyType(
    {
        Reason.NO_CERTIFICATE: _no_certificate,
        Reason.UNKNOWN_CA: unknown_ca,
        Reason.BAD_SIGNATURE: bad_signature,
        Reason.EXPIRED: _expired,
        Reason.NOT_YET_VALID: _not_yet_valid,
        Reason.NOT_A_CA: _not_a_ca,
        Reason.PATH_TOO_LONG: _path_too_long,
        Reason.WRONG_PURPOSE: _wrong_purpose,
        Reason.WEAK_KEY: _weak_key,
        Reason.NAME_CONSTRAINTS: _name_constraints,
        Reason.REVOKED: _revoked,
        Reason.CRL_MISSING: _crl_missing,
        Reason.CRL_EXPIRED: _crl_expired,
        Reason.NOT_ALLOWED: _not_allowed,
        Reason.MALFORMED: _malformed,
        Reason.OTHER: _other,
    }
)
