"""The package as installed, its pins, and the README's commands."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from importlib import metadata, resources
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.checkout import ROOT
from tests.support.processes import python

EXTRAS = (
    *("translate", "train", "evaluate", "inception", "export", "tiff", "video", "digits"),
    *("docs", "test", "bench", "dev"),
)


# ---- installation


def test_version_stands_in_one_place() -> None:
    version = metadata.version("fastunit")
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    assert re.findall(r'version="([^"]+)"', setup) == [version]
    sources = [*(ROOT / "fastunit").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
    repeats = [path for path in sources if f'"{version}"' in path.read_text(encoding="utf-8")]
    assert sources and not repeats


def test_imports_from_any_directory(tmp_path: Path) -> None:
    code = (
        "import fastunit.kernels; from importlib.resources import files\n"
        "print(fastunit.kernels.__file__); print(files('fastunit.configs') / 'demo.yaml')"
    )
    # -I keeps the current directory and PYTHONPATH off the search path.
    done = python("-I", "-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    kernels, demo = map(Path, done.stdout.splitlines())
    assert kernels.read_bytes() == (ROOT / "kernels" / "__init__.py").read_bytes()
    assert demo.read_bytes() == (ROOT / "configs" / "demo.yaml").read_bytes()


def test_every_configuration_is_packaged() -> None:
    packaged = {item.name for item in resources.files("fastunit.configs").iterdir()}
    on_disk = {path.name for path in (ROOT / "configs").glob("*.yaml")}
    assert "demo.yaml" in on_disk and on_disk <= packaged


def test_wheel_holds_kernels_and_configurations(tmp_path: Path) -> None:
    tree, out = tmp_path / "tree", tmp_path / "out"
    tree.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    for name in ("fastunit", "kernels", "configs"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*build, "-w", str(out), str(tree)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = out.glob("fastunit-*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    wanted = {
        f"fastunit/{path.relative_to(tree / 'fastunit')}" for path in _python(tree, "fastunit")
    }
    wanted |= {f"fastunit/{path.relative_to(tree)}" for path in _python(tree, "kernels")}
    wanted.add("fastunit/py.typed")
    wanted |= {f"fastunit/configs/{path.name}" for path in (tree / "configs").glob("*.yaml")}
    assert wanted <= held
    assert any(name.endswith("licenses/LICENSE") for name in held)


def _python(tree: Path, folder: str) -> list[Path]:
    return list((tree / folder).rglob("*.py"))


# ---- pins


@pytest.fixture(scope="module")
def pins() -> dict[str, str]:
    """Return constraints.txt as canonical name -> version."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.lstrip().startswith("#")]
    found = [re.fullmatch(r"([\w.-]+)==([\w.+!]+)(?: ; .+)?", line) for line in lines]
    assert all(found), [line for line, match in zip(lines, found, strict=True) if not match]
    names = [canonicalize_name(match[1]) for match in found if match]
    assert len(set(names)) == len(names)
    return dict(zip(names, (match[2] for match in found if match), strict=True))


def test_constraints_pin_every_requirement(pins: dict[str, str]) -> None:
    requirements = [Requirement(text) for text in metadata.requires("fastunit") or ()]
    assert set(metadata.metadata("fastunit").get_all("Provides-Extra")) == set(EXTRAS)
    for requirement in requirements:
        name = canonicalize_name(requirement.name)
        assert name in pins, f"constraints.txt does not pin {name}"
        assert requirement.specifier.contains(pins[name]), (str(requirement), pins[name])


def test_constraints_pin_what_the_requirements_bring_along(pins: dict[str, str]) -> None:
    closure = _installed_closure("fastunit", EXTRAS)
    assert {"torch", "sympy", "mpmath"} <= closure
    assert closure - {"fastunit"} <= set(pins)


def test_constraints_hold_the_agreed_versions(pins: dict[str, str]) -> None:
    assert pins["torch"] == "2.13.0"
    assert pins["triton"] == "3.7.1"
    assert pins["nvidia-dali-cuda130"] == "2.4.0"
    assert pins["numpy"] == "2.2.6"  # the one that Python 3.10 to 3.13 all have; below 2.4


def _installed_closure(name: str, extras: tuple[str, ...]) -> set[str]:
    """Return the canonical names of all that `name` needs here, as far as it is installed."""
    seen: set[tuple[str, str]] = set()
    todo = [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while todo:
        node = todo.pop()
        if node in seen:
            continue
        seen.add(node)
        try:
            needs = metadata.requires(node[0]) or ()
        except metadata.PackageNotFoundError:
            continue  # an extra that this environment leaves out
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": node[1]}):
                todo += [(canonicalize_name(need.name), extra) for extra in ("", *need.extras)]
    return {node[0] for node in seen}


# ---- commands


def _readme_command(name: str, *readme: Path) -> subprocess.CompletedProcess[str]:
    command = [str(ROOT / ".ci" / "readme-command"), name, *map(str, readme)]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("train-command", "python -m fastunit.train"),
        ("test-command", "python -m pytest -n 2 --dist loadfile"),
    ],
)
def test_readme_command_installs_and_runs(name: str, last: str) -> None:
    done = _readme_command(name)
    assert done.returncode == 0, done.stderr
    install, _, run = done.stdout.strip().rpartition("&&")
    assert run.strip() == last
    module = last.split()[2]
    assert find_spec(module), f"there is no such module: {module}"
    assert "pip install -c constraints.txt" in install
    # Not a plain install: run in the checkout, `fastunit/` would hide it, and has no kernels/.
    extras = re.search(r"-e '\.\[([a-z,]+)\]'", install)
    assert extras, install
    assert set(extras[1].split(",")) <= set(EXTRAS)


@pytest.mark.parametrize(
    "text",
    ["", "<!-- other -->\n```bash\ntrue\n```\n", "<!-- it -->\nwords\n```bash\ntrue\n```\n"],
    ids=["empty", "other marker", "words between"],
)
def test_readme_command_refuses_when_it_finds_none(tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    done = _readme_command("it", readme)
    assert done.returncode == 1
    assert "<!-- it -->" in done.stderr and str(readme) in done.stderr


def test_readme_command_prints_the_block_alone(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- it -->\n\n```bash\none &&\n  two\n```\n\n```bash\nthree\n```\n")
    assert _readme_command("it", readme).stdout == "one &&\n  two\n"


def test_readme_command_prints_python_too(tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- it -->\n```python\nimport fastunit\n```\n")
    assert _readme_command("it", readme).stdout == "import fastunit\n"


def test_ci_runs_the_readme_command() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    lines = script.read_text(encoding="utf-8").splitlines()
    code = [line for line in lines if not line.startswith("#")]
    assert "command=$(.ci/readme-command test-command)" in code
    assert code.index("ruff check .") < code.index("PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright")
    assert code[-1] == 'bash -euo pipefail -c "$command"'
    assert not any("pytest" in line for line in code)


def test_the_workflow_runs_ci_and_every_python_that_the_metadata_names() -> None:
    text = (ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8")
    jobs = yaml.safe_load(text)["jobs"]
    assert jobs["ci"]["steps"][-1] == {"run": "bash .ci/run"}
    pythons = [step["with"]["python-version"] for step in jobs["ci"]["steps"] if "with" in step]
    pythons += jobs["pythons"]["strategy"]["matrix"]["python"]
    classifiers = metadata.metadata("fastunit").get_all("Classifier")
    named = re.findall(r"Programming Language :: Python :: (3\.\d+)", "\n".join(classifiers))
    assert sorted(pythons) == sorted(named)
