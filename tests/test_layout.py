"""The tree, the links, setup.cfg and ARCHITECTURE.md say the same thing."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import offrl

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("agents", "envs", "datasets")


def _modules() -> dict[str, Path]:
    """Import name -> file, of every module in the package's four directories."""
    found = {}
    for top in ("offrl", *LINKED):
        for path in sorted((ROOT / top).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            if top == "offrl" and parts[1] in LINKED:
                continue  # seen through a link
            name = ".".join(p for p in parts if p != "__init__")
            found[name if top == "offrl" else f"offrl.{name}"] = path
    return found


MODULES = _modules()


def _setup() -> configparser.ConfigParser:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )


# -- the tree -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LINKED)
def test_links_lead_to_the_directories(name: str) -> None:
    link = ROOT / "offrl" / name
    assert link.resolve() == ROOT / name, "run: git config core.symlinks true"


def test_datasets_does_not_shadow_hugging_face() -> None:
    assert not (ROOT / "datasets" / "__init__.py").exists()


def test_every_package_is_listed() -> None:
    listed = set(_setup()["options"]["packages"].split())
    found = {
        name if path.name == "__init__.py" else name.rpartition(".")[0]
        for name, path in MODULES.items()
    }
    assert listed == found


def test_every_data_file_is_listed() -> None:
    globs = {k: v.split() for k, v in _setup()["options.package_data"].items()}
    for top in ("offrl", *LINKED):
        package = top if top == "offrl" else f"offrl.{top}"
        for path in (ROOT / top).rglob("*"):
            if not path.is_file() or path.suffix in {".py", ".pyc"}:
                continue
            if top == "offrl" and path.relative_to(ROOT).parts[1] in LINKED:
                continue
            inside = PurePosixPath(path.relative_to(ROOT / top).as_posix())
            # `a/**/*` stands for every file below `a`
            assert any(
                inside.is_relative_to(g.removesuffix("/**/*")) if "**" in g else inside.match(g)
                for g in globs[package]
            ), f"{path.relative_to(ROOT)} would be missing from the wheel"


def _requirements(*extras: str) -> dict[str, Requirement]:
    options = _setup()
    text = options["options"]["install_requires"]
    text += "".join(options["options.extras_require"][extra] for extra in extras)
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def test_the_tested_versions_are_in_the_ranges() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    tested = {canonicalize_name(name): version for name, version in pins.items()}
    for name, requirement in _requirements("test-lm", "dev", "robot", "video").items():
        assert requirement.specifier.contains(tested[name]), name


def test_what_mujoco_environments_need_is_required() -> None:
    """Gymnasium names it in an extra, which the installation of offrl does not ask for."""
    asked = [Requirement(text) for text in metadata.requires("gymnasium") or []]
    needed = {r.name for r in asked if r.marker and r.marker.evaluate({"extra": "mujoco"})}
    needed -= {r.name for r in asked if not r.marker or r.marker.evaluate({"extra": ""})}
    assert {"mujoco", "imageio"} <= needed
    # minari and matplotlib bring the reader of version numbers.
    assert needed - {"packaging"} <= set(_requirements())


def test_every_import_is_declared() -> None:
    """What the package imports is the standard library, itself, or a requirement."""
    requirements = _requirements("robot", "video", "sweep", "wandb")
    declared = {name.replace("-", "_").replace("pillow", "PIL") for name in requirements}
    for module, path in MODULES.items():
        tops = {name.split(".")[0] for name in _imports(path)}
        assert not tops - declared - sys.stdlib_module_names - {"offrl"}, module


def test_version_is_the_same_everywhere() -> None:
    citation = (ROOT / "CITATION.cff").read_text()
    assert f"\nversion: {offrl.__version__}\n" in citation
    assert f"\n## {offrl.__version__}" in (ROOT / "CHANGELOG.md").read_text()


# -- importing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["agents", "envs"])
def test_the_short_spelling_is_refused(name: str) -> None:
    assert f"this package is offrl.{name}" in _python(f"import {name}").stderr


@pytest.mark.parametrize(
    "action",
    [
        "import offrl",
        "import runpy; sys.argv = ['offrl', '--help']; runpy.run_module('offrl', alter_sys=True, "
        "run_name='__main__')",
    ],
    ids=["import", "help"],
)
def test_nothing_heavy_is_loaded_before_it_is_needed(action: str) -> None:
    done = _python(
        "import sys\n"
        f"try:\n    {action}\n"
        "except SystemExit as stop:\n    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'mujoco', 'gymnasium', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    assert done.returncode == 0, done.stderr


def test_the_runtime_needs_no_torch() -> None:
    done = _python("import sys; sys.modules['torch'] = None; import offrl.runtime")
    assert done.returncode == 0, done.stderr


def test_every_lazy_name_exists() -> None:
    for name in offrl.__all__:
        assert getattr(offrl, name) is not None
    assert set(offrl.__all__) <= set(dir(offrl))
    with pytest.raises(AttributeError, match="no attribute 'train_all'"):
        offrl.train_all  # noqa: B018


def test_every_module_imports_without_any_extra() -> None:
    brought = {
        "lm": ["transformers", "tokenizers", "accelerate", "peft", "pyarrow"],
        "robot": ["gymnasium_robotics"],
        "sweep": ["optuna"],
        "video": ["imageio_ffmpeg"],
        "wandb": ["wandb"],
    }
    assert set(brought) == set(_setup()["options.extras_require"]) - {"test", "test-lm", "dev"}
    absent = [name for names in brought.values() for name in names]
    modules = [name for name in MODULES if name != "offrl.__main__"]
    done = _python(
        "import sys, importlib\n"
        f"for name in {absent}: sys.modules[name] = None\n"
        f"for name in {modules}: importlib.import_module(name)\n"
    )
    assert done.returncode == 0, done.stderr


# -- floors -------------------------------------------------------------------------------------


def _floors() -> list[tuple[str, list[str]]]:
    """Name and module patterns of each floor of ARCHITECTURE.md, lowest first."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    block = re.search(r"```floors\n(.*?)```", text, re.DOTALL)
    assert block is not None
    floors: list[tuple[str, list[str]]] = []
    for line in block[1].splitlines():
        words = line.split()
        if line.startswith(" "):
            floors[-1][1].extend(words)
        else:
            floors.append((words[0], words[1:]))
    return floors[::-1]


FLOORS = _floors()


def _floor(module: str) -> int:
    """The floor of a module: the one that names it, else the one whose longest pattern it fits."""
    exact = [i for i, (_, names) in enumerate(FLOORS) if module in names]
    patterns = [
        (len(n), i) for i, (_, names) in enumerate(FLOORS) for n in names if fnmatchcase(module, n)
    ]
    fits = exact or [i for length, i in patterns if length == max(patterns)[0]]
    assert len(fits) == 1, f"ARCHITECTURE.md puts {module} on {len(fits)} floors"
    return fits[0]


def _imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module and not node.level, f"{path}: a relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                yield full if full in MODULES else node.module


@pytest.mark.parametrize("module", MODULES)
def test_no_import_leads_up(module: str) -> None:
    here = _floor(module)
    for imported in _imports(MODULES[module]):
        if not imported.startswith("offrl."):
            continue  # `offrl` itself is loaded before any of its modules and holds names, not code
        assert imported in MODULES, f"{module} imports {imported}, which does not exist"
        assert _floor(imported) <= here, (
            f"{module} ({FLOORS[here][0]}) imports {imported} ({FLOORS[_floor(imported)][0]})"
        )


def test_floors_name_only_what_exists() -> None:
    stale = [n for _, names in FLOORS for n in names if not any(fnmatchcase(m, n) for m in MODULES)]
    assert not stale


def test_primitives_know_no_files_and_no_environments() -> None:
    banned = {"gymnasium", "gymnasium_robotics", "h5py", "minari", "mujoco", "stable_baselines3"}
    for module, path in MODULES.items():
        if FLOORS[_floor(module)][0] == "primitives":
            assert not {i.split(".")[0] for i in _imports(path)} & banned, module


AGENTS = [m for m in MODULES if m.startswith("offrl.agents.")]


@pytest.mark.parametrize("module", AGENTS)
def test_no_two_agents_import_each_other(module: str) -> None:
    assert not {m for m in _imports(MODULES[module]) if m.startswith("offrl.agents")}


def test_the_machinery_names_no_agent() -> None:
    names = {m.rpartition(".")[2] for m in AGENTS}
    for module in AGENTS:
        tree = ast.parse(MODULES[module].read_text())
        names |= {n.name for n in tree.body if isinstance(n, ast.ClassDef)}
    names -= {"act"}  # which is what every policy does; its class is looked for all the same
    pattern = re.compile(rf"\b({'|'.join(sorted(names))})\b")
    for module in MODULES:
        if FLOORS[_floor(module)][0] == "machinery":
            found = pattern.search(MODULES[module].read_text())
            assert found is None, f"{module} says {found and found[0]}"
