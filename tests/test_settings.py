"""Settings: what is understood, and the one line where something is not."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given, settings
from hypothesis import strategies as st
from twisted.trial import unittest

from mtlstunnel.errors import SettingsError
from mtlstunnel.limits import TimeLimits
from mtlstunnel.places import (
    CLIENT_PREFIXES,
    SERVER_PREFIXES,
    Address,
    EndpointString,
    Place,
    parse_listen,
    parse_upstream,
)
from mtlstunnel.settings import (
    AlertPolicy,
    CrlExpired,
    StartTLS,
    TLSVersion,
    TunnelSettings,
    VerdictSettings,
    VerifyStrategy,
    parse_crl_expired,
    seconds,
)

QUICK = settings(derandomize=True, max_examples=1000, deadline=None, database=None)
LISTEN_EXAMPLE = "give 8443, 127.0.0.1:8443, [::1]:8443 or unix:/path"
UPSTREAM_EXAMPLE = "give 5432, 127.0.0.1:5432, db.example:5432 or unix:/path"


class Told(unittest.SynchronousTestCase):
    """What is refused is told in one line."""

    def assertTold(self, line: str, call: Callable[..., object], *args: Any, **more: Any) -> None:
        with self.assertRaises(SettingsError) as caught:
            call(*args, **more)
        self.assertEqual(str(caught.exception), line)
        self.assertTrue(line.isprintable())


class Places(Told):
    """--port and --upstream."""

    def test_what_is_understood_as_an_address(self) -> None:
        for text, host, port in (
            ("443", "", 443),
            ("65535", "", 65535),
            ("0443", "", 443),
            ("127.0.0.1:8443", "127.0.0.1", 8443),
            ("0.0.0.0:443", "0.0.0.0", 443),
            ("[::1]:8443", "::1", 8443),
            ("[::]:443", "::", 443),
            ("[fe80::1%eth0]:443", "fe80::1%eth0", 443),
            ("localhost:443", "localhost", 443),
            ("db-1.example.com.:5432", "db-1.example.com.", 5432),
            ("my_service:80", "my_service", 80),
            ("xn--bcher-kva.example:1", "xn--bcher-kva.example", 1),
        ):
            self.assertEqual(parse_listen(text), Address(host, port), text)
            wanted = Address(host or "127.0.0.1", port)
            self.assertEqual(parse_upstream(text), wanted, text)

    def test_port_0_asks_for_a_free_one_where_it_can_be_listened_on(self) -> None:
        self.assertEqual(parse_listen("0"), Address("", 0))
        self.assertEqual(parse_listen("[::1]:0"), Address("::1", 0))
        for text in ("0", "127.0.0.1:0"):
            self.assertTold(
                f"--upstream {text}: 0 is not a port; give a number from 1 to 65535",
                parse_upstream,
                text,
            )

    def test_what_is_left_to_twisted_for_listening(self) -> None:
        for text in (
            "tcp:443",
            "tcp:port=443:interface=127.0.0.1",
            "tcp6:443:interface=\\:\\:1",
            "unix:/run/mtlstunnel.sock",
            "unix:/run/with space.sock:mode=600",
            "systemd:domain=INET:index=0",
            "haproxy:tcp:443",
            "tls:443:cert=a.pem",
            "ssl:443",
        ):
            self.assertEqual(parse_listen(text), EndpointString(text))

    def test_what_is_left_to_twisted_for_dialling(self) -> None:
        for text in (
            "tcp:db.example:5432",
            "tcp:host=db:port=5432",
            "tcp6:localhost:80",
            "unix:/run/service.sock",
            "tls:db.example:5432",
            "ssl:db.example:5432",
        ):
            self.assertEqual(parse_upstream(text), EndpointString(text))

    def test_plugins_add_prefixes(self) -> None:
        text = "mtls:8443:cas=cas.pem"
        self.assertEqual(parse_listen(text, {*SERVER_PREFIXES, "mtls"}), EndpointString(text))
        self.assertTold(
            f"--port {text!r}: not a port, HOST:PORT or endpoint string; {LISTEN_EXAMPLE}",
            parse_listen,
            text,
        )
        # And one that only clients know does not serve to listen.
        self.assertEqual(parse_upstream("stdio:1", {*CLIENT_PREFIXES, "stdio"}).text, "stdio:1")

    def test_ports_that_are_none(self) -> None:
        for text, digits in (
            ("65536", "65536"),
            ("99999999999999999999999", "99999999999999999999999"),
            ("127.0.0.1:65536", "65536"),
            ("[::1]:70000", "70000"),
        ):
            self.assertTold(
                f"--port {text}: {digits} is not a port; give a number from 0 to 65535",
                parse_listen,
                text,
            )

    def test_addresses_that_are_none(self) -> None:
        for text, said in (
            ("1.2.3.999:443", "1.2.3.999 is not an IPv4 address"),
            ("1.2.3:443", "1.2.3 is not an IPv4 address"),
            ("[::g]:443", "[::g] is not an IPv6 address"),
            ("[127.0.0.1]:443", "[127.0.0.1] is not an IPv6 address"),
            ("[]:443", "[] is not an IPv6 address"),
        ):
            self.assertTold(f"--port {text}: {said}; {LISTEN_EXAMPLE}", parse_listen, text)

    def test_host_names_that_are_none(self) -> None:
        for host in ("-a", "a-", "a..b", "a b", "b\u00fccher", "*", "a" * 64, "/run/x", "a@b"):
            text = f"{host}:443"
            self.assertTold(
                f"--upstream {text!r}: {host!r} is not a host name; {UPSTREAM_EXAMPLE}",
                parse_upstream,
                text,
            )

    def test_what_is_nothing_at_all(self) -> None:
        for text in (
            "",
            " ",
            ":",
            ":443",
            "443 ",
            " 443",
            "+443",
            "-1",
            "1e3",
            "0x1bb",
            "\u0664\u0664\u0663",
            "localhost",
            "localhost:",
            "localhost:https",
            "[::1]",
            "[::1]:",
            "::1",
            "::1:443",
            "http://localhost:80",
            "tcp",
            "nonsense:443:x",
            "/run/service.sock",
        ):
            self.assertTold(
                f"--port {text!r}: not a port, HOST:PORT or endpoint string; {LISTEN_EXAMPLE}",
                parse_listen,
                text,
            )

    def test_what_would_break_the_line(self) -> None:
        for text in ("443\n", "unix:/run/x\nmtlstunnel: fine", "[fe80::1%\n]:443", "a\u202e:1"):
            self.assertTold(
                f"--port {text!r}: has a character that cannot be printed; {LISTEN_EXAMPLE}",
                parse_listen,
                text,
            )

    @QUICK
    @given(st.text() | st.from_regex(r"[\[\]a-z0-9:.%=]{0,20}") | st.from_regex(r"\[.*\]:[0-9]+"))
    @example("tcp:")
    def test_any_text_is_a_place_or_one_line(self, text: str) -> None:
        for parse in (parse_listen, parse_upstream):
            try:
                place: Place = parse(text)
            except SettingsError as error:
                self.assertTrue(str(error).isprintable(), error)
                self.assertIn("; give ", str(error))
                continue
            if isinstance(place, Address):
                self.assertTrue(0 <= place.port <= 65535)
                self.assertEqual(parse(str(place)), place)
            else:
                self.assertEqual(str(place), text)

    def test_how_an_address_is_written(self) -> None:
        for address, text in (
            (Address("", 443), "443"),
            (Address("127.0.0.1", 443), "127.0.0.1:443"),
            (Address("::1", 443), "[::1]:443"),
            (Address("db.example", 443), "db.example:443"),
        ):
            self.assertEqual(str(address), text)

    def test_which_addresses_need_no_look_up(self) -> None:
        for host, is_ip in (("10.0.0.1", True), ("::1", True), ("localhost", False), ("", False)):
            self.assertIs(Address(host, 1).is_ip, is_ip)


class Seconds(Told):
    """Time-outs."""

    def test_numbers_above_zero(self) -> None:
        for text, value in (("10", 10.0), ("0.5", 0.5), ("1e2", 100.0), (".25", 0.25)):
            self.assertEqual(seconds("--connect-timeout", text), value)

    def test_what_is_not_a_time(self) -> None:
        for text in ("", "0", "-1", "nan", "inf", "-inf", "1e10", "10s", "ten", "1,5", "1\n2"):
            self.assertTold(
                f"--connect-timeout {text!r}: give a number of seconds above 0, such as 10 or 0.5",
                seconds,
                "--connect-timeout",
                text,
            )


class ExpiredCrls(Told):
    """--crl-expired."""

    def test_the_words(self) -> None:
        for text, grace in (
            ("refuse", 0.0),
            ("warn", math.inf),
            ("grace=1", 1.0),
            ("grace=86400", 86400.0),
            ("grace=900000000", 9e8),
            ("grace=0.5", 0.5),
        ):
            found = parse_crl_expired("--crl-expired", text)
            self.assertEqual((found.grace, str(found)), (grace, text))
        self.assertEqual(VerdictSettings(cas=CAS).crl_expired, CrlExpired(0.0))

    def test_other_words(self) -> None:
        for text in ("", "Refuse", "ignore", "3600", "warn=1", "a\nb"):
            self.assertTold(
                f"--crl-expired {text!r}: give refuse, warn, or grace=SECONDS such as grace=86400",
                parse_crl_expired,
                "--crl-expired",
                text,
            )
        for number in ("", "0", "-1", "1h", "inf", "nan"):
            self.assertTold(
                f"--crl-expired 'grace={number}': give a number of seconds above 0, such as "
                "grace=86400 for a day",
                parse_crl_expired,
                "--crl-expired",
                f"grace={number}",
            )

    def test_crls_do_not_go_with_a_strategy_that_asks_for_none(self) -> None:
        for verify in (VerifyStrategy.REQUEST, VerifyStrategy.REQUIRE_ANY):
            self.assertTold(
                f"--verify {verify.value} asks nobody for more than a certificate, so --crl would "
                "do nothing; leave it out, or take --verify observe",
                TunnelSettings,
                cas=CAS,
                crl=(Path("crl.pem"),),
                verify=verify,
            )
        TunnelSettings(cas=CAS, crl=(Path("crl.pem"),), verify=VerifyStrategy.OBSERVE)


CAS = (Path("cas.pem"),)


class Tunnels(Told):
    """What is missing or does not go together."""

    def test_only_the_cas_are_required(self) -> None:
        made = TunnelSettings(cas=CAS)
        self.assertEqual(made.listen, (Address("", 443),))
        self.assertEqual(made.upstream, Address("127.0.0.1", 80))
        self.assertEqual(made.domains, ("localhost",))
        self.assertEqual(made.limits, TimeLimits(handshake=10.0, connect=10.0, half_close=60.0))
        self.assertEqual((made.cert, made.key, made.state_dir), (None, None, None))
        self.assertIs(made.min_version, TLSVersion.TLS_1_2)
        self.assertIs(made.max_version, TLSVersion.TLS_1_3)
        self.assertIs(made.alert, AlertPolicy.BAD_CERTIFICATE)

    def test_no_cas_never_means_anybody(self) -> None:
        self.assertTold(
            "--cas is missing; give the PEM file with the CAs whose clients may come in",
            TunnelSettings,
            cas=(),
        )

    def test_nowhere_to_listen(self) -> None:
        self.assertTold(
            "--port is missing; give one such as 443", TunnelSettings, cas=CAS, listen=()
        )

    def test_no_name_for_the_self_made_certificate(self) -> None:
        self.assertTold(
            "--domain is missing; give one such as db.example.com",
            TunnelSettings,
            cas=CAS,
            domains=(),
        )

    def test_a_key_without_its_certificate(self) -> None:
        self.assertTold(
            "--key 'server.key' is given without --cert; give the certificate it belongs to",
            TunnelSettings,
            cas=CAS,
            key=Path("server.key"),
        )
        TunnelSettings(cas=CAS, cert=Path("server.pem"), key=Path("server.key"))
        TunnelSettings(cas=CAS, cert=Path("both.pem"))

    def test_an_upstream_that_is_the_tunnel_itself(self) -> None:
        for listen, upstream in (
            (Address("", 6380), Address("127.0.0.1", 6380)),
            (Address("", 6380), Address("localhost", 6380)),
            (Address("127.0.0.1", 6380), Address("127.0.0.1", 6380)),
            (Address("::1", 6380), Address("::1", 6380)),
        ):
            self.assertTold(
                f"--upstream {upstream}: is where the tunnel itself listens (--port), so it would "
                "connect to itself; give the port of the service behind",
                TunnelSettings,
                cas=CAS,
                listen=(Address("", 443), listen),
                upstream=upstream,
            )
        for listen, upstream in (
            (Address("192.0.2.1", 6380), Address("127.0.0.1", 6380)),
            (Address("", 6380), Address("192.0.2.1", 6380)),
            (Address("", 6380), Address("127.0.0.1", 6379)),
        ):
            TunnelSettings(cas=CAS, listen=(listen,), upstream=upstream)

    def test_versions_in_the_wrong_order(self) -> None:
        self.assertTold(
            "--min-version 1.3 is above --max-version 1.2; swap them or leave one out",
            TunnelSettings,
            cas=CAS,
            min_version=TLSVersion.TLS_1_3,
            max_version=TLSVersion.TLS_1_2,
        )
        for one in TLSVersion:
            TunnelSettings(cas=CAS, min_version=one, max_version=one)

    def test_names_for_the_self_made_certificate(self) -> None:
        good = ("localhost", "db.example.com", "*.example.com", "10.0.0.1", "::1")
        self.assertEqual(TunnelSettings(cas=CAS, domains=good).domains, good)
        for name in ("", "*", "*.", "a b", "a\nb", "https://x", "-x", "x:1", "b\u00fccher", "../x"):
            self.assertTold(
                f"--domain {name!r}: not a host name or IP address; "
                "give one such as db.example.com",
                TunnelSettings,
                cas=CAS,
                domains=("localhost", name),
            )

    def test_settings_do_not_change(self) -> None:
        made = TunnelSettings(cas=CAS)
        with self.assertRaises(AttributeError):
            made.cas = ()  # type: ignore[misc]


class ApplicationProtocols(Told):
    """--alpn and --starttls, also as others than the command give them."""

    def test_names_that_cannot_be(self) -> None:
        for names, line in (
            (("h2", "x", "h2"), "--alpn 'h2': is given twice; leave one out"),
            (("",), "--alpn '': has 0 bytes; give 1 to 255, such as h2"),
            (("é" * 128,), f"--alpn '{'é' * 40}': has 256 bytes; give 1 to 255, such as h2"),
            (("\udcff",), "--alpn '\\udcff': is not UTF-8; give a name such as h2 or postgresql"),
        ):
            self.assertTold(line, TunnelSettings, cas=(Path("ca.pem"),), alpn=names)

    def test_what_is_negotiated(self) -> None:
        for options, negotiated in (
            ({}, ()),
            ({"alpn": ("é" * 127, "h2")}, ("é" * 127, "h2")),
            ({"starttls": StartTLS.POSTGRESQL}, ("postgresql",)),
            ({"starttls": StartTLS.POSTGRESQL, "alpn": ("h2",)}, ("h2",)),
        ):
            made = TunnelSettings(cas=(Path("ca.pem"),), **options)
            self.assertEqual(made.application_protocols, negotiated)
