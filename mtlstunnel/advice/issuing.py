"""Getting a client another certificate: asked for, signed, and seen to work; and who is asked."""

from __future__ import annotations

from mtlstunnel.advice.command_lines import CaFiles, ca_files, new_key, request, sign
from mtlstunnel.advice.explanation import Objection
from mtlstunnel.advice.steps import Case, Step, Who


def is_the_clients(objection: Objection) -> bool:
    """Whether it is about the client's own certificate."""
    return not objection.depth


def above(objection: Objection, case: Case) -> bytes | None:
    """The CA above the one that an objection is about, where the path has one."""
    depth = objection.depth
    return case.path[depth + 1] if depth and depth + 1 < len(case.path) else None


def culprit_files(objection: Objection, case: Case) -> CaFiles:
    """The files of the CA that an objection is about."""
    return ca_files(case, objection.culprit)


Signer = tuple[CaFiles, tuple[bytes, ...]]
"""A CA, and the CAs that a client of it must send, from itself upwards."""


def signer_of(case: Case) -> Signer:
    """Who should sign for the client: the CA that did if it leads to the bundle, else another."""
    if len(case.path) > 1 and case.broken is None:
        return ca_files(case, case.path[1]), case.path[1:-1]
    return ca_files(case, case.anchor), ()


def get_a_new_one(
    case: Case,
    text: str,
    signer: Signer,
    sign_text: str = "Sign the request, when you have seen whose it is.",
) -> tuple[Step, ...]:
    """
    With the key there is.

    :param text: why and how, for the client's owner
    """
    stem = case.new(case.base)
    return _asked_and_signed(case, stem, text, (request(case, stem),), case.key, signer, sign_text)


def new_key_and_certificate(case: Case, text: str) -> tuple[Step, ...]:
    """With a new key."""
    stem = case.new(case.base)
    key = f"{stem}.key"
    return _asked_and_signed(
        case,
        stem,
        text,
        (new_key(stem), request(case, stem, key)),
        key,
        signer_of(case),
        "Sign the request, when you have seen whose it is.",
    )


def _asked_and_signed(
    case: Case,
    stem: str,
    text: str,
    commands: tuple[str, ...],
    key: str,
    signer: Signer,
    sign_text: str,
) -> tuple[Step, ...]:
    return (
        Step(Who.CLIENT, text, commands),
        Step(Who.CA, sign_text, sign(case, stem, *signer)),
        Step(
            Who.CLIENT,
            f"Use {stem}.pem with {key} from then on.",
            (case.check(f"{stem}.pem", key),),
        ),
    )
