"""How the CUDA library is configured, linked and loaded; none of it needs a GPU, and most of it no toolkit."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import tokcore
from tokcore import _library

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(tokcore.__file__).with_name("libtokcore_cuda.so")


@pytest.fixture
def library() -> Path:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    assert LIBRARY.exists(), "nvcc is here, so the tests expect the CUDA library: make cuda"
    return LIBRARY


def run(code: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    path = f"import sys; sys.path[:0] = {sys.path!r}\n"
    command = [sys.executable, "-c", path + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


# ---- loading ---------------------------------------------------------------------------------------------------------


def test_beside_a_torch_without_cuda_loading_fails_and_says_why(library: Path) -> None:
    if torch.version.cuda is not None:
        pytest.skip("this torch has CUDA")
    code = """
import torch, tokcore
try:
    torch.ops.load_library(sys.argv[1])
except OSError as error:
    print(error.__cause__ or error)
    e = torch.randn(3, 4)
    print(tokcore.linear_logprobs(e, torch.randn(5, 4), torch.tensor([0, 1, 4])).lse.shape)
"""
    done = run(code, library)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "libtorch_cuda.so: cannot open shared object file: No such file or directory",
        "torch.Size([3])",
    ]


def test_beside_a_torch_with_cuda_it_loads_and_tells_of_the_machine(library: Path, tmp_path: Path) -> None:
    code = """
import ctypes, json, torch
if len(sys.argv) > 2:  # stands in for the library of a torch with CUDA
    ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
torch.version.cuda = torch.version.cuda or "13.0"
from tokcore import _library
print(json.dumps([_library.loaded, _library.devices(), _library.cuda_versions(), _library.cuda_devices()]))
"""
    stub = []
    if torch.version.cuda is None:
        stub = [tmp_path / "libtorch_cuda.so"]
        source = ROOT / "csrc" / "cuda" / "torch_cuda_stub.cc"
        subprocess.run(["c++", "-shared", "-fPIC", "-Wl,-soname,libtorch_cuda.so", "-o", *stub, source], check=True)
    done = run(code, library, *stub)
    assert done.returncode == 0, done.stderr
    loaded, devices, versions, gpus = json.loads(done.stdout)
    assert loaded["tokcore_cuda"] == str(LIBRARY)
    assert devices == ["cpu", "cuda"]
    assert versions["runtime"].startswith("13.")
    assert re.fullmatch(r"none|\d+\.\d+", versions["driver"])
    for gpu in gpus:
        assert {"name", "capability", "kernels", "multiprocessors", "memory_bytes"} <= set(gpu)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(_library, "loaded", {})
    monkeypatch.setattr(_library, "available", set())
    monkeypatch.setattr(_library, "__file__", str(tmp_path / "_library.py"))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    _library._load_cuda()
    assert _library.loaded == {"tokcore_cuda": f"not loaded: no file libtokcore_cuda.so in {tmp_path}"}
    (tmp_path / "libtokcore_cuda.so").write_bytes(b"not a library")
    _library._load_cuda()
    assert re.match(r"not loaded: .*libtokcore_cuda\.so: file too short", _library.loaded["tokcore_cuda"])
    monkeypatch.setattr(torch.version, "cuda", None)
    _library._load_cuda()
    assert _library.loaded["tokcore_cuda"] == f"not loaded: torch {torch.__version__} is built without CUDA"
    assert _library.devices() == ("cpu",)
    assert (_library.cuda_devices(), _library.cuda_versions()) == ([], {})


@pytest.mark.parametrize("function", ["linear_cross_entropy", "linear_logprobs"])
def test_a_cuda_tensor_without_the_library_raises_and_names_it(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "available", {"tokcore_cpu"})
    monkeypatch.setitem(_library.loaded, "tokcore_cuda", "not loaded: no file libtokcore_cuda.so in somewhere")
    with FakeTensorMode():
        e, c = torch.empty(3, 4, device="cuda"), torch.empty(5, 4, device="cuda")
        targets = torch.empty(3, dtype=torch.int64, device="cuda")
    with pytest.raises(NotImplementedError) as caught:
        getattr(tokcore, function)(e, c, targets)
    assert str(caught.value) == (
        f"tokcore.{function}: argument 'e': expected device cpu (cuda needs the library tokcore_cuda, which is not "
        "loaded: no file libtokcore_cuda.so in somewhere), got cuda:0"
    )
    assert _library.devices_text("mps") == "cpu"
    monkeypatch.setattr(_library, "available", {"tokcore_cpu", "tokcore_cuda"})
    assert _library.devices_text("mps") == "cpu or cuda"


# ---- configuring -----------------------------------------------------------------------------------------------------


def cmake(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    command = ["cmake", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def configure(build: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return cmake("-S", ROOT, "-B", build, "-G", "Ninja", f"-DPython_EXECUTABLE={sys.executable}", *options)


def test_what_is_missing_is_said_and_on_makes_it_an_error(tmp_path: Path) -> None:
    missing = "no CUTLASS headers: set CUTLASS_DIR or install nvidia-cutlass==4.2.0.0"
    auto = configure(tmp_path, f"-DCUTLASS_DIR={tmp_path}")
    assert auto.returncode == 0, auto.stderr
    assert f"tokcore: the CUDA library is not built: {missing}" in auto.stdout
    assert (tmp_path / "cuda_missing.txt").read_text().startswith(missing)
    asked = cmake("--build", tmp_path, "--target", "tokcore_cuda")
    assert asked.returncode != 0
    assert missing in asked.stdout
    on = configure(tmp_path, f"-DCUTLASS_DIR={tmp_path}", "-DTOKCORE_CUDA=ON")
    assert on.returncode != 0
    assert "the CUDA library cannot be built" in on.stderr
    off = configure(tmp_path, "-DTOKCORE_CUDA=OFF")
    assert off.returncode == 0
    assert "tokcore: the CUDA library is not built: TOKCORE_CUDA is OFF" in off.stdout


PROJECT = """
cmake_minimum_required(VERSION 3.25)
project(kernels LANGUAGES NONE)
list(APPEND CMAKE_MODULE_PATH {modules})
include(CudaKernels)
add_custom_target(tokcore_cuda_kernels)
tokcore_add_cuda_kernels({arguments})
get_target_property(files tokcore_cuda_kernels SOURCES)
foreach(file IN LISTS files)
  get_source_file_property(options ${{file}} COMPILE_OPTIONS)
  message("${{file}} ${{options}}")
endforeach()
"""
TABLE = 'TEMPLATE op_sm90.cu.in VARIABLES DTYPE N INSTANCES "Bf16 1" "Fp16 2"'


def kernels_project(folder: Path, arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "csrc").mkdir(exist_ok=True)
    (folder / "csrc" / "op_sm90.cu.in").write_text("run<@DTYPE@, @N@>();\n")
    (folder / "csrc" / "plain.cu").touch()
    (folder / "CMakeLists.txt").write_text(PROJECT.format(modules=ROOT / "cmake", arguments=arguments))
    return cmake("-S", folder, "-B", folder / "build", "-G", "Ninja")


def test_a_table_gives_one_file_for_each_instance_and_the_name_decides_the_architecture(tmp_path: Path) -> None:
    done = kernels_project(tmp_path, f"SOURCES plain.cu {TABLE}")
    assert done.returncode == 0, done.stderr
    generated = tmp_path / "build" / "cuda"
    assert sorted(file.name for file in generated.iterdir()) == ["op_sm90_Bf16_1.cu", "op_sm90_Fp16_2.cu"]
    assert (generated / "op_sm90_Fp16_2.cu").read_text() == "run<Fp16, 2>();\n"
    portable, *hopper = done.stderr.splitlines()
    assert portable.endswith("csrc/plain.cu -gencode=arch=compute_80,code=[sm_80,sm_90,compute_80]")
    assert len(hopper) == 2
    assert all(line.endswith(" -gencode=arch=compute_90a,code=sm_90a") for line in hopper)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (TABLE + ' "Fp32"', "op_sm90.cu.in: instance 'Fp32' has 1 values for: DTYPE;N"),
        (TABLE + ' "Bf16 1"', "op_sm90.cu.in: two instances are called op_sm90_Bf16_1"),
        ("FILES plain.cu", "unknown arguments FILES;plain.cu"),
    ],
)
def test_a_wrong_table_stops_the_configuration(tmp_path: Path, arguments: str, message: str) -> None:
    done = kernels_project(tmp_path, arguments)
    assert done.returncode != 0
    assert message in done.stderr


def test_an_unchanged_table_leaves_its_files_alone(tmp_path: Path) -> None:
    kernels_project(tmp_path, TABLE)
    first = {file: file.stat().st_mtime_ns for file in (tmp_path / "build" / "cuda").iterdir()}
    kernels_project(tmp_path, TABLE + ' "Fp32 3"')
    second = {file: file.stat().st_mtime_ns for file in (tmp_path / "build" / "cuda").iterdir()}
    assert first.items() <= second.items()
    assert len(second) == 3


# ---- the page --------------------------------------------------------------------------------------------------------


def test_the_kernel_of_the_page_compiles(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    page = (ROOT / "docs" / "cuda.md").read_text()
    (kernel, _) = re.findall(r"^```cpp\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (instance,) = re.findall(r"`(template void run_scale_rows<.*?;)`", page)
    source = tmp_path / "scale_rows.cu"
    body = kernel.replace("#pragma once\n", "").replace(
        "}  // namespace tokcore::example", instance.replace("@THREADS@", "128") + "\n}  // namespace tokcore::example"
    )
    source.write_text(body)
    command = ["nvcc", "-std=c++20", "-arch=sm_80", "-Werror=all-warnings", f"-I{ROOT}/include", "-c", "-o"]
    done = subprocess.run([*command, tmp_path / "scale_rows.o", source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- errors ----------------------------------------------------------------------------------------------------------

ERRORS = """
#include <cstdio>

#include "core/cuda_device.h"
#include "tokcore/cuda/launch.h"

__global__ void idle_kernel(int) {}

template <class Body>
void print_error(Body body) {
  try {
    body();
    std::puts("no error");
  } catch (const std::runtime_error& error) {
    std::puts(error.what());
  }
}

int main() {
  using namespace tokcore;
  const cuda::LaunchConfig too_many{.grid = {3, 2}, .threads = 4096, .shared_bytes = 16, .name = "idle_kernel"};
  print_error([&] { cuda::launch<idle_kernel>(too_many, 1); });
  print_error([] { cuda::launch<idle_kernel>({.grid = {0}, .threads = 4096}, 1); });
  print_error([] { core::require_capability("some_op", 75); });
  print_error([] { core::require_capability("some_op", 80); });
  print_error([] { core::check_cuda(cudaErrorInvalidValue, "do this"); });
}
"""


def test_errors_of_the_gpu_name_what_failed(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("needs nvcc")
    source, program = tmp_path / "errors.cu", tmp_path / "errors"
    source.write_text(ERRORS)
    command = ["nvcc", "-std=c++20", "-arch=sm_80", f"-I{ROOT}/include", f"-I{ROOT}/csrc", "-o", program, source]
    subprocess.run(command, check=True, capture_output=True)
    done = subprocess.run([program], check=True, capture_output=True, text=True)
    launch, empty, old, new, call = done.stdout.splitlines()
    expected = (
        r"tokcore: kernel idle_kernel could not be launched \(grid 3 x 2 x 1, 4096 threads, 16 bytes of shared memory, "
        r"cluster 1\): cudaError\w+: .+"
    )
    assert re.fullmatch(expected, launch)
    assert (empty, new) == ("no error", "no error")
    assert old == "tokcore.some_op: the GPU needs compute capability 8.0 or newer, got 7.5"
    assert call == "tokcore: could not do this: cudaErrorInvalidValue: invalid argument"
