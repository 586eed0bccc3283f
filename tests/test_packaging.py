"""What a user installs: the wheel holds every file of the package once, however it was built."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
LINKED = ("agents", "envs", "datasets")


def _run(*command: str | Path, cwd: Path) -> str:
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [str(c) for c in command], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _tracked() -> Iterator[Path]:
    """What a commit of this tree would hold."""
    listed = _run("git", "ls-files", "-z", "-co", "--exclude-standard", cwd=ROOT)
    for name in sorted(filter(None, listed.split("\0"))):
        if os.path.lexists(ROOT / name):
            yield Path(name)


def _copy(to: Path) -> Path:
    for name in _tracked():
        (to / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, to / name, follow_symlinks=False)
    return to


def _build(kind: str, tree: Path, out: Path) -> Path:
    _run(
        sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", out, ".", cwd=tree
    )
    [built] = out.iterdir()
    return built


def _contents(wheel: Path) -> dict[str, str]:
    """Path -> sha256 of what a wheel installs, its metadata apart."""
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if ".dist-info/" not in n]
        assert len(names) == len(set(names))
        return {n: hashlib.sha256(archive.read(n)).hexdigest() for n in names}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    return _build("wheel", _copy(folder / "tree"), folder / "out")


def test_the_wheel_holds_every_file_once(wheel: Path) -> None:
    expected = {}
    for path in _tracked():
        if path.parts[0] in ("offrl", *LINKED) and not (ROOT / path).is_symlink():
            inside = path if path.parts[0] == "offrl" else "offrl" / path
            expected[inside.as_posix()] = hashlib.sha256((ROOT / path).read_bytes()).hexdigest()
    contents = _contents(wheel)
    assert contents == expected
    assert "offrl/py.typed" in contents
    assert any(n.startswith("offrl/datasets/shipped/") and n.endswith(".hdf5") for n in contents)


def test_the_sdist_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = _build("sdist", _copy(tmp_path / "tree"), tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    [tree] = (tmp_path / "unpacked").iterdir()
    assert _contents(_build("wheel", tree, tmp_path / "out")) == _contents(wheel)


def test_a_checkout_without_links_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    tree = _copy(tmp_path / "tree")
    for name in LINKED:
        link = tree / "offrl" / name
        target = os.readlink(link)
        link.unlink()
        link.write_text(target)  # what git writes where links are off
    assert _contents(_build("wheel", tree, tmp_path / "out")) == _contents(wheel)


def test_the_installed_wheel_works_outside_the_checkout(wheel: Path, tmp_path: Path) -> None:
    _run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv", cwd=tmp_path)
    python = tmp_path / "venv" / "bin" / "python"
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    _run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of the running interpreter; its own offrl comes second.
    site = Path(
        _run(
            python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=tmp_path
        ).strip()
    )
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")

    where = _run(python, "-c", "import offrl; print(offrl.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(site)
    command = python.with_name("offrl")
    assert "usage: offrl" in _run(command, "--help", cwd=tmp_path)
    code = (
        "from offrl.datasets.loading import load_dataset, shipped_names\n"
        "print(*(load_dataset(name).num_steps for name in shipped_names()))"
    )
    sizes = [int(n) for n in _run(python, "-c", code, cwd=tmp_path).split()]
    assert sizes and min(sizes) > 0
