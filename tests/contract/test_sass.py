"""The reader of machine code, on text that it has to understand, and the CUDA library where it was built."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

import tokcore
from tokcore.testing import sass

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = Path(tokcore.__file__).with_name("libtokcore_cuda.so")

CODE = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]

	code for sm_80
		Function : _Z15gemm_sm80_kernelILi3EEvPf
	.headerflags	@"EF_CUDA_SM80 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM80)"
        /*0000*/                   LDGSTS.E.BYPASS.LTC128B.128 [R1], [R2.64] ; /* 0x00000a0000017a02 */
                                                                              /* 0x000fe40000000f00 */
        /*0010*/              @!P0 LDSM.16.M88.4 R4, [R8] ;                    /* 0x0000000000027919 */
        /*0020*/             @!UPT HMMA.16816.F32.BF16 R4, R8, R12, R4 ;       /* 0x0000000000027919 */
        /*0030*/               @P2 STL.64 [R1+0x8], R4 ;                       /* 0x0000000000027919 */
        /*0040*/                   NOP;                                        /* 0x0000000000007918 */
		Function : _Z11plain_stepsv
        /*0000*/                   EXIT ;                                      /* 0x000000000000794d */
Fatbin elf code:
================
arch = sm_90a
		Function : _Z15gemm_sm90_kernelv
        /*0000*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, !UPT ; /* 0x0 */
        /*0008*/                   HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0 ; /* 0x0 */
        /*0010*/                   UTMALDG.2D [UR8], [UR4] ;                   /* 0x0000000000007918 */
"""
RESOURCES = """
arch = sm_80
 Function _Z15gemm_sm80_kernelILi3EEvPf:
  REG:201 STACK:8 SHARED:1024 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
 Function _Z11plain_stepsv:
  REG:8 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
arch = sm_90a
 Function _Z15gemm_sm90_kernelv:
  REG:168 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:360 TEXTURE:0 SURFACE:0 SAMPLER:0
"""


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> list[sass.Kernel]:
    def output(*command: str, text: str | None = None) -> str:
        if command[0] != "c++filt":
            return CODE if "--dump-sass" in command else RESOURCES
        names = {"ILi3EEvPf": "void tokcore::gemm_sm80_kernel<(tokcore::Mode)3>(float*)", "stepsv": "plain_steps()"}
        return "\n".join(
            next((long for short, long in names.items() if line.endswith(short)), "gemm_sm90_kernel()")
            for line in (text or "").splitlines()
        )

    monkeypatch.setattr(sass, "_output", output)
    monkeypatch.setattr(sass, "find_tool", lambda name: name)
    return sass.read_library(Path("library.so"))


def test_the_listing_is_read(kernels: list[sass.Kernel]) -> None:
    portable, hopper, plain = kernels
    assert (portable.name, portable.template) == ("gemm_sm80_kernel<(Mode)3>", "gemm_sm80_kernel")
    assert (portable.architecture, portable.registers, portable.shared_bytes) == ("sm_80", 201, 1024)
    assert portable.instructions == 4
    assert portable.opcodes == {"LDGSTS": 1, "LDSM": 1, "HMMA": 1, "STL": 1}
    assert (hopper.name, hopper.architecture, hopper.registers) == ("gemm_sm90_kernel", "sm_90a", 168)
    assert (hopper.opcodes, hopper.groups) == ({"HGMMA": 2, "UTMALDG": 1}, 1)
    assert (plain.name, plain.instructions) == ("plain_steps", 1)


def test_local_memory_is_a_problem(kernels: list[sass.Kernel]) -> None:
    expected = ["gemm_sm80_kernel<(Mode)3> (sm_80): 1 loads and stores of local memory"]
    assert list(sass.problems(kernels)) == expected
    assert list(sass.problems([])) == ["the library holds no kernel"]


@pytest.mark.parametrize(
    ("number", "lost", "expected"),
    [
        (0, "HMMA", "gemm_sm80_kernel<(Mode)3> (sm_80): no HMMA or IMMA"),
        (0, "LDSM", "gemm_sm80_kernel: no LDSM in any instantiation"),
        (0, "LDGSTS", "gemm_sm80_kernel: no LDGSTS in any instantiation"),
        (1, "HGMMA", "gemm_sm90_kernel (sm_90a): no HGMMA or IGMMA"),
        (1, "UTMALDG", "gemm_sm90_kernel (sm_90a): no UTMALDG"),
    ],
)
def test_what_a_kernel_is_named_for_has_to_be_in_it(
    kernels: list[sass.Kernel], number: int, lost: str, expected: str
) -> None:
    del kernels[0].opcodes["STL"]
    assert list(sass.problems(kernels)) == []
    del kernels[number].opcodes[lost]
    assert list(sass.problems(kernels)) == [expected]


def test_products_that_wait_for_each_other_are_a_problem(kernels: list[sass.Kernel]) -> None:
    del kernels[0].opcodes["STL"]
    kernels[1].groups = 2
    expected = "gemm_sm90_kernel (sm_90a): each of 2 warpgroup products is waited for before the next begins"
    assert list(sass.problems(kernels)) == [expected]


@pytest.mark.parametrize("waits", [("0x1", "0x0"), ("0x0", "0x0")])
def test_weights_of_attention_are_made_while_products_are_in_flight(waits: tuple[str, str]) -> None:
    powers = ["MUFU.EX2 R88, R88"] * 32
    code = ["UTMALDG.4D", "HGMMA.64x64x16.F32 R88", "HGMMA.64x64x16.F32 R88, gsb0"]
    code += [f"WARPGROUP.DEPBAR.LE gsb0, {waits[0]}", *powers, f"WARPGROUP.DEPBAR.LE gsb0, {waits[1]}", powers[0]]
    lines = ["arch = sm_90a", "Function : some_attention_forward_sm90_kernel"]
    lines += [f"        /*{16 * i:04x}*/                   {text} ;" for i, text in enumerate(code)]
    (kernel,) = sass._read_code(lines).values()
    assert kernel.beside == (32 if waits[0] == "0x1" else 0)
    expected = "some_attention_forward_sm90_kernel (sm_90a): 0 of 32 weights are made while products are in flight"
    assert list(sass.problems([kernel])) == ([] if kernel.beside else [expected])


def test_tf32_fragments_do_without_ldsm(kernels: list[sass.Kernel]) -> None:
    del kernels[0].opcodes["STL"], kernels[0].opcodes["LDSM"]
    kernels[0].tf32 = True
    assert list(sass.problems(kernels)) == []


def test_the_page_has_a_table_for_each_architecture(kernels: list[sass.Kernel]) -> None:
    page = sass.render(kernels)
    assert "## sm_80\n\n| kernel | registers | shared bytes | instructions | HMMA | LDSM | LDGSTS | STL |" in page
    assert "| `gemm_sm80_kernel<(Mode)3>` | 201 | 1024 | 4 | 1 | 1 | 1 | 1 |" in page
    assert "## sm_90a\n\n| kernel | registers | shared bytes | instructions | HGMMA | UTMALDG |" in page


def needs_tools() -> None:
    missing = [tool for tool in ("nvcc", "c++filt") if shutil.which(tool) is None]
    missing += [] if sass.find_tool("cuobjdump") else ["cuobjdump"]
    if missing:
        pytest.skip(f"needs {' and '.join(missing)}")


def test_a_spilling_kernel_is_found_in_a_real_library(tmp_path: Path) -> None:
    needs_tools()
    source = tmp_path / "spill.cu"
    source.write_text(
        "namespace tokcore { template <int N> __global__ void spill_kernel(float* out, int which) {\n"
        "  float values[N];\n"
        "  for (int i = 0; i < N; ++i) values[(i * which) % N] = out[i];\n"
        "  out[threadIdx.x] = values[which];\n"
        "}\ntemplate __global__ void spill_kernel<999>(float*, int); }\n"
    )
    library = tmp_path / "libspill.so"
    command = ["nvcc", "-arch=sm_80", "-shared", "-Xcompiler=-fPIC", "-o", library, source]
    subprocess.run(command, check=True, capture_output=True)
    (kernel,) = sass.read_library(library)
    assert (kernel.name, kernel.architecture) == ("spill_kernel<999>", "sm_80")
    assert kernel.opcodes["STL"] > 0
    (problem,) = sass.problems([kernel])
    assert "local memory" in problem
    page = tmp_path / "page.md"
    assert sass.main(["--library", str(library), "--write", str(page)]) == 1
    assert "`spill_kernel<999>`" in page.read_text()


def test_the_library_breaks_no_rule_and_its_page_lists_every_kernel() -> None:
    needs_tools()
    assert LIBRARY.exists(), "nvcc is here, so the tests expect the CUDA library: make cuda"
    kernels = sass.read_library(LIBRARY)
    assert list(sass.problems(kernels)) == []
    page = (ROOT / "docs" / "cuda-kernels.md").read_text()
    listed = set(re.findall(r"^\| `(.*?)` \|", page, re.MULTILINE))
    assert {kernel.name for kernel in kernels} == listed, "make sass writes the page"
