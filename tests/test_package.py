"""The house rules that no single room can keep: floors, light imports, pinned versions."""

import ast
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import marvel_jax

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "marvel_jax"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

FLOORS = {
    "data": 1,
    "models": 1,
    "losses": 1,
    "parallel": 2,
    "training": 3,
    "retrieval": 3,
    "collection": 4,
    "recipes": 5,
    "plan": 5,
    "serving": 5,
    "bench": 5,
    "studies": 6,
    "cli_bench": 7,
    "cli_data": 7,
    "cli_errors": 7,
    "cli_plan": 7,
    "cli_retrieval": 7,
    "cli_run": 7,
    "cli_search": 7,
    "cli_serving": 7,
    "cli_studies": 7,
    "cli_training": 8,
    "cli": 9,
}
"""A room imports only rooms on floors below it. What is not named here is the ground floor."""

BARE_ROOMS = ("marvel_jax.models", "marvel_jax.losses", "marvel_jax.parallel")
BARE_MODULES = ("marvel_jax.training.step",)
# The doors to other people's files, not to the device.
BARE_EXEMPT = {"marvel_jax.models.hub", "marvel_jax.models.peft", "marvel_jax.models.tensors"}
BARE_ALLOWED = {"jax", "flax", "optax", "numpy"}

MAX_LINES = 400
LONG_FILES: dict[str, str] = {}
"""Files over the limit, each with its reason."""


@cache
def modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


def imports(path: Path) -> set[str]:
    """Every dotted name imported anywhere in a file, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}, line {node.lineno}: write the import in full"
            assert node.module is not None
            # `from package import module` imports the module; `from module import name` does not.
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if full in modules() else node.module)
    return found


def bare() -> list[str]:
    chosen = (m for m in modules() if m.startswith(BARE_ROOMS) or m in BARE_MODULES)
    return [m for m in chosen if m not in BARE_EXEMPT]


def floor(module: str) -> int:
    return FLOORS.get(module.split(".")[1], 0) if "." in module else 0


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def test_a_room_imports_only_rooms_below_it():
    offences = [
        f"{module} (floor {floor(module)}) imports {name} (floor {floor(name)})"
        for module, path in modules().items()
        for name in sorted(imports(path))
        if module != "marvel_jax" and name.startswith("marvel_jax.")
        if floor(name) >= floor(module) and floor(name) > 0 and room(name) != room(module)
    ]
    assert not offences, "\n".join(offences)


def test_every_folder_of_the_package_has_a_floor():
    folders = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").is_file()}
    assert folders <= set(FLOORS)


def test_no_two_files_import_each_other():
    # The package's face names rooms for type checkers and imports them on first use only.
    graph = {
        module: {name for name in imports(path) if name in modules() and name != module}
        for module, path in modules().items()
        if module != "marvel_jax"
    }
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module in done:
            return
        for name in sorted(graph.get(module, ())):
            visit(name, (*trail, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def third_party(module: str) -> set[str]:
    tops = {name.split(".")[0] for name in imports(modules()[module])}
    return tops - sys.stdlib_module_names - {"marvel_jax"}


def test_no_file_imports_torch_or_tensorflow():
    forbidden = {"torch", "torchvision", "tensorflow"}
    assert [m for m in modules() if third_party(m) & forbidden] == []


def test_what_runs_on_the_device_imports_only_jax_flax_optax_and_numpy():
    assert {m: third_party(m) - BARE_ALLOWED for m in bare() if third_party(m) - BARE_ALLOWED} == {}


def test_data_does_not_import_jax():
    forbidden = {"jax", "jaxlib", "flax", "optax"}
    assert [m for m in modules() if room(m) == "data" and third_party(m) & forbidden] == []


def run_python(code: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout


HEAVY = "jax jaxlib flax optax torch tensorflow transformers tensorflow_datasets grain scann numpy"
REPORT = f"print('loaded:', *sorted(set(sys.modules) & set('{HEAVY}'.split())))"


def test_importing_the_package_loads_nothing_heavy():
    assert run_python(f"import sys, marvel_jax; {REPORT}").strip() == "loaded:"


@pytest.mark.parametrize("command", ["", "quickstart", "train", "search", "data emoji"])
def test_help_loads_nothing_heavy_and_says_something(command):
    code = f"""
import sys
from marvel_jax import cli
try:
    cli.main([*{command!r}.split(), "--help"])
except SystemExit as stop:
    assert not stop.code, stop.code
{REPORT}
"""
    *help_lines, loaded = run_python(code).strip().splitlines()
    # numpy is what a type checker of arguments may look at; it is light.
    assert set(loaded.split()[1:]) <= {"numpy"}
    assert any("usage" in line for line in help_lines)


def test_importing_every_module_starts_no_device():
    """A backend that is up before `jax.distributed.initialize` makes multi-host runs fail."""
    code = f"""
import importlib
for name in {sorted(modules())!r}:
    importlib.import_module(name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    assert run_python(code).split()[-1] == "False"


def test_what_runs_on_the_device_is_importable_on_a_bare_machine():
    """Of the base install only jax, flax, optax and numpy (and what they bring) are there."""
    code = f"""
import importlib, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        absent = {{"transformers", "tokenizers", "safetensors", "huggingface_hub", "grain", "PIL",
                  "tensorflow_datasets", "array_record", "scann", "tyro", "emoji", "jinja2"}}
        if name.split(".")[0] in absent:
            raise ImportError(f"{{name}} is not on a bare machine")
sys.meta_path.insert(0, Absent())
for name in {bare()!r}:
    importlib.import_module(name)
"""
    run_python(code)


def test_a_file_can_be_read_in_one_sitting():
    lines = {
        path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in modules().values()
    }
    assert {name: n for name, n in lines.items() if n > MAX_LINES and name not in LONG_FILES} == {}


def test_the_version_is_the_same_everywhere():
    version = PYPROJECT["project"]["version"]
    assert marvel_jax.__version__ == version
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_every_public_name_of_the_package_resolves():
    for name in marvel_jax.__all__:
        assert getattr(marvel_jax, name).__name__ == name


# --- versions ----------------------------------------------------------------------------------


@cache
def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def pins(python: str) -> dict[str, str]:
    """Package to version on Linux x86-64 for a Python version; a package must have one pin."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.1",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
        "implementation_name": "cpython",
        "os_name": "posix",
    }
    found: dict[str, str] = {}
    for requirement in constraints():
        if requirement.marker is None or requirement.marker.evaluate(environment):
            assert requirement.name not in found, f"{requirement.name} is pinned twice on {python}"
            found[canonicalize_name(requirement.name)] = str(requirement.specifier)
    return found


def test_constraints_are_exact_pins_without_any_address():
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert "://" not in text and " @ " not in text and "--" not in text
    assert all(re.fullmatch(r"==[^,*]+", str(r.specifier)) for r in constraints())


@pytest.mark.parametrize(
    ("python", "jax", "flax"),
    [("3.11", "==0.10.2", "==0.12.8"), ("3.13", "==0.12.0.1", "==0.12.12")],
)
def test_both_pairs_are_pinned_with_all_that_the_package_asks_for(python, jax, flax):
    pinned = pins(python)
    assert (pinned["jax"], pinned["flax"]) == (jax, flax)
    assert pinned["jaxlib"] == pinned["jax"]
    project = PYPROJECT["project"]
    groups = [project["dependencies"], *project["optional-dependencies"].values()]
    for requirement in (Requirement(line) for group in groups for line in group):
        pin = pinned[canonicalize_name(requirement.name)].removeprefix("==")
        assert requirement.specifier.contains(pin), f"{requirement} excludes the pinned {pin}"


def test_torch_is_no_part_of_the_base_install():
    names = {canonicalize_name(Requirement(d).name) for d in PYPROJECT["project"]["dependencies"]}
    assert not names & {"torch", "tensorflow", "peft", "clu", "wandb"}
