"""The house: who imports whom, where private names stand, and what each room says it is for."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

import attrs
from twisted.trial import unittest

import mtlstunnel

PACKAGE = Path(mtlstunnel.__file__).parent
ROOT = PACKAGE.parent

ORDER = (
    ("errors", "limits", "places", "settings"),
    ("trust",),
    ("events",),
    ("clock", "timers"),
    ("tls",),
    ("relay",),
    ("service",),
    ("reverse",),
    ("advice",),
    ("commands",),
    ("testing", "__main__"),
)
"""Each may import from those before it, and the rooms of one row from each other."""

BINDINGS = "mtlstunnel.tls.bindings"
LONGEST = 450


@attrs.frozen
class Import:
    """
    One name that a module imports.

    :ivar line: where
    :ivar module: from where, absolute
    :ivar name: the name taken from it; empty for a plain ``import``
    :ivar at_load: whether it is done when the module is loaded
    :ivar for_types: whether it is done by type checkers only
    """

    line: int
    module: str
    name: str
    at_load: bool
    for_types: bool


@attrs.frozen
class Module:
    """One module of the house, parsed."""

    name: str
    path: Path
    tree: ast.Module = attrs.field(repr=False)
    lines: int

    @property
    def room(self) -> str:
        """The first part below the package; empty for the package itself."""
        return (self.name.split(".") + [""])[1]

    def imports(self) -> Iterator[Import]:
        """Every import in it, wherever it stands."""
        yield from self._imports_in(self.tree.body, at_load=True, for_types=False)

    def _imports_in(
        self, body: list[ast.stmt], *, at_load: bool, for_types: bool
    ) -> Iterator[Import]:
        for node in body:
            if isinstance(node, ast.Import):
                for one in node.names:
                    yield Import(node.lineno, one.name, "", at_load, for_types)
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = self.name.split(".")
                    if self.path.name != "__init__.py":
                        package = package[:-1]
                    package = package[: len(package) - node.level + 1]
                    base = ".".join([*package, *filter(None, [base])])
                for one in node.names:
                    yield Import(node.lineno, base, one.name, at_load, for_types)
            else:
                inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
                types = (
                    isinstance(node, ast.If)
                    and isinstance(node.test, ast.Name)
                    and node.test.id == "TYPE_CHECKING"
                )
                for field in ("body", "orelse", "finalbody", "handlers", "cases"):
                    for child in getattr(node, field, []):
                        nested = child.body if not isinstance(child, ast.stmt) else [child]
                        yield from self._imports_in(
                            nested,
                            at_load=at_load and not inside,
                            for_types=for_types or (types and field == "body"),
                        )


@functools.cache
def modules() -> tuple[Module, ...]:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text("utf-8")
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found.append(Module(name, path, ast.parse(text), text.count("\n")))
    return tuple(found)


def known_names() -> set[str]:
    return {module.name for module in modules()}


def target(one: Import) -> str:
    """The module of the house that an import loads."""
    whole = f"{one.module}.{one.name}"
    return whole if whole in known_names() else one.module


class TheOrderOfTheHouse(unittest.SynchronousTestCase):
    """Each package imports only from those above it."""

    def test_there_is_a_house(self) -> None:
        self.assertGreater(len(modules()), 20)
        self.assertIn(BINDINGS, known_names())

    def test_every_room_has_its_place_in_the_order(self) -> None:
        rooms = {module.room for module in modules()} - {""}
        self.assertLessEqual(rooms, {room for row in ORDER for room in row})

    def test_each_room_imports_only_from_those_above_it(self) -> None:
        rank = {room: number for number, row in enumerate(ORDER) for room in row}
        wrong = []
        for module in modules():
            if not module.room:
                continue
            for one in module.imports():
                if one.module.split(".")[0] != "mtlstunnel":
                    continue
                room = (target(one).split(".") + [""])[1]
                if not room:
                    if (one.module, one.name) != ("mtlstunnel", "__version__"):
                        wrong.append(f"{module.name}:{one.line} imports the whole package")
                elif rank[room] > rank[module.room]:
                    wrong.append(f"{module.name}:{one.line} imports {target(one)}")
        self.assertEqual(wrong, [])

    def test_the_package_itself_loads_nothing_of_the_house_by_itself(self) -> None:
        # Or twistd would load OpenSSL just to list its plugins.
        (top,) = (module for module in modules() if not module.room)
        loaded = [one for one in top.imports() if one.at_load and not one.for_types]
        self.assertEqual([one for one in loaded if one.module.startswith("mtlstunnel")], [])

    def test_no_import_goes_in_a_circle(self) -> None:
        graph = {
            module.name: {
                target(one)
                for one in module.imports()
                if one.at_load and not one.for_types and target(one) in known_names()
            }
            for module in modules()
        }
        done: set[str] = set()

        def visit(name: str, way: tuple[str, ...]) -> None:
            self.assertNotIn(name, way, " -> ".join([*way, name]))
            if name not in done:
                for next_name in sorted(graph[name]):
                    visit(next_name, (*way, name))
                done.add(name)

        for name in sorted(graph):
            visit(name, ())


class WhoMayKnowWhat(unittest.SynchronousTestCase):
    """Twisted, OpenSSL, the reactor, and private names."""

    def foreign(self, *rooms: str) -> Iterator[tuple[Module, Import]]:
        for module in modules():
            if not rooms or module.room in rooms:
                for one in module.imports():
                    yield module, one

    def test_trust_and_advice_know_neither_twisted_nor_openssl(self) -> None:
        for module, one in self.foreign(
            "trust", "advice", "errors", "limits", "settings", "events"
        ):
            top = one.module.split(".")[0]
            self.assertNotIn(top, {"twisted", "OpenSSL", "zope", "service_identity"}, module.name)

    def test_only_tls_imports_openssl(self) -> None:
        for module, one in self.foreign():
            if one.module.split(".")[0] == "OpenSSL":
                self.assertEqual(module.room, "tls", f"{module.name}:{one.line}")

    def test_trust_and_advice_read_only_files_and_never_the_clock(self) -> None:
        # The verdict is pure: it is given the time.
        for module in modules():
            if module.room in ("trust", "advice"):
                for node in ast.walk(module.tree):
                    if isinstance(node, ast.Attribute):
                        self.assertNotIn(node.attr, {"now", "utcnow", "today"}, module.name)
        for module, one in self.foreign("trust", "advice"):
            top = one.module.split(".")[0]
            self.assertNotIn(top, {"socket", "ssl", "time", "os", "subprocess"}, module.name)

    def test_no_module_imports_the_reactor_at_its_top(self) -> None:
        for module, one in self.foreign():
            imported = {one.module, f"{one.module}.{one.name}"}
            if one.at_load and not one.for_types:
                self.assertNotIn("twisted.internet.reactor", imported, module.name)

    def test_only_bindings_uses_private_names_of_others(self) -> None:
        wrong = []
        for module, one in self.foreign():
            if module.name == BINDINGS or one.module.split(".")[0] == "mtlstunnel":
                continue
            for part in (*one.module.split("."), one.name):
                if part.startswith("_") and not part.startswith("__"):
                    wrong.append(f"{module.name}:{one.line} {one.module} {one.name}")
        self.assertEqual(wrong, [])

    def test_private_attributes_are_used_by_their_owners_only(self) -> None:
        # Of self, of cls, of a class or module of ours: never of something handed in by others.
        wrong = []
        for module in modules():
            if module.name == BINDINGS:
                continue
            ours = {node.name for node in ast.walk(module.tree) if isinstance(node, ast.ClassDef)}
            own = {
                node.attr
                for node in ast.walk(module.tree)
                if isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in {"self", "cls"}
            }
            for node in ast.walk(module.tree):
                if not isinstance(node, ast.Attribute) or not node.attr.startswith("_"):
                    continue
                if node.attr.startswith("__") and node.attr.endswith("__"):
                    continue
                by_name = node.value.id if isinstance(node.value, ast.Name) else ""
                if by_name in {"self", "cls", *ours} or node.attr in own:
                    continue
                wrong.append(f"{module.name}:{node.lineno} {ast.unparse(node)}")
        self.assertEqual(wrong, [])


class TheRooms(unittest.SynchronousTestCase):
    """Small rooms that say what they are for."""

    def test_each_module_says_what_it_is_for_in_its_first_line(self) -> None:
        for module in modules():
            text = ast.get_docstring(module.tree)
            self.assertIsNotNone(text, module.name)
            first = (text or "").splitlines()[0]
            self.assertGreater(len(first.split()), 3, module.name)
            self.assertIn(first[-1], ".:", f"{module.name}: {first}")

    def test_no_two_modules_say_the_same(self) -> None:
        said = [(ast.get_docstring(module.tree) or "").splitlines()[0] for module in modules()]
        self.assertEqual(len(set(said)), len(said))

    def test_no_module_wants_a_second_look(self) -> None:
        long = [f"{one.name}: {one.lines}" for one in modules() if one.lines > LONGEST]
        self.assertEqual(long, [])

    def test_twisteds_plugin_folders_belong_to_everybody(self) -> None:
        for folder in (ROOT / "twisted", ROOT / "twisted" / "plugins"):
            if folder.exists():
                self.assertFalse((folder / "__init__.py").exists(), folder)
