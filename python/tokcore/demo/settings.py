"""How long the demo trains, how large its model is, and the arithmetic behind both choices."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tokcore.demo.model import ModelConfig


@dataclass(frozen=True)
class DemoSettings:
    """Sizes of one demo.

    FLOP budget of the full demo, per training step of T = batch_size * seq_len = 1024 tokens:

    * loss, forward and backward: 6 T V C = 6 * 1024 * 32768 * 256 = 52 GFLOP (exact tokcore recomputes: 8 T V C = 69);
    * body: 6 T * 3.1e6 weights = 19 GFLOP, attention scores included in the noise (1 GFLOP);
    * optimizer: 11.5e6 parameters * 28 bytes, about 10 ms.

    At the 1 TFLOP/s that bf16 matrix products reach on two cores with AMX, loss and body are 70 to 90 ms of arithmetic.
    The eager loss adds some ten passes over the [T, V] logits (67 MB in bf16, 134 MB in fp32). Measured per step: body
    and optimizer 0.12 s; the losses' share is printed at the end of every run. Three trainings side by side take 1 s
    per step on a quiet machine and up to twice that on a busy one; tokenizer and pictures take half a minute more.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    steps: int = 240
    batch_size: int = 4
    seq_len: int = 256
    learning_rate: float = 7e-4
    warmup_steps: int = 30
    weight_decay: float = 0.1
    grad_clip: float = 1.0
    probe_every: int = 10  # the gradient filter is looked at once in so many steps
    topk: int = 5  # alternatives shown beside every held-out token
    seed: int = 0

    @property
    def tokens_per_step(self) -> int:
        """T: the rows of the loss."""
        return self.batch_size * self.seq_len


FULL = DemoSettings()
QUICK = replace(FULL, steps=28, warmup_steps=6, probe_every=4)
