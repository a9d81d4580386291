"""What to do about each reason: who has to do it, in words, with the command where there is one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import attrs

from mtlstunnel.advice.chain_remedies import bad_signature, unknown_ca
from mtlstunnel.advice.client_file import read_certificate
from mtlstunnel.advice.command_lines import (
    CaFiles,
    ca_files,
    look,
    make_ca_of,
    new_ca,
    renew_ca,
    request,
    sign,
    with_intermediates,
)
from mtlstunnel.advice.crl_remedies import crl_expired, crl_missing, revoked
from mtlstunnel.advice.description import constraint_words, purpose_words
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.form_remedies import malformed
from mtlstunnel.advice.issuing import (
    above,
    culprit_files,
    get_a_new_one,
    is_the_clients,
    new_key_and_certificate,
    signer_of,
)
from mtlstunnel.advice.rule_remedies import not_allowed
from mtlstunnel.advice.steps import RELOAD, Case, Step, Who
from mtlstunnel.trust.identity import identity_of_der
from mtlstunnel.trust.reasons import Reason


def remedies(objection: Objection, case: Case) -> tuple[Step, ...]:
    """What to do about one objection, the likeliest cure first."""
    return _BY_REASON[objection.reason](objection, case)


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
            (
                f"openssl pkcs12 -export -in {case.client} -inkey {case.key} "
                f"-out {case.new(case.base)}.p12",
            ),
        ),
    )


def _expired(objection: Objection, case: Case) -> tuple[Step, ...]:
    if is_the_clients(objection):
        text = (
            "Renew the certificate: send a request to the CA; the key can stay. "
            "(With step: step ca renew.)"
        )
        return get_a_new_one(case, text, signer_of(case))
    ca = culprit_files(objection, case)
    stem = case.new(ca.base)
    is_sent = objection.depth is not None and objection.depth + 1 < len(case.path)
    return (
        Step(
            Who.CA,
            "Renew the CA with its own key and name: what it has signed stays good, and no "
            "client's certificate has to be changed.",
            renew_ca(case, stem, ca, above(objection, case)),
        ),
        Step(
            Who.OPERATOR,
            f"Put the renewed CA in the bundle in place of the old one. {RELOAD}",
            (case.check(cas=f"{stem}.pem"),),
        ),
        *(_send_the_renewed(case, f"{stem}.pem", objection.depth or 0) if is_sent else ()),
    )


def _send_the_renewed(case: Case, ca: str, depth: int) -> tuple[Step, ...]:
    """Where the CA is one that the client sends."""
    stem = case.new(f"{case.base}-chain")
    chain = [ca_files(case, der).certificate for der in case.path[1:-1]]
    chain[depth - 1] = ca
    return (
        Step(
            Who.CLIENT,
            "Or leave the bundle as it is, and send the renewed CA in place of the old one.",
            (*with_intermediates(case, stem, chain), case.check(f"{stem}.pem")),
        ),
    )


def _not_yet_valid(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.OPERATOR,
            "Compare the server's clock with the certificate. If the clock is wrong, set it "
            "right and keep it so with NTP.",
            ("date -u", look(case.client, "-startdate")),
        ),
        Step(
            Who.CA,
            "If the clock of the CA goes ahead, set that right and issue the certificate again; "
            "an hour's allowance before notBefore is usual. Otherwise wait.",
        ),
    )


def _not_a_ca(objection: Objection, case: Case) -> tuple[Step, ...]:
    ca, depth = culprit_files(objection, case), objection.depth or 1
    top = case.path[-1] if len(case.path) > depth + 1 else case.anchor
    first = get_a_new_one(
        case,
        "The certificate was signed by one that may not sign any: a client's or server's "
        "certificate, or a CA made without basicConstraints. Get one from a real CA.",
        (ca_files(case, top), ()),
    )
    if objection.culprit is None:
        return first
    stem, mine = case.new(ca.base), case.new(f"{case.base}-chain")
    chain = [ca_files(case, der).certificate for der in case.path[1:-1]]
    if depth <= len(chain):
        chain[depth - 1] = f"{stem}.pem"
    return (
        *first,
        Step(
            Who.CA,
            f"Or, if {identity_of_der(objection.culprit).subject} is meant to be a CA, have it "
            "issued anew as one, with its own key: what it signed stays good. A CA needs "
            "basicConstraints CA:TRUE and, where it has a keyUsage, keyCertSign in it.",
            (
                look(ca.certificate, "-ext basicConstraints,keyUsage"),
                *make_ca_of(case, stem, ca, above(objection, case)),
            ),
        ),
        Step(
            Who.CLIENT,
            "Then send that in place of the old one.",
            (*with_intermediates(case, mine, chain), case.check(f"{mine}.pem")),
        ),
    )


def _path_too_long(_: Objection, case: Case) -> tuple[Step, ...]:
    top = ca_files(case, case.path[-1] if len(case.path) > 1 else case.anchor)
    lowest = ca_files(case, case.path[1]) if len(case.path) > 1 else CaFiles()
    return (
        *get_a_new_one(
            case,
            "Get a certificate from a CA further up: one in the chain allows fewer CAs below it "
            "(pathlen of its basicConstraints, or the most that are looked at) than there are.",
            (top, ()),
        ),
        Step(
            Who.CA,
            "Or issue the upper CA anew with a larger pathlen, or without one.",
            (look(top.certificate, "-ext basicConstraints"),),
        ),
        Step(
            Who.OPERATOR,
            "Or put the lowest CA in the bundle: it is an anchor by itself there, and what stands "
            f"above it does not count any more. {RELOAD}",
            (case.add_ca(lowest.certificate), case.check()),
        ),
    )


def _wrong_purpose(objection: Objection, case: Case) -> tuple[Step, ...]:
    certificate = None if objection.culprit is None else read_certificate(objection.culprit)
    purposes = ", ".join(purpose_words(certificate)) if certificate is not None else ""
    allows = f" (it allows {purposes})" if purposes else ""
    if not is_the_clients(objection):
        return (
            Step(
                Who.CA,
                f"The extendedKeyUsage of this CA{allows} lacks clientAuth, so nothing below it "
                "may be used by a client. Issue the CA anew with clientAuth or without that "
                "extension, or use another CA for clients.",
                (look(culprit_files(objection, case).certificate, "-ext extendedKeyUsage"),),
            ),
        )
    first, *others = get_a_new_one(
        case,
        f"Get a certificate that is made for TLS clients{allows and ': this one is not'}"
        f"{allows}. Public CAs (Let's Encrypt, DigiCert, Sectigo and the others of the web) "
        "stopped issuing such certificates in 2026, so one that worked before it was renewed "
        "may be refused now: use a CA of your own.",
        signer_of(case),
        "Sign the request with extendedKeyUsage clientAuth (or without that extension).",
    )
    shown = look(case.client, "-ext extendedKeyUsage,keyUsage")
    return (attrs.evolve(first, commands=(shown, *first.commands)), *others)


def _weak_key(objection: Objection, case: Case) -> tuple[Step, ...]:
    if is_the_clients(objection):
        return new_key_and_certificate(
            case,
            "Make a new key, EC P-256 or RSA of 2048 bits and more, and have it certified; "
            "the signature must be by SHA-256 or better.",
        )
    old = culprit_files(objection, case)
    base, stem = case.new(old.base), case.new(case.base)
    ca = CaFiles(base, f"{base}.pem", f"{base}.key")
    return (
        Step(
            Who.CA,
            "The key or the signature of a CA is too weak: make a new CA, with RSA of 2048 bits "
            "and more or EC P-256, and SHA-256; and have it certify every client anew.",
            (new_ca(base, old), request(case, stem), *sign(case, stem, ca)),
        ),
        Step(
            Who.OPERATOR,
            "Put the new CA in the bundle beside the old one until every client has a certificate "
            f"from it. {RELOAD}",
            (case.add_ca(ca.certificate), case.check(f"{stem}.pem")),
        ),
    )


def _name_constraints(_: Objection, case: Case) -> tuple[Step, ...]:
    bounds: list[str] = []
    limited: list[bytes] = []
    for der in case.path[1:]:
        certificate = read_certificate(der)
        found = () if certificate is None else constraint_words(certificate)
        bounds += found
        limited += [der] if found else []
    limits = f" In its chain: {', '.join(bounds)}." if bounds else ""
    return (
        Step(
            Who.CLIENT,
            f"Get a certificate whose names all lie within what its CA may sign.{limits}",
            (
                look(case.client, "-subject -ext subjectAltName"),
                *(look(ca_files(case, der).certificate, "-ext nameConstraints") for der in limited),
            ),
        ),
        Step(Who.CA, "Or issue it from a CA that is not limited so."),
    )


def _no_application_protocol(_: Objection, case: Case) -> tuple[Step, ...]:
    return (
        Step(
            Who.CLIENT,
            "Have the client offer a name that the server has: the sentence above lists both. A "
            "client that offers none is served, too.",
            (f"openssl s_client -connect HOST:PORT -cert {case.client} -key {case.key} -alpn h2",),
        ),
        Step(
            Who.OPERATOR,
            "Or add the name to the server, if the service behind speaks that protocol. The option "
            "counts when the tunnel is restarted.",
            ("--alpn h2",),
        ),
    )


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
        Reason.REVOKED: revoked,
        Reason.CRL_MISSING: crl_missing,
        Reason.CRL_EXPIRED: crl_expired,
        Reason.NOT_ALLOWED: not_allowed,
        Reason.MALFORMED: malformed,
        Reason.NO_APPLICATION_PROTOCOL: _no_application_protocol,
        Reason.OTHER: _other,
    }
)
