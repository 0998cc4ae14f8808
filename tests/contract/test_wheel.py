"""The wheel: one file for every Python, with the libraries inside, that works away from the tree with torch alone."""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import os
import re
import statistics
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest
from filelock import FileLock
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
INPUTS = ("CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml", "cmake", "csrc", "include", "python/tokcore")
CPU_LIBRARY, CUDA_LIBRARY = "tokcore/libtokcore_cpu.so", "tokcore/libtokcore_cuda.so"
MAY_NEED = {
    "libtorch_cpu.so",
    "libtorch_cuda.so",
    "libc10.so",
    "libgomp.so.1",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libm.so.6",
    "libc.so.6",
    "ld-linux-x86-64.so.2",
}

USE = """
import sys, torch, torch.nn.functional as F, tokcore
from pathlib import Path
assert Path(tokcore.__file__).is_relative_to(sys.prefix), tokcore.__file__
torch.manual_seed(0)
T, C, V = 37, 48, 129
e, c, y = torch.randn(T, C), torch.randn(V, C) / 7, torch.randint(V, (T,))
z = F.linear(e, c)
lse, _, gathered, *_ = torch.ops.tokcore.linear_logprobs_forward(e, c, y[:, None])
torch.testing.assert_close(lse, z.logsumexp(-1))
torch.testing.assert_close(gathered[:, 0], z.gather(1, y[:, None])[:, 0])
def step(f):
    a, b = e.clone().requires_grad_(), c.clone().requires_grad_()
    loss = f(a, b, y)
    return loss.detach(), *torch.autograd.grad(loss, (a, b))
eager = step(tokcore.linear_cross_entropy)
torch.testing.assert_close(eager, step(lambda a, b, y: F.cross_entropy(F.linear(a, b), y)))
compiled = step(torch.compile(tokcore.linear_cross_entropy, fullgraph=True))
torch.testing.assert_close(compiled, eager)
print("used", tokcore.__version__)
"""

IMPORT_COST = "import time, torch; t = time.perf_counter(); import tokcore; print(time.perf_counter() - t)"


def files(path: Path) -> list[Path]:
    """The sources at or under ``path``."""
    found = [path] if path.is_file() else path.rglob("*")
    return [p for p in found if p.is_file() and p.suffix not in {".so", ".pyc"}]


def is_current(wheel: Path) -> bool:
    """Nothing that goes into the wheel is younger than it is, was added or was taken away."""
    youngest = max(p.stat().st_mtime for name in INPUTS for p in files(ROOT / name))
    return wheel.stat().st_mtime >= youngest and packaged(wheel) == in_tree()


def packaged(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {n for n in archive.namelist() if n.startswith("tokcore/") and not n.endswith(".so")}


def in_tree() -> set[str]:
    return {p.relative_to(ROOT / "python").as_posix() for p in files(ROOT / "python" / "tokcore")}


@pytest.fixture(scope="session")
def wheel() -> Path:
    """The wheel of this tree: the one in dist/ if that is current, else a new one."""
    dist = ROOT / "dist"
    dist.mkdir(exist_ok=True)
    with FileLock(dist / ".lock"):  # each worker of a parallel run has its own session
        built = sorted(dist.glob("tokcore-*.whl"), key=lambda p: p.stat().st_mtime)
        if built and is_current(built[-1]):
            return built[-1]
        for old in built:
            old.unlink()
        pip = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-build-isolation",
            "--no-deps",
            "-w",
            str(dist),
            str(ROOT),
        ]
        done = subprocess.run(pip, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (path,) = dist.glob("tokcore-*.whl")
        return path


def libraries(wheel: Path) -> list[str]:
    """What the wheel should hold: the CUDA library unless its build was told that something for it is missing."""
    missing = (ROOT / "build" / "wheel" / "cuda_missing.txt").read_text()
    return [CPU_LIBRARY] if missing else [CPU_LIBRARY, CUDA_LIBRARY]


@pytest.fixture(scope="session", params=[CPU_LIBRARY, CUDA_LIBRARY], ids=["cpu", "cuda"])
def library(wheel: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    if request.param not in libraries(wheel):
        pytest.skip((ROOT / "build" / "wheel" / "cuda_missing.txt").read_text())
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(request.param, tmp_path_factory.mktemp("library")))


def distributions(requirement: str) -> dict[str, importlib.metadata.Distribution]:
    """What ``requirement`` needs to be imported, itself included: its distribution and all that it requires."""
    found: dict[str, importlib.metadata.Distribution] = {}
    wanted = [requirement]
    while wanted:
        name = Requirement(wanted.pop()).name
        if name in found:
            continue
        found[name] = importlib.metadata.distribution(name)
        lines = found[name].requires or []
        wanted += [line for line in lines if (m := Requirement(line).marker) is None or m.evaluate({"extra": ""})]
    return found


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an environment with the wheel, torch and what torch requires, and nothing else.

    torch is not installed a second time: a folder of links to it and its requirements stands on the path.
    """
    home = tmp_path_factory.mktemp("environment")
    links = home / "links"
    links.mkdir()
    for distribution in distributions("torch").values():
        tops = {Path(file).parts[0] for file in distribution.files or [] if ".." not in Path(file).parts}
        for top in tops - {"__pycache__"}:
            if not (links / top).exists():
                (links / top).symlink_to(Path(str(distribution.locate_file(top))))
    venv.create(home / "venv", with_pip=False)
    executable = home / "venv" / "bin" / "python"
    (site_packages,) = (home / "venv" / "lib").glob("python*/site-packages")
    (site_packages / "torch.pth").write_text(f"{links}\n")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        str(executable),
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        str(wheel),
    ]
    subprocess.run(pip, check=True)
    return executable


def run(python: Path, code: str, folder: Path) -> str:
    """What ``code`` prints, run in ``folder`` with none of this process's Python settings."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(
        [str(python), "-c", code], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_tag(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-linux_x86_64.whl")
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (n for n in archive.namelist() if n.endswith(".dist-info/WHEEL"))
        text = archive.read(info).decode()
    assert re.findall(r"^Tag: (.*)$", text, re.MULTILINE) == ["py3-none-linux_x86_64"]
    assert "Root-Is-Purelib: false" in text


def test_contents(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert len(names) == len(set(names))
    assert sorted(n for n in names if ".so" in n) == libraries(wheel)
    assert packaged(wheel) == in_tree()
    assert {"tokcore/__init__.py", "tokcore/py.typed"} <= set(names)
    others = {n for n in names if not n.startswith("tokcore/")}
    assert {n.split("/")[0].rpartition(".")[2] for n in others} == {"dist-info"}
    assert any(n.endswith("licenses/LICENSE") for n in others)


def test_record_lists_every_file_with_its_hash(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (record,) = (n for n in archive.namelist() if n.endswith(".dist-info/RECORD"))
        rows = {name: (digest, size) for name, digest, size in csv.reader(archive.read(record).decode().splitlines())}
        assert set(rows) == set(archive.namelist())
        for name, (digest, size) in rows.items():
            if name == record:
                assert (digest, size) == ("", "")
                continue
            data = archive.read(name)
            encoded = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            assert (digest, int(size)) == (f"sha256={encoded}", len(data)), name


def test_metadata(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (info,) = (n for n in archive.namelist() if n.endswith(".dist-info/METADATA"))
        lines = archive.read(info).decode().split("\n\n")[0].splitlines()
        (points,) = (n for n in archive.namelist() if n.endswith(".dist-info/entry_points.txt"))
        assert "tokcore = tokcore.cli:main" in archive.read(points).decode().splitlines()
    always = [line for line in lines if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert always == ["Requires-Dist: torch>=2.11"]
    assert "Requires-Python: >=3.10" in lines


def test_library_needs_torch_and_the_system_only(library: Path) -> None:
    dynamic = subprocess.run(["readelf", "-d", library], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"\(NEEDED\).*\[(.*)\]", dynamic))
    assert "libtorch_cpu.so" in needed
    assert ("libtorch_cuda.so" in needed) == ("cuda" in library.name)
    assert needed - MAY_NEED == set()
    assert not re.search(r"\((RPATH|RUNPATH)\)", dynamic)


def test_library_uses_the_stable_abi_only(library: Path) -> None:
    """No C++ symbol of torch: those change from release to release, the C functions of the stable ABI do not."""
    symbols = subprocess.run(
        ["nm", "-D", "-C", "--undefined-only", library], capture_output=True, text=True, check=True
    )
    undefined = [line.split(maxsplit=1)[1] for line in symbols.stdout.splitlines()]
    assert [s for s in undefined if re.match(r"(.* )?(at|c10|torch|caffe2)::", s)] == []
    assert [s for s in undefined if s.startswith(("Py", "_Py"))] == []
    assert any(s.startswith(("aoti_torch_", "torch_")) for s in undefined)


def test_library_carries_no_build_path(library: Path) -> None:
    assert os.fsencode(ROOT) not in library.read_bytes()


def test_works_away_from_the_tree(python: Path, tmp_path: Path) -> None:
    assert run(python, USE, tmp_path).startswith("used ")


def test_without_cuda_in_torch_the_wheel_says_why_its_cuda_library_is_not_loaded(python: Path, tmp_path: Path) -> None:
    code = "import torch; from tokcore import _library as l; print(torch.version.cuda); print(l.loaded['tokcore_cuda'])"
    cuda, state = run(python, code, tmp_path).splitlines()
    if cuda == "None":
        assert re.fullmatch(r"not loaded: torch \S+ is built without CUDA", state)
    else:
        assert not state.startswith("not loaded")


def test_the_gpu_check_takes_the_wheel_as_it_is(wheel: Path, python: Path, tmp_path: Path) -> None:
    script = ROOT / "scripts" / "gpu_check.py"
    command = [python, script, "--wheel", wheel, "--out", tmp_path, "--device", "cpu", "--stage", "machine"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "gpu-check: machine passed" in done.stdout
    assert "library tokcore_cuda: " in done.stdout
    assert {file.name for file in tmp_path.iterdir()} == {"gpu-check.json", "gpu-check.txt"}


def test_version_is_the_same_everywhere(wheel: Path, python: Path, tmp_path: Path) -> None:
    shown = run(python, "import tokcore; print(tokcore.__version__)", tmp_path).strip()
    assert wheel.name.split("-")[1] == shown


def test_import_costs_little_on_top_of_torch(python: Path, tmp_path: Path) -> None:
    seconds = statistics.median(float(run(python, IMPORT_COST, tmp_path)) for _ in range(5))
    assert seconds < 0.3
