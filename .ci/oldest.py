"""Prints pip constraints that hold what setup.cfg requires to the lower bounds it states."""

import configparser
import re
import sys

setup = configparser.ConfigParser(interpolation=None)
setup.read("setup.cfg", encoding="utf-8")
for requirement in setup["options"]["install_requires"].split("\n"):
    if not requirement.strip():
        continue
    match = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?>=([\d.]+)(,[^;]*)?(;.*)?", requirement.strip())
    if match is None:
        sys.exit(f"setup.cfg: no lower bound to test in {requirement!r}")
    print(f"{match[1]}=={match[2]}.*")
