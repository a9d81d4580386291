"""What ``mtlstunnel check`` finds out about a client: its files read, and judged by the server."""

from __future__ import annotations

import datetime
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs

from mtlstunnel.advice.client_chain import ClientChain, arrange
from mtlstunnel.advice.client_file import AskPassword, Held, read_client_file
from mtlstunnel.advice.description import allows_clients
from mtlstunnel.advice.explanation import Break, Objection, find_break, objections
from mtlstunnel.advice.nearest import der_of, place
from mtlstunnel.advice.remedies import remedies
from mtlstunnel.advice.steps import Case, Step, Who, fresh
from mtlstunnel.errors import ClientFileError
from mtlstunnel.service.pki import make_ca, make_server
from mtlstunnel.settings import AlertPolicy, VerdictSettings
from mtlstunnel.tls.context import DoorContext
from mtlstunnel.tls.credentials import Credentials
from mtlstunnel.tls.rehearsal import all_objections, rehearse
from mtlstunnel.trust.bundle import Bundle
from mtlstunnel.trust.identity import Identity, identity_of_der, quietly
from mtlstunnel.trust.pem import quoted_path, shown_path
from mtlstunnel.trust.policy import Trust
from mtlstunnel.trust.reasons import Alert, Reason
from mtlstunnel.trust.verdict import Accepted, Verdict


@attrs.frozen
class Link:
    """
    One certificate of the path that was built, and the file it comes from.

    :ivar is_anchor: whether it is a CA of the bundle
    """

    held: Held
    is_anchor: bool

    @property
    def identity(self) -> Identity:
        """Whom it names."""
        return identity_of_der(self.held.der)


@attrs.frozen(kw_only=True)
class Examination:
    """
    Everything there is to say of a client.

    :ivar objections: each cause once, the server's own first; none where it is let in
    :ivar alert: what a refused client sees
    :ivar specific_alert: what it sees with ``--alert specific``
    :ivar path: from the client's own certificate, as far as a path was built
    :ivar broken: where the chain does not hold
    :ivar cures: what to do, for each objection
    :ivar to_pem: the command that makes PEM of the client's file; empty where it is PEM
    """

    at: datetime.datetime
    chain: ClientChain
    objections: tuple[Objection, ...]
    alert: int | None
    specific_alert: int | None
    path: tuple[Link, ...]
    broken: Break | None
    cures: tuple[tuple[Step, ...], ...]
    notes: tuple[str, ...]
    to_pem: str

    @property
    def is_accepted(self) -> bool:
        """Whether a server with these settings lets the client in."""
        return not self.objections


def _read(path: Path, what: str) -> tuple[bytes, str]:
    shown = shown_path(path)
    try:
        return path.read_bytes(), shown
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise ClientFileError(f"{shown}: cannot be read: {said}; give {what}") from None


@attrs.frozen
class ClientRead:
    """
    What a client with these files sends.

    :ivar client: its file of certificates as a part of a command
    :ivar key: the file of its key, the same
    :ivar base: what its file is called, without the suffix
    :ivar notes: how the files were read
    :ivar to_pem: the command that makes ``client`` of the file there is; empty where that is PEM
    """

    chain: ClientChain
    client: str
    key: str
    base: str
    notes: tuple[str, ...]
    to_pem: str = ""


@quietly
def read_client(client: Path, key: Path | None, ask: AskPassword) -> ClientRead:
    """
    Read a client's files.

    :raises ClientFileError: there is no certificate in it, or a part cannot be read
    """
    data, shown = _read(client, "a file with the client's certificate")
    found = read_client_file(shown, data, ask)
    if not found.certificates:
        said = found.notes[0] if found.notes and not found.keys else None
        raise ClientFileError(
            said
            or f"{shown}: there is a private key in it, but no certificate; give the certificate "
            "that belongs to it"
        )
    keys, notes = list(found.keys), list(found.notes)
    if key is not None:
        data, shown = _read(key, "the file with the client's private key")
        given = read_client_file(shown, data, ask)
        if given.certificates and not given.keys:
            raise ClientFileError(
                f"--key {shown}: there is no private key in it; give the client's"
            )
        keys = [*given.keys, *keys]
        notes += given.notes
    chain = arrange(found.certificates, keys)
    notes += chain.notes
    to_pem = found.to_pem.replace("FILE", quoted_path(client))
    base = re.sub(r"[^A-Za-z0-9_]+", "-", client.stem).strip("-") or "client"
    own_file = quoted_path(client)
    if to_pem:
        here = names_here()
        own_file = f"{base if f'{base}.pem' not in here else fresh(base, here)}.pem"
        to_pem = to_pem.replace("MADE", own_file)
    if key is not None:
        key_file = quoted_path(key)
    else:
        key_file = own_file if found.keys else f"{base}.key"
    return ClientRead(chain, own_file, key_file, base, tuple(notes), to_pem)


def names_here() -> frozenset[str]:
    """What files are called where the commands will be pasted."""
    try:
        return frozenset(one.name for one in Path().iterdir())
    except OSError:
        return frozenset()


def server_context(trust: Trust, at: datetime.datetime) -> DoorContext:
    """
    What a server with this trust has its connections judged by.

    :raises BundleError: OpenSSL does not take a CA
    """
    own = make_server(make_ca("nobody", at), at)
    return DoorContext(
        bundle=trust.bundle,
        policy=trust.policy,
        credentials=Credentials((own.certificate,), own.key),
        as_of=at,
    )


@quietly
def examine(
    trust: Trust,
    read: ClientRead,
    at: datetime.datetime,
    settings: VerdictSettings,
    options: str = "",
) -> Examination:
    """
    Let the server's own code judge, and explain what it says.

    :param settings: what the trust was loaded from
    :param options: what else of it stands on the command line, for the commands to paste
    :raises BundleError: OpenSSL does not take a CA
    """
    chain = read.chain
    context = server_context(trust, at)
    sent = [one.der for one in chain.sent]
    said = rehearse(context, sent)
    specific = rehearse(attrs.evolve(context, alert=AlertPolicy.SPECIFIC), sent)
    every = all_objections(context, sent)
    path = every.path or tuple(sent[:1])
    verdict = said.verdict
    against = (
        ()
        if isinstance(verdict, Accepted)
        else objections(verdict, every.findings, path, at, trust.policy)
    )
    proof = _without_proof(chain)
    lacks_proof = proof is not None and not against
    if proof is not None:
        against = (*against, proof)
    broken = find_break(against, path, chain.sent, trust.bundle.anchors, at)
    case = Case(
        own=chain.own.der,
        path=path,
        broken=broken,
        strict=trust.policy.strict,
        anchor=_fit_to_sign(trust.bundle, at),
        ca_files=_ca_files(trust.bundle),
        client=read.client,
        key=read.key,
        base=read.base,
        cas=tuple(map(quoted_path, settings.cas)),
        is_directory=settings.cas[0].is_dir(),
        crls=tuple(map(quoted_path, settings.crl)),
        options=options,
        taken=names_here(),
    )
    cures = [remedies(one, case) for one in against]
    if cures and read.to_pem:
        cures[0] = (_make_pem(read), *cures[0])
    places = {der_of(one.certificate): place(one) for one in trust.bundle.anchors}
    return Examination(
        at=at,
        chain=chain,
        objections=against,
        alert=Alert.DECRYPT_ERROR if lacks_proof else said.alert,
        specific_alert=Alert.DECRYPT_ERROR if lacks_proof else specific.alert,
        path=tuple(_links(path, chain, places)),
        broken=broken,
        cures=tuple(cures),
        notes=(*read.notes, *trust.notes, *_note_of(verdict)),
        to_pem=read.to_pem,
    )


def _make_pem(read: ClientRead) -> Step:
    return Step(
        Who.CLIENT,
        "First make PEM of the file; what follows begins with that.",
        (read.to_pem,),
    )


def _fit_to_sign(bundle: Bundle, at: datetime.datetime) -> bytes | None:
    """The first CA whose clients come in."""
    for one in bundle.anchors:
        ca = one.certificate
        if ca.not_valid_before_utc <= at <= ca.not_valid_after_utc and allows_clients(ca):
            return der_of(ca)
    return None


def _ca_files(bundle: Bundle) -> dict[bytes, tuple[str, str]]:
    """For each CA that is alone in its file: that, and where its key would stand."""
    alone: dict[str, list[bytes]] = {}
    for one in bundle.anchors:
        alone.setdefault(one.where.partition(": certificate ")[0], []).append(
            der_of(one.certificate)
        )
    return {
        ders[0]: (shlex.quote(file), shlex.quote(str(Path(file).with_suffix(".key"))))
        for file, ders in alone.items()
        if len(ders) == 1
    }


def _note_of(verdict: Verdict) -> tuple[str, ...]:
    return (verdict.note,) if isinstance(verdict, Accepted) and verdict.note else ()


def _without_proof(chain: ClientChain) -> Objection | None:
    """A client with another certificate's key cannot prove that it holds this one's."""
    strange = chain.strange_key
    if strange is None:
        return None
    detail = (
        f"the private key in {strange.where} does not belong to the client's certificate "
        f"({chain.own.title}), so the client cannot prove that the certificate is its own"
    )
    return Objection(Reason.BAD_SIGNATURE, detail, 0)


def _links(
    path: Sequence[bytes], chain: ClientChain, places: Mapping[bytes, str]
) -> Iterator[Link]:
    sent = {one.der: one.where for one in reversed(chain.sent)}
    for der in path:
        where = places.get(der) or sent.get(der, "unknown")
        yield Link(Held(der, where), der in places)
