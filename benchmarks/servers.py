"""The servers that are compared: how each is found, configured alike and started.

Each runs one worker, verifies its clients, has resumption switched off, sets TCP_NODELAY, and
where it can, writes about one line per connection to a file, as mtlstunnel does. All else is left
as the server's makers chose it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import attrs

from benchmarks.certificates import Credentials

OURS = "mtlstunnel"
BARE = "bare"
CHECKOUT = Path(__file__).resolve().parent.parent

_SBIN = ("/usr/local/sbin", "/usr/sbin", "/sbin")
_VERSION_SECONDS = 30
_ASK_VERSIONS = """
import platform, twisted, OpenSSL.SSL
print("Python", platform.python_version(), "Twisted", twisted.__version__, end=" ")
print(OpenSSL.SSL.SSLeay_version(OpenSSL.SSL.SSLEAY_VERSION).decode())
"""


@attrs.frozen
class Place:
    """Where one server listens, what it serves, and where its files go."""

    port: int
    upstream_port: int
    credentials: Credentials
    directory: Path

    def write(self, name: str, text: str) -> Path:
        """Write a configuration file.

        :param name: the file's name
        :param text: its content
        :return: its path
        """
        path = self.directory / name
        path.write_text(text)
        return path


@attrs.frozen
class Server:
    """A server that is there to be measured."""

    name: str
    version: str
    command: Callable[[Place], list[str]]


@attrs.frozen
class Absent:
    """A server that cannot be measured here."""

    name: str
    reason: str


def find_mtlstunnel(options: Sequence[str] = ()) -> Server | Absent:
    """The checkout that this package lies in, run by the twistd beside this Python.

    :param options: more of them
    """
    twistd = Path(sys.executable).parent / "twistd"
    if not twistd.exists():
        return Absent(OURS, f"no {twistd}; run this with a Python that has Twisted")
    plugins = _output([str(twistd), "--help"])
    if not re.search(rf"^\s+{OURS}\s", plugins, re.MULTILINE):
        return Absent(OURS, f"{twistd} --help does not list it in {CHECKOUT}")
    parts = "import sys, twisted; from OpenSSL.SSL import SSLeay_version as v;"
    parts += (
        "print('Python', sys.version.split()[0], 'Twisted', twisted.__version__, v(0).decode())"
    )
    described = _output([sys.executable, "-c", parts])
    revision = _output(["git", "describe", "--always", "--dirty"]) or "uncommitted"

    def command(place: Place) -> list[str]:
        return [
            str(twistd),
            "-n",
            "--pidfile=",
            OURS,
            f"--port=127.0.0.1:{place.port}",
            f"--cas={place.credentials.cas}",
            f"--cert={place.credentials.server_cert}",
            f"--key={place.credentials.server_key}",
            f"--upstream=127.0.0.1:{place.upstream_port}",
            *options,
        ]

    return Server(OURS, f"{revision.splitlines()[0]} on {described.strip()}", command)


def find_nginx() -> Server | Absent:
    """nginx with its stream module, built in or loadable."""
    program = _program("nginx")
    if program is None:
        return Absent("nginx", "not installed")
    build = _output([program, "-V"])
    load_module = ""
    if "--with-stream=dynamic" in build:
        folder = re.search(r"--modules-path=(\S+)", build)
        module = Path(folder.group(1) if folder else "modules") / "ngx_stream_module.so"
        if not module.exists():
            return Absent("nginx", f"its stream module {module} is not installed")
        load_module = f"load_module {module};"
    elif "--with-stream" not in build:
        return Absent("nginx", "built without its stream module")

    def command(place: Place) -> list[str]:
        files = place.credentials
        configuration = place.write(
            "nginx.conf",
            f"""
{load_module}
daemon off;
pid {place.directory}/nginx.pid;
error_log stderr error;
worker_processes 1;
events {{ worker_connections 16384; }}
stream {{
    log_format line '$remote_addr [$time_local] $status $bytes_sent $ssl_client_s_dn';
    access_log {place.directory}/nginx-access.log line;
    server {{
        listen 127.0.0.1:{place.port} ssl backlog=1024;
        tcp_nodelay on;
        ssl_certificate {files.server_cert};
        ssl_certificate_key {files.server_key};
        ssl_client_certificate {files.cas};
        ssl_verify_client on;
        ssl_protocols TLSv1.2 TLSv1.3;
        ssl_session_cache off;
        ssl_session_tickets off;
        ssl_conf_command NumTickets 0;
        proxy_pass 127.0.0.1:{place.upstream_port};
    }}
}}
""",
        )
        return [program, "-p", str(place.directory), "-e", "stderr", "-c", str(configuration)]

    return Server("nginx", _described(build, r"nginx/(\S+)"), command)


def find_haproxy() -> Server | Absent:
    """HAProxy in mode tcp."""
    program = _program("haproxy")
    if program is None:
        return Absent("haproxy", "not installed")

    def command(place: Place) -> list[str]:
        files = place.credentials
        configuration = place.write(
            "haproxy.cfg",
            f"""
global
    nbthread 1
    maxconn 8192
    tune.ssl.cachesize 0
    log stdout format raw local0
defaults
    mode tcp
    log global
    option tcplog
    timeout connect 10s
    timeout client 10m
    timeout server 10m
frontend door
    bind 127.0.0.1:{place.port} ssl crt {files.server_pem} ca-file {files.cas} verify required \
no-tls-tickets ssl-min-ver TLSv1.2
    default_backend service
backend service
    server upstream 127.0.0.1:{place.upstream_port}
""",
        )
        return [program, "-db", "-f", str(configuration)]

    return Server("haproxy", _described(_output([program, "-vv"]), r"version (\d\S*)"), command)


def find_stunnel() -> Server | Absent:
    """stunnel, which serves every connection on a thread of its own."""
    program = _program("stunnel")
    if program is None:
        return Absent("stunnel", "not installed")

    def command(place: Place) -> list[str]:
        files = place.credentials
        configuration = place.write(
            "stunnel.conf",
            f"""
foreground = quiet
syslog = no
pid =
output = {place.directory}/stunnel-connections.log
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
[door]
accept = 127.0.0.1:{place.port}
connect = 127.0.0.1:{place.upstream_port}
cert = {files.server_cert}
key = {files.server_key}
CAfile = {files.cas}
verifyChain = yes
requireCert = yes
sessionResume = no
options = NO_TICKET
config = NumTickets:0
sslVersionMin = TLSv1.2
""",
        )
        return [program, str(configuration)]

    version = _described(_output([program, "-version"]), r"stunnel (\d\S*)")
    return Server("stunnel", version, command)


def find_hitch() -> Server | Absent:
    """Hitch with one worker."""
    program = _program("hitch")
    if program is None:
        return Absent("hitch", "not installed")

    def command(place: Place) -> list[str]:
        files = place.credentials
        configuration = place.write(
            "hitch.conf",
            f"""
frontend = "[127.0.0.1]:{place.port}"
backend = "[127.0.0.1]:{place.upstream_port}"
pem-file = "{files.server_pem}"
client-verify = required
client-verify-ca = "{files.cas}"
tls-protos = TLSv1.2 TLSv1.3
workers = 1
backlog = 1024
daemon = off
syslog = off
""",
        )
        # Hitch has no option against tickets, but the OpenSSL in it can be told.
        no_tickets = place.write(
            "hitch-openssl.cnf",
            """
openssl_conf = start
[start]
ssl_conf = ssl
[ssl]
system_default = defaults
[defaults]
Options = -SessionTicket
NumTickets = 0
""",
        )
        # Hitch refuses to work as root.
        user = ["--user=nobody"] if os.geteuid() == 0 else []
        environment = ["env", f"OPENSSL_CONF={no_tickets}"]
        return [*environment, program, f"--config={configuration}", *user]

    return Server("hitch", _described(_output([program, "--version"]), r"hitch (\d\S*)"), command)


def find_bare() -> Server | Absent:
    """The floor for what is written in Python; no peer."""

    def command(place: Place) -> list[str]:
        files = place.credentials
        ports = (str(place.port), str(place.upstream_port))
        pem = (str(files.cas), str(files.server_cert), str(files.server_key))
        return [
            "env",
            f"PYTHONPATH={CHECKOUT}",
            sys.executable,
            "-m",
            "benchmarks.bare",
            *ports,
            *pem,
        ]

    return Server(BARE, "epoll and OpenSSL by Python, and nothing else", command)


FINDERS: dict[str, Callable[[], Server | Absent]] = {
    OURS: find_mtlstunnel,
    "nginx": find_nginx,
    "haproxy": find_haproxy,
    "stunnel": find_stunnel,
    "hitch": find_hitch,
    BARE: find_bare,
}


def _program(name: str) -> str | None:
    """The path of a program, also where an ordinary user's PATH does not look.

    :param name: the program
    """
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", ""), *_SBIN)))


def _output(command: list[str]) -> str:
    """What a command says on both its outputs; nothing if it cannot be run.

    :param command: the program and its arguments
    """
    try:
        done = subprocess.run(
            command,
            cwd=CHECKOUT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_VERSION_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.decode(errors="replace") if done.returncode == 0 else ""


def _described(output: str, pattern: str) -> str:
    """A server's version, and that of the OpenSSL it runs on where it tells.

    :param output: what it says about itself
    :param pattern: how its version looks, in group 1
    """
    version = re.search(pattern, output)
    libraries = re.findall(r"OpenSSL (\d\S*)", output)
    told = [version.group(1).rstrip(",") if version else "unknown version"]
    return " on OpenSSL ".join(told + libraries[-1:])
