"""What the upstream is told of a client: the bytes of the header, and what stands in it of whom."""

from __future__ import annotations

import ipaddress
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import HostnameAddress, IPv4Address, IPv6Address, UNIXAddress
from twisted.logger import globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase

from mtlstunnel.relay import proxy_protocol
from mtlstunnel.relay.introduction import introducer, socket_name
from mtlstunnel.relay.proxy_protocol import (
    Inet,
    Introduction,
    SocketName,
    TLSPart,
    Unix,
    crc32c,
    version_1,
    version_2,
)
from mtlstunnel.settings import ProxyProtocol, VerifyStrategy
from mtlstunnel.tls.established import EstablishedSession
from tests import pki, proxy_header
from tests.proxy_header import Parsed, parse_v1, parse_v2
from tests.relay.memory import Rig
from tests.tls.memory import TLS_1_2, TLS_1_3, VERSIONS, MemoryClient, client_context, door_context

V1, V2, V2_TLS, V2_CERT = (
    ProxyProtocol.V1,
    ProxyProtocol.V2,
    ProxyProtocol.V2_TLS,
    ProxyProtocol.V2_CERT,
)


def inet(host: str, port: int = 443) -> Inet:
    return Inet(ipaddress.ip_address(host), port)


ALICE, DOOR = inet("192.0.2.1", 50000), inet("192.0.2.2")


class Checksums(SynchronousTestCase):
    """CRC32C, by the vectors of RFC 3720, appendix B.4."""

    def test_known_answers(self) -> None:
        read_command = bytes.fromhex(
            "01c00000000000000000000000000000140000000000040000000014000000182800000000000000"
            "0200000000000000"
        )
        for data, answer in (
            (bytes(32), "aa36918a"),
            (b"\xff" * 32, "43aba862"),
            (bytes(range(32)), "4e79dd46"),
            (bytes(range(31, -1, -1)), "5cdb3f11"),
            (read_command, "563a96d9"),
        ):
            # The RFC writes them in the order of the wire, lowest byte first.
            self.assertEqual(crc32c(data).to_bytes(4, "little").hex(), answer)


class VersionOne(SynchronousTestCase):
    """The line of text."""

    def test_every_kind_of_address(self) -> None:
        for source, destination, line in (
            (ALICE, DOOR, b"TCP4 192.0.2.1 192.0.2.2 50000 443"),
            (inet("::1", 0), inet("::1", 65535), b"TCP6 0:0:0:0:0:0:0:1 0:0:0:0:0:0:0:1 0 65535"),
            (
                inet("2001:db8::7", 4711),
                inet("2001:db8::1"),
                b"TCP6 2001:db8:0:0:0:0:0:7 2001:db8:0:0:0:0:0:1 4711 443",
            ),
            # A socket for both families shows IPv4 clients so.
            (
                inet("::ffff:192.0.2.1", 50000),
                inet("::ffff:192.0.2.2"),
                b"TCP4 192.0.2.1 192.0.2.2 50000 443",
            ),
            (
                inet("192.0.2.1", 50000),
                inet("2001:db8::1"),
                b"TCP6 0:0:0:0:0:ffff:c000:201 2001:db8:0:0:0:0:0:1 50000 443",
            ),
            (
                inet("fe80::1%eth0", 50000),
                inet("fe80::2%eth0"),
                b"TCP6 fe80:0:0:0:0:0:0:1 fe80:0:0:0:0:0:0:2 50000 443",
            ),
            (Unix(b""), Unix(b"/run/door.sock"), b"UNKNOWN"),
            (ALICE, Unix(b"/run/door.sock"), b"UNKNOWN"),
            (None, DOOR, b"UNKNOWN"),
        ):
            self.assertEqual(version_1(source, destination).data, b"PROXY " + line + b"\r\n")

    def test_the_longest_line_is_within_what_receivers_must_take(self) -> None:
        longest = inet("ffff:" * 7 + "ffff", 65535)
        self.assertEqual(len(version_1(longest, longest).data), 104)
        mapped = inet("::ffff:255.255.255.255", 65535)
        self.assertLessEqual(len(version_1(mapped, longest).data), 107)


addresses = st.builds(Inet, st.ip_addresses(), st.integers(0, 65535))
pairs = st.one_of(
    st.tuples(addresses, addresses),
    st.tuples(*[st.builds(Inet, st.ip_addresses(v=6), st.integers(0, 65535))] * 2),
)


class RoundTrips(SynchronousTestCase):
    """Twisted's own parsers read what was meant."""

    def same(self, parsed: Any, meant: SocketName) -> None:
        assert isinstance(meant, Inet)
        self.assertEqual(parsed.port, meant.port)
        got = ipaddress.ip_address(parsed.host)
        if got.version != meant.ip.version:
            # IPv4 in an IPv6 address stands for the same client.
            got, meant_ip = (getattr(one, "ipv4_mapped", None) or one for one in (got, meant.ip))
            self.assertEqual(got, meant_ip)
        else:
            self.assertEqual(got, meant.ip)

    @given(pairs, st.binary(max_size=40))
    def test_version_1(self, pair: tuple[Inet, Inet], payload: bytes) -> None:
        parsed = parse_v1(version_1(*pair).data + payload)
        self.same(parsed.source, pair[0])
        self.same(parsed.destination, pair[1])
        self.assertEqual(parsed.payload, payload)

    @given(
        pairs,
        st.binary(max_size=40),
        st.text(max_size=60),
        st.binary(max_size=60),
        st.one_of(st.none(), st.binary(max_size=3000)),
    )
    def test_version_2(
        self,
        pair: tuple[Inet, Inet],
        payload: bytes,
        text: str,
        alpn: bytes,
        certificate: bytes | None,
    ) -> None:
        part = TLSPart(
            has_certificate=True, verified=True, common_name=text, certificate=certificate
        )
        header = version_2(
            Introduction(
                source=pair[0],
                destination=pair[1],
                unique_id="id",
                authority=text,
                alpn=alpn,
                tls=part,
            )
        )
        parsed = parse_v2(header.data + payload)
        self.same(parsed.source, pair[0])
        self.same(parsed.destination, pair[1])
        self.assertEqual(parsed.payload, payload)
        self.assertEqual(parsed.tlvs[proxy_header.AUTHORITY], text.encode())
        self.assertEqual(parsed.tlvs[proxy_header.UNIQUE_ID], b"id")
        self.assertEqual(parsed.tlvs.get(proxy_header.ALPN, b""), alpn)
        self.assertEqual(parsed.ssl.tlvs[proxy_header.CN], text.encode())
        self.assertEqual(parsed.ssl.tlvs.get(proxy_header.CERT), certificate)

    @given(st.binary(max_size=108), st.binary(max_size=108))
    def test_unix_sockets(self, one: bytes, other: bytes) -> None:
        header = version_2(Introduction(source=Unix(one), destination=Unix(other)))
        parsed = parse_v2(header.data)
        self.assertEqual(parsed.source.name, one.rstrip(b"\x00"))
        self.assertEqual(parsed.destination.name, other.rstrip(b"\x00"))


class VersionTwo(SynchronousTestCase):
    """The binary header."""

    def header(self, **part: Any) -> Parsed:
        tls = TLSPart(**part)
        return parse_v2(version_2(Introduction(source=ALICE, destination=DOOR, tls=tls)).data)

    def test_the_bytes_of_the_shortest(self) -> None:
        header = version_2(Introduction(source=ALICE, destination=DOOR)).data
        self.assertEqual(
            header[:-4].hex(" "),
            "0d 0a 0d 0a 00 0d 0a 51 55 49 54 0a 21 11 00 13 "
            "c0 00 02 01 c0 00 02 02 c3 50 01 bb 03 00 04",
        )

    def test_what_is_not_known_is_not_said(self) -> None:
        self.assertEqual(set(parse_v2(self.plain()).tlvs), {proxy_header.CRC32C})
        self.assertEqual(self.header().ssl.tlvs, {})

    def plain(self, **more: Any) -> bytes:
        return version_2(Introduction(source=ALICE, destination=DOOR, **more)).data

    def test_who_is_no_ip_address_is_unspec(self) -> None:
        for source, destination in ((None, DOOR), (ALICE, Unix(b"/s")), (Unix(b"x" * 109),) * 2):
            header = version_2(Introduction(source=source, destination=destination)).data
            self.assertEqual(header[12:14], b"\x21\x00")
            self.assertIsNone(parse_v2(header).source)

    def test_an_id_that_is_too_long_is_left_out(self) -> None:
        self.assertEqual(parse_v2(self.plain(unique_id="x" * 128)).tlvs[5], b"x" * 128)
        self.assertNotIn(5, parse_v2(self.plain(unique_id="x" * 129)).tlvs)

    def test_the_certificate_is_left_out_where_it_does_not_fit_and_only_then(self) -> None:
        part = {"has_certificate": True, "verified": True, "version": "TLSv1.3"}
        for source in (ALICE, inet("2001:db8::1"), Unix(b"/a")):
            room = 0xFFFF - len(
                version_2(
                    Introduction(
                        source=source, destination=source, tls=TLSPart(**part, certificate=b"")
                    )
                ).data[16:]
            )
            for size, fits in ((room, True), (room + 1, False), (100_000, False)):
                tls = TLSPart(**part, certificate=b"c" * size)
                header = version_2(Introduction(source=source, destination=source, tls=tls))
                self.assertEqual(header.certificate_left_out, not fits)
                parsed = parse_v2(header.data)
                self.assertEqual(proxy_header.CERT in parsed.ssl.tlvs, fits)
                self.assertEqual(parsed.ssl.verify, 0)
                if size == room:
                    self.assertEqual(len(header.data), 65551)

    def test_the_client_byte_and_verify_say_what_happened(self) -> None:
        for has_certificate, resumed, verified, client, verify in (
            (True, False, True, 0x07, 0),
            (True, True, True, 0x05, 0),
            (True, False, False, 0x07, 1),
            (True, True, False, 0x05, 1),
            (False, False, False, 0x01, 1),
            (False, True, False, 0x01, 1),
            (False, False, True, 0x01, 1),
        ):
            ssl = self.header(
                has_certificate=has_certificate, resumed=resumed, verified=verified
            ).ssl
            self.assertEqual((ssl.client, ssl.verify), (client, verify))

    def test_nothing_can_name_a_client_that_nobody_vouches_for(self) -> None:
        for name, value in (("common_name", "alice"), ("certificate", b"der")):
            with self.assertRaisesRegex(ValueError, name):
                TLSPart(has_certificate=True, **{name: value})


class Addresses(SynchronousTestCase):
    """Twisted's addresses."""

    def test_every_kind(self) -> None:
        for address, name in (
            (IPv4Address("TCP", "192.0.2.1", 50000), ALICE),
            (IPv6Address("TCP", "2001:db8:0:0:0:0:0:1", 443), inet("2001:db8::1")),
            (IPv6Address("TCP", "fe80::1%lo", 443), inet("fe80::1%lo")),
            (UNIXAddress(b"/run/door.sock"), Unix(b"/run/door.sock")),
            (UNIXAddress(None), Unix(b"")),
            (HostnameAddress(b"db.example", 443), None),
            (None, None),
        ):
            self.assertEqual(socket_name(address), name, address)


class Introduced(SynchronousTestCase):
    """A whole tunnel in memory."""

    def meet(self, kind: ProxyProtocol, leaf: pki.Leaf | None = None, **options: Any) -> Rig:
        rig = Rig(leaf, introduce=introducer(kind), **options)
        rig.come_in()
        return rig

    def told(self, kind: ProxyProtocol, leaf: pki.Leaf | None = None, **options: Any) -> Parsed:
        return parse_v2(self.meet(kind, leaf, **options).served)

    def test_by_default_the_upstream_gets_the_clients_bytes_alone(self) -> None:
        rig = self.meet(ProxyProtocol.OFF)
        rig.settle(rig.client.write(b"SELECT 1"))
        self.assertEqual(rig.served, b"SELECT 1")

    def test_the_header_comes_first_and_before_the_client_says_anything(self) -> None:
        line = b"PROXY TCP4 192.0.2.1 192.0.2.2 50000 443\r\n"
        self.assertEqual(self.meet(V1).served, line)
        rig = self.meet(V1)
        rig.settle(rig.client.write(b"SELECT 1"))
        self.assertEqual(rig.served, line + b"SELECT 1")

    def test_what_came_with_the_last_flight_comes_behind_the_header(self) -> None:
        for version in VERSIONS.values():
            rig = Rig(introduce=introducer(V2), version=version)
            rig.visit.talk()
            rig.visit.talk(rig.client.write(b"early"))
            rig.attempt.connect()
            rig.settle()
            self.assertEqual(parse_v2(rig.served).payload, b"early")

    def test_a_header_that_the_client_sends_is_payload(self) -> None:
        for kind, parse in ((V1, parse_v1), (V2, parse_v2), (V2_CERT, parse_v2)):
            for forged in (
                b"PROXY TCP4 198.51.100.1 192.0.2.2 1 443\r\n",
                version_2(Introduction(source=inet("198.51.100.1"), destination=DOOR)).data,
            ):
                rig = self.meet(kind)
                rig.settle(rig.client.write(forged + b"hello"))
                parsed = parse(rig.served)
                self.assertEqual(parsed.source.host, "192.0.2.1")
                self.assertEqual(parsed.payload, forged + b"hello")

    def test_the_header_counts_in_no_direction(self) -> None:
        rig = self.meet(V2_CERT)
        rig.settle(rig.client.write(b"12345"))
        rig.back.arrive(b"123")
        rig.settle(rig.client.close_notify())
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual((rig.closed.bytes_in, rig.closed.bytes_out), (5, 3))
        self.assertEqual((rig.closed.client_end, rig.closed.upstream_end), ("close_notify", "fin"))

    def test_a_client_that_ends_without_a_word_is_introduced_all_the_same(self) -> None:
        rig = self.meet(V2)
        rig.settle(rig.client.close_notify())
        self.assertEqual(parse_v2(rig.served).payload, b"")
        self.assertIsNotNone(rig.back.fin)
        rig.back.arrive(b"the answer")
        rig.back.arrive(None)
        rig.settle()
        self.assertEqual(bytes(rig.client.received), b"the answer")
        self.assertTrue(rig.client.ended)
        self.assertEqual(rig.closed.bytes_in, 0)

    def test_an_upstream_that_hangs_up_on_the_header_resets_nobody_before_its_end(self) -> None:
        rig = self.meet(V2)
        rig.back.arrive(b"what is this?")
        rig.back.arrive(None)
        rig.settle(rig.client.close_notify())
        self.assertEqual(bytes(rig.client.received), b"what is this?")
        self.assertEqual((rig.closed.client_end, rig.closed.upstream_end), ("close_notify", "fin"))

    def test_without_a_header_the_upstream_is_not_even_dialled(self) -> None:
        # What the client sends first would pass for it.
        def fails(session: EstablishedSession) -> bytes:
            raise RuntimeError("no")

        rig = Rig(introduce=fails)
        rig.come_in(connect=False)
        self.assertEqual(rig.upstream.dials, [])
        rig.clock.advance(0)
        self.assertTrue(rig.wire.aborted)
        self.assertEqual(rig.closed.upstream_end, "failed")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_nothing_of_it_is_kept_for_an_idle_client(self) -> None:
        rig = self.meet(V2_CERT)
        self.assertEqual(rig.tunnel._header, b"")
        self.assertNotIn("_header", vars(rig.tunnel))

    # What stands in it ------------------------------------------------------------------------

    def test_version_2_has_the_name_that_was_asked_for_and_the_id_of_the_events(self) -> None:
        client = MemoryClient(pki.client(), sni=b"db.example.com")
        rig = self.meet(V2, client=client)
        parsed = parse_v2(rig.served)
        self.assertEqual(parsed.tlvs[proxy_header.AUTHORITY], b"db.example.com")
        self.assertEqual(parsed.tlvs[proxy_header.UNIQUE_ID].decode(), rig.events[0].connection.id)
        self.assertEqual(
            set(parsed.tlvs), {proxy_header.AUTHORITY, proxy_header.UNIQUE_ID, proxy_header.CRC32C}
        )
        # The receive buffer of nginx before 1.23.3; a longer header is refused there.
        self.assertLessEqual(parsed.size, 107)

    def test_an_odd_server_name_is_not_passed_on(self) -> None:
        for name in (b"db\\example", b"db\nexample", b"db\x7fexample", "dätenbank".encode()):
            rig = self.meet(V2, client=MemoryClient(pki.client(), sni=name))
            self.assertNotIn(proxy_header.AUTHORITY, parse_v2(rig.served).tlvs, name)

    def test_a_verified_client_is_named_with_what_was_negotiated(self) -> None:
        for version, name in ((TLS_1_2, b"TLSv1.2"), (TLS_1_3, b"TLSv1.3")):
            rig = self.meet(V2_TLS, version=version)
            ssl = parse_v2(rig.served).ssl
            self.assertEqual((ssl.client, ssl.verify), (0x07, 0))
            connection = rig.client.connection
            group = connection.get_group_name()
            expected = {
                proxy_header.VERSION: name,
                proxy_header.CN: b"alice",
                proxy_header.CIPHER: (connection.get_cipher_name() or "").encode(),
                proxy_header.SIG_ALG: b"ecdsa-with-SHA256",
                proxy_header.KEY_ALG: b"EC256",
                proxy_header.GROUP: (group or "").encode(),
            }
            if version == TLS_1_3:
                expected[proxy_header.SIG_SCHEME] = b"ecdsa_secp256r1_sha256"
            self.assertEqual(ssl.tlvs, expected)

    def test_the_certificate_is_given_only_where_it_is_asked_for(self) -> None:
        leaf = pki.client()
        self.assertNotIn(proxy_header.CERT, self.told(V2_TLS, leaf).ssl.tlvs)
        ssl = self.told(V2_CERT, leaf).ssl
        self.assertEqual(ssl.tlvs[proxy_header.CERT], leaf.der)
        self.assertEqual(ssl.tlvs[proxy_header.CN], b"alice")

    def test_the_servers_key_is_named_as_haproxy_and_nginx_name_it(self) -> None:
        authority = pki.authority()
        for key, key_alg, scheme_1_3, scheme_1_2 in (
            (pki.rsa_key(), b"RSA2048", None, None),
            (ec.generate_private_key(ec.SECP384R1()), b"EC384", b"ecdsa_secp384r1_sha384", None),
            (ed25519.Ed25519PrivateKey.generate(), None, b"ed25519", b"ed25519"),
            (ed448.Ed448PrivateKey.generate(), None, b"ed448", b"ed448"),
        ):
            server = authority.issue("localhost", san=["localhost"], key=key)
            for version, scheme in ((TLS_1_3, scheme_1_3), (TLS_1_2, scheme_1_2)):
                context = door_context(server=server)
                tlvs = self.told(V2_TLS, context=context, version=version).ssl.tlvs
                self.assertEqual(tlvs.get(proxy_header.KEY_ALG), key_alg)
                self.assertEqual(tlvs.get(proxy_header.SIG_SCHEME), scheme)
                self.assertEqual(tlvs[proxy_header.SIG_ALG], b"ecdsa-with-SHA256")

    def test_a_client_that_nobody_vouches_for_is_not_named(self) -> None:
        for strategy in (
            VerifyStrategy.OBSERVE,
            VerifyStrategy.REQUEST,
            VerifyStrategy.REQUIRE_ANY,
        ):
            context = door_context(verify=strategy)
            ssl = self.told(V2_CERT, pki.foreign_client("root"), context=context).ssl
            self.assertEqual(ssl.client, 0x07, "a certificate was shown")
            self.assertNotEqual(ssl.verify, 0)
            self.assertNotIn(proxy_header.CN, ssl.tlvs)
            self.assertNotIn(proxy_header.CERT, ssl.tlvs)
            self.assertIn(proxy_header.VERSION, ssl.tlvs)

    def test_a_client_without_a_certificate_says_so(self) -> None:
        for version in VERSIONS.values():
            context = door_context(verify=VerifyStrategy.REQUEST)
            client = MemoryClient(None, version)
            ssl = self.told(V2_CERT, context=context, client=client).ssl
            self.assertEqual((ssl.client, ssl.verify), (0x01, 1))

    def test_observe_names_those_whom_it_would_let_in_anyway(self) -> None:
        context = door_context(verify=VerifyStrategy.OBSERVE)
        ssl = self.told(V2_TLS, context=context).ssl
        self.assertEqual((ssl.verify, ssl.tlvs[proxy_header.CN]), (0, b"alice"))

    def test_a_resumed_session_has_shown_its_certificate_before(self) -> None:
        for version in VERSIONS.values():
            context = door_context(resumption=True)
            shared = client_context(pki.client(), version)
            first = MemoryClient(context=shared)
            self.assertEqual(self.told(V2_TLS, context=context, client=first).ssl.client, 0x07)
            again = MemoryClient(context=shared, session=first.connection.get_session())
            rig = self.meet(V2_CERT, context=context, client=again)
            self.assertTrue(rig.events[0].tls.resumed)  # type: ignore[union-attr]
            ssl = parse_v2(rig.served).ssl
            self.assertEqual((ssl.client, ssl.verify), (0x05, 0))
            self.assertEqual(ssl.tlvs[proxy_header.CN], b"alice")
            self.assertEqual(ssl.tlvs[proxy_header.CERT], pki.client().der)
            self.assertNotIn(proxy_header.SIG_SCHEME, ssl.tlvs, "nothing was signed")

    def test_a_certificate_that_does_not_fit_is_left_out_and_logged(self) -> None:
        said: list[Any] = []
        self.patch(proxy_protocol, "_LONGEST", 800)
        globalLogPublisher.addObserver(said.append)
        self.addCleanup(globalLogPublisher.removeObserver, said.append)
        names = [x509.DNSName(f"host-{number}.{'long.' * 6}example.com") for number in range(20)]
        long = pki.authority().issue("alice", san=names)
        rig = self.meet(V2_CERT, long)
        ssl = parse_v2(rig.served).ssl
        self.assertNotIn(proxy_header.CERT, ssl.tlvs)
        self.assertEqual((ssl.verify, ssl.tlvs[proxy_header.CN]), (0, b"alice"))
        (warning,) = [one for one in said if "too long" in (one.get("log_format") or "")]
        self.assertEqual(warning["id"], rig.events[0].connection.id)
