"""Runs in a process held to one instruction-set level: prints one line per failure, then the level that was used."""

from __future__ import annotations

import torch
from support import results, threads

from tokcore import _library
from tokcore.testing import tables
from tokcore.testing.numerics import compare, failures


def main() -> None:
    torch.set_num_threads(1)
    for op, table in tables().items():
        for case in table.cases:
            if "verify" not in case.tags:
                continue
            inputs = table.make_inputs(case, "cpu", 1)
            found = failures(compare(table.run(inputs), table.composition(inputs), table.reference(inputs)))
            if found:
                print(f"{op} {case.name}: {found}")
    repeat()
    print("level", _library.cpu_isa())


def repeat() -> None:
    """One and two threads, and a row alone, at this level."""
    from support import bits, tensors
    from test_determinism import everything

    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        e, c, targets, bias = tensors(131, 1500, 70, dtype)
        leaves = {"e": (3 * e.detach()).requires_grad_(), "c": c, "bias": bias, "targets": targets}
        found = []
        for count in (1, 2):
            with threads(count):
                found.append(results(lambda **x: everything(**x, filter_eps=1e-3), leaves))
        for name, value in found[0].items():
            if not torch.equal(bits(value), bits(found[1][name])):
                print(f"{dtype} {name}: differs between one thread and two")
        with torch.no_grad():
            alone = everything(leaves["e"][70:71], c, bias, targets[70:71])
        for name in ("loss", "loss_lse", "loss_entropy", "topk_values", "topk_indices"):
            if not torch.equal(bits(alone[name]), bits(found[0][name][70:71])):
                print(f"{dtype} {name}: differs between a row alone and in its batch")


if __name__ == "__main__":
    main()
