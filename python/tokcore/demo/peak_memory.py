"""Peak memory of each loss, forward and backward, on the model's hidden states, in a process of its own."""

from __future__ import annotations

from pathlib import Path

from tokcore.testing.memory import PeakMemory, peak_of
from tokcore.testing.worker import answer, read_request, run_worker

_WARM_UP_ROWS = 64  # enough to load every library and start the threads, too few to leave memory behind


def measure_peak_memory(inputs: Path, loss: str, threads: int) -> PeakMemory:
    """Peak bytes above the tensors in the safetensors file ``inputs`` (e, c, targets), the two gradients included.

    Raises ``tokcore.testing.worker.WorkerError`` when the process fails.
    """
    request = {"inputs": str(inputs), "loss": loss, "threads": threads}
    (fields,) = run_worker("tokcore.demo.peak_memory", request)
    return PeakMemory(**fields)


def _work() -> None:
    import torch
    from safetensors.torch import load_file

    from tokcore.demo.losses import LOSSES

    request = read_request()
    torch.set_num_threads(request["threads"])
    function = LOSSES[request["loss"]]
    # Loaded tensors are windows on the file; copies are resident before the measurement starts.
    tensors = {name: tensor.clone() for name, tensor in load_file(request["inputs"]).items()}
    e, c, targets = tensors["e"], tensors["c"], tensors["targets"]
    rows = min(_WARM_UP_ROWS, e.size(0), c.size(0))
    small_e, small_c = (x[:rows].clone().requires_grad_() for x in (e, c))
    torch.autograd.grad(function(small_e, small_c, targets[:rows] % rows), (small_e, small_c))
    e.requires_grad_()
    c.requires_grad_()
    memory = peak_of(lambda: torch.autograd.grad(function(e, c, targets), (e, c)))
    answer(peak=memory.peak, results=memory.results)


if __name__ == "__main__":
    _work()
