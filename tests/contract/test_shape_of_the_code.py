"""The shape of the code: one meaning per name, small files and functions, plain docstrings, no import circles, and a
glossary and a layout that are up to date. Everything is read from the source; nothing is imported."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CONCEPTS, EXTENDING = ROOT / "docs" / "concepts.md", ROOT / "docs" / "extending.md"
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES, MAX_NINTH_DECILE = 80, 25
SMALL_MODULE_LINES, MAX_SMALL_MODULES = 60, 18
RIDDLES, MAX_RIDDLES = ("Of", "What", "Those", "That", "Whether"), 12
MIN_GLOSSARY = 30

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def sources() -> dict[str, str]:
    """The package's files by their path from the root."""
    files = sorted((ROOT / "raystitch").rglob("*.py"))
    return {file.relative_to(ROOT).as_posix(): file.read_text() for file in files}


@cache
def trees() -> dict[str, ast.Module]:
    return {path: ast.parse(text) for path, text in sources().items()}


def listed(offenders: list[str]) -> str:
    return "\n  " + "\n  ".join(sorted(offenders))


@cache
def public_classes() -> dict[str, list[str]]:
    """Name -> the files that define it. The client is a folder to copy out, with names of its own."""
    found: dict[str, list[str]] = defaultdict(list)
    for path, tree in trees().items():
        if not path.startswith("raystitch/client/"):
            for node in tree.body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    found[node.name].append(path)
    return found


def test_no_two_public_classes_share_a_name() -> None:
    twice = [f"{name}: {', '.join(paths)}" for name, paths in public_classes().items() if len(paths) > 1]
    assert not twice, f"a class name has one meaning; rename all but one of each:{listed(twice)}"


@pytest.mark.parametrize("folder", ["raystitch", "tests"])
def test_files_are_short(folder: str) -> None:
    lengths = {file: len(file.read_text().splitlines()) for file in (ROOT / folder).rglob("*.py")}
    long = [f"{file.relative_to(ROOT)}: {count}" for file, count in lengths.items() if count > MAX_FILE_LINES]
    assert not long, f"files of more than {MAX_FILE_LINES} lines are two things; split them by subject:{listed(long)}"


def test_functions_are_short() -> None:
    lengths: list[tuple[int, str]] = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, Function):
                assert node.end_lineno is not None
                lengths.append((node.end_lineno - node.lineno + 1, f"{path}:{node.lineno} {node.name}"))
    lengths.sort()
    long = [f"{where}: {count}" for count, where in lengths if count > MAX_FUNCTION_LINES]
    assert not long, f"functions of more than {MAX_FUNCTION_LINES} lines; split them:{listed(long)}"
    ninth_decile = lengths[9 * len(lengths) // 10][0]
    longest = listed([f"{where}: {count}" for count, where in lengths[-20:]])
    assert ninth_decile <= MAX_NINTH_DECILE, f"1 in 10 functions has {ninth_decile} lines or more; longest:{longest}"


def test_few_modules_are_tiny() -> None:
    counts = {path: len(text.splitlines()) for path, text in sources().items() if not path.endswith("__init__.py")}
    small = [f"{path}: {count}" for path, count in counts.items() if count < SMALL_MODULE_LINES]
    assert len(small) <= MAX_SMALL_MODULES, (
        f"{len(small)} modules have fewer than {SMALL_MODULE_LINES} lines, more than {MAX_SMALL_MODULES}; put what "
        f"belongs together into one:{listed(small)}"
    )


def test_docstrings_begin_with_a_subject_or_a_verb() -> None:
    riddles: list[str] = []
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                doc = ast.get_docstring(node) or "x"
                if doc.split()[0].strip(",:") in RIDDLES:
                    name = getattr(node, "name", "module")
                    riddles.append(f"{path}:{getattr(node, 'lineno', 1)} {name}: {doc.splitlines()[0]}")
    assert len(riddles) <= MAX_RIDDLES, (
        f"{len(riddles)} docstrings begin with one of {', '.join(RIDDLES)}; say who does what, as in 'Return the ..':"
        f"{listed(riddles)}"
    )


def test_imports_have_no_circle() -> None:
    circles = [" <-> ".join(sorted(circle)) for circle in circles_of(import_graph())]
    assert not circles, f"modules import each other; move what they share below both:{listed(circles)}"


def import_graph() -> dict[str, set[str]]:
    """Module -> modules that it imports at any level; imports for type checkers apart. The root only re-exports."""
    modules = {
        path.removesuffix(".py").replace("/", ".").removesuffix(".__init__"): tree for path, tree in trees().items()
    }
    graph: dict[str, set[str]] = {}
    for module, tree in modules.items():
        names = {name for node in run_time(tree) for name in imported(node)}
        found = {name if name in modules else name.rpartition(".")[0] for name in names}
        graph[module] = (found & modules.keys()) - {module, "raystitch"}
    return graph


def run_time(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that run: not those of ``if TYPE_CHECKING:``."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            continue
        yield child
        yield from run_time(child)


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.ImportFrom) and node.module:
        return [f"{node.module}.{alias.name}" for alias in node.names]
    return [alias.name for alias in node.names] if isinstance(node, ast.Import) else []


def circles_of(graph: dict[str, set[str]]) -> list[set[str]]:
    """The sets of modules that reach each other."""
    reached: dict[str, set[str]] = {}
    for start in graph:
        seen, waiting = set[str](), list(graph[start])
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                waiting += graph[module]
        reached[start] = seen
    circles = {frozenset(other for other in seen if module in reached[other]) for module, seen in reached.items()}
    return [set(circle) for circle in circles if circle]


def test_the_search_for_circles_finds_one() -> None:
    assert circles_of({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": {"a"}}) == [{"b", "c"}]
    code = "import x\nif TYPE_CHECKING:\n    import y\ndef f():\n    from raystitch.z import g"
    assert [name for node in run_time(ast.parse(code)) for name in imported(node)] == ["x", "raystitch.z.g"]


def glossary() -> dict[str, str]:
    """Noun -> file, from the table in docs/concepts.md."""
    rows = re.findall(r"^\| `(\w+)` \| .+ \| `([\w/.]+)` \|$", CONCEPTS.read_text(), re.MULTILINE)
    found = {name: f"raystitch/{file}" for name, file in rows}
    assert len(found) == len(rows), "the glossary has a noun twice"
    return found


def test_the_glossary_says_where_every_noun_lives() -> None:
    nouns = glossary()
    assert len(nouns) >= MIN_GLOSSARY, f"docs/concepts.md: {len(nouns)} nouns, at least {MIN_GLOSSARY} are wanted"
    lost = [
        f"{name}: not a class of {file}" for name, file in nouns.items() if file not in public_classes().get(name, [])
    ]
    assert not lost, f"docs/concepts.md names classes that are not there:{listed(lost)}"


def layout() -> dict[str, str]:
    """Folder -> the rest of its line, from the tree in docs/extending.md."""
    (tree,) = re.findall(r"```text\nraystitch/\n(.*?)```", EXTENDING.read_text(), re.DOTALL)
    found, above = dict[str, str](), ["raystitch"]
    for line in tree.splitlines():
        indent, name, rest = re.fullmatch(r"( *)(\S+/?) *(.*)", line).groups()  # pyright: ignore[reportOptionalMemberAccess]
        if name.endswith("/"):
            above[len(indent) // 2 :] = [name.rstrip("/")]
            found["/".join(above)] = rest
    return found


def test_the_layout_has_a_line_for_every_folder() -> None:
    folders = {Path(path).parent.as_posix() for path in sources()} - {"raystitch"}
    lines = layout()
    missing, gone = sorted(folders - lines.keys()), sorted(lines.keys() - folders)
    assert not missing, f"docs/extending.md: the layout lacks {', '.join(missing)}"
    assert not gone, f"docs/extending.md: the layout has folders that are not there: {', '.join(gone)}"
    tests = {test for rest in lines.values() for test in re.findall(r"tests/[\w/.]+", rest)}
    lost = [test for test in tests if not (ROOT / test).exists()]
    assert not lost, f"docs/extending.md: the layout names tests that are not there: {', '.join(lost)}"
    untold = [folder for folder, rest in lines.items() if "tests/" not in rest]
    assert not untold, f"docs/extending.md: no test is named for {', '.join(untold)}"


def test_every_package_says_what_lives_in_it() -> None:
    silent = [path for path, tree in trees().items() if path.endswith("__init__.py") and not ast.get_docstring(tree)]
    assert not silent, f"packages without a docstring:{listed(silent)}"
