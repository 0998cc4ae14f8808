"""The stage, and its worker, that hold ops to what engines rely on besides the values.

Repeated calls agree bitwise; a call can be captured into a CUDA graph, and the replay computes from what the inputs
hold by then; nothing waits for the GPU; work goes to the current stream; ``torch.compile`` needs no graph break.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from unittest.mock import patch

import torch

import tokcore
from tokcore.cli.gpu_check.stage import FAILED, GRACE_SECONDS, NOT_RUN, PASSED, Context, Stage, share_out, spread
from tokcore.testing import cuda
from tokcore.testing.table import Case, OpTable, Outputs
from tokcore.testing.verification import hold_to_rule
from tokcore.testing.worker import WorkerError, answer, load_tables, read_request, run_worker

_CASES, _COMPILED_CASES = 24, 2  # per op
_SLEEP_CYCLES = 20_000_000  # about ten milliseconds

Check = Callable[[OpTable, Case, str, int], str | None]  # (table, case, device, seed) -> what is wrong


def same_bits(first: Outputs, second: Outputs) -> str | None:
    """The first output that differs in any bit, or None."""
    for name, value in first.items():
        other = second[name]
        if value.shape != other.shape or value.dtype != other.dtype:
            return f"{name} is {tuple(other.shape)} {other.dtype}, was {tuple(value.shape)} {value.dtype}"
        a, b = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (value, other))
        if not torch.equal(a, b):
            return f"{name} differs"
    return None


def overwrite(inputs: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Writes the tensors of ``values``, those of caches, masks and trees too, into those of ``inputs``, in place."""
    with torch.no_grad():
        for target, source in zip(_tensors(inputs), _tensors(values), strict=True):
            target.copy_(source)


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor that an input holds, in an order of its own."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, tokcore.QuantizedKVCache):
        for layer in range(value.layers):
            yield from _tensors(value.layer(layer).operands())
    elif isinstance(value, tokcore.TokenTree | tokcore.Verdict):
        yield from _tensors(dict(vars(value)))
    elif isinstance(value, tokcore.BlockMask):
        yield value.bits


def with_options_of(inputs: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with what ``inputs`` hold where there is no tensor: a graph keeps the options of the call it holds."""
    return {name: value if any(True for _ in _tensors(value)) else inputs[name] for name, value in values.items()}


def repeats(table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """Two calls on the same inputs agree bitwise."""
    inputs = table.make_inputs(case, device, seed)
    return same_bits(table.run(inputs), table.run(inputs))


def replays(table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """A captured call, replayed after its inputs were overwritten, agrees with a plain call on the new values."""
    inputs, values = table.make_inputs(case, device, seed), table.make_inputs(case, device, seed + 1)
    values = with_options_of(inputs, values)
    capture = cuda.Capture(lambda: table.run(inputs))
    overwrite(inputs, values)
    return same_bits(table.run(values), capture())


def never_waits(table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """No call makes the host wait for the GPU."""
    inputs = table.make_inputs(case, device, seed)
    torch.cuda.set_sync_debug_mode("error")
    try:
        table.run(inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return None


def follows_the_stream(table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """On a busy stream the call reads inputs that are written late on that stream."""
    inputs, values = table.make_inputs(case, device, seed), table.make_inputs(case, device, seed + 1)
    values = with_options_of(inputs, values)
    expected = table.run(values)
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(_SLEEP_CYCLES)  # type: ignore[no-untyped-call]
        overwrite(inputs, values)
        got = table.run(inputs)
    stream.synchronize()
    return same_bits(expected, got)


def compiles(table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """The public function, or else what calls the operator, keeps the error rule when compiled without a break."""
    inputs = table.make_inputs(case, device, seed)
    if hasattr(tokcore, table.op):
        with patch.object(tokcore, table.op, torch.compile(getattr(tokcore, table.op), fullgraph=True)):
            got = table.run(inputs)
    else:
        got = torch.compile(table.run, fullgraph=True)(inputs)
    wrong = [item.name for item in hold_to_rule(table, case, seed, got) if not item.ok]
    return f"{', '.join(wrong)} differ from the reference" if wrong else None


CHECKS: dict[str, Check] = {
    "repeats": repeats,
    "replays from a graph": replays,
    "never waits": never_waits,
    "follows the stream": follows_the_stream,
    "compiles": compiles,
}
_NEEDS_GPU = ("replays from a graph", "never waits", "follows the stream")
_NOT_OF_WHAT_WAITS = (*_NEEDS_GPU, "compiles")  # it can neither be captured nor traced, nor run behind a busy stream


def check_contracts(context: Context, seconds: float) -> Stage:
    """Passes when every check was made on every chosen case and none failed."""
    answers: list[dict[str, str]] = []
    lines: list[str] = []
    broken = False
    tables = context.load()
    for op, left in share_out(dict.fromkeys(tables, 1.0), seconds):
        table = tables[op]
        request = {
            "tables": context.tables,
            "op": op,
            "cases": spread([case.name for case in table.cases if "verify" in case.tags], _CASES),
            "device": context.device,
            "seed": context.seed,
            "seconds": left,
        }
        try:
            found = run_worker("tokcore.cli.gpu_check.contracts", request, seconds=left + GRACE_SECONDS)
            answers.extend({"op": op, **message} for message in found)
        except WorkerError as error:
            broken = True
            lines.append(f"{op}: the process ended: {error}")
        mine = [item for item in answers if item["op"] == op]
        made = [name for name in CHECKS if not (table.waits and name in _NOT_OF_WHAT_WAITS)]
        lines += [_summary(op, name, [item for item in mine if item["check"] == name]) for name in made]
        context.on_partial(Stage("contracts", NOT_RUN, lines, {"checks": answers}))
    failed = [item for item in answers if item["status"] == FAILED]
    lines += [f"failed {item['op']} {item['check']} {item['case']}: {item['reason']}" for item in failed]
    complete = not broken and all(item["status"] == PASSED for item in answers)
    status = FAILED if failed or broken else PASSED if complete else NOT_RUN
    return Stage("contracts", status, lines, {"checks": answers})


def _summary(op: str, name: str, items: list[dict[str, str]]) -> str:
    passed = sum(item["status"] == PASSED for item in items)
    reasons = dict.fromkeys(item["reason"] for item in items if item["status"] == NOT_RUN)
    missing = f" (not run: {'; '.join(reasons)})" if reasons else ""
    return f"{op} {name}: {passed} of {len(items)} cases{missing}"


def _work() -> None:
    request = read_request()
    table, device = load_tables(request["tables"])[request["op"]], request["device"]
    end = time.monotonic() + request["seconds"]
    for name in CHECKS:
        if name in _NOT_OF_WHAT_WAITS and table.waits:
            continue
        for case in spread(request["cases"], _COMPILED_CASES) if name == "compiles" else request["cases"]:
            if name in _NEEDS_GPU and device != "cuda":
                status, reason = NOT_RUN, "needs a GPU"
            elif time.monotonic() > end:
                status, reason = NOT_RUN, "the time was over"
            else:
                wrong = attempt(name, table, table.case(case), device, request["seed"])
                status, reason = (PASSED, "") if wrong is None else (FAILED, wrong)
            answer(check=name, case=case, status=status, reason=reason)


def attempt(name: str, table: OpTable, case: Case, device: str, seed: int) -> str | None:
    """What is wrong by the check called ``name``; an exception is."""
    try:
        return CHECKS[name](table, case, device, seed)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    _work()
