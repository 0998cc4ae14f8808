"""The folder in which the demo leaves its model and tokenizer, for itself and for whoever needs real hidden states.

``<cache>`` is the environment variable ``TOKCORE_CACHE``, or ``~/.cache/tokcore/demo``::

    <cache>/tokenizer-<vocab size>-<first 16 digits of the corpus' SHA-256>.json     tokenizers' own format
    <cache>/full/ or <cache>/quick/
        model.safetensors         ``Transformer.state_dict()``: matrices bf16 [out, in], norm weights fp32; the
                                  embedding [V, C] is also the classifier
        config.json               {"model": ModelConfig, "training": {seed, steps, ...}, "corpus": SHA-256}
        tokenizer.json            a copy, so that the folder is complete
        loss_inputs.safetensors   e [T, C] bf16, c [V, C] bf16, targets [T] int64 of the last training step

The matrices are used in bf16 only, so storing them in bf16 loses nothing: a loaded model scores bit for bit alike.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokcore.demo.model import ModelConfig, Transformer
from tokcore.demo.settings import DemoSettings
from tokcore.demo.train import LossInputs

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def default_cache() -> Path:
    """``$TOKCORE_CACHE``, or ``~/.cache/tokcore/demo``."""
    folder = os.environ.get("TOKCORE_CACHE")
    return Path(folder) if folder else Path.home() / ".cache" / "tokcore" / "demo"


def save_checkpoint(
    folder: Path, model: Transformer, tokenizer: Tokenizer, inputs: LossInputs, settings: DemoSettings, corpus_hash: str
) -> None:
    """Write the four files; ``config.json`` comes last, so that its presence means that the folder is complete."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.json"
    config.unlink(missing_ok=True)
    state = {
        name: tensor.to(model.compute_dtype if tensor.dim() > 1 else tensor.dtype).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(state, folder / "model.safetensors")
    tensors = {"e": inputs.e, "c": inputs.c, "targets": inputs.targets}
    save_file({name: x.detach().contiguous() for name, x in tensors.items()}, folder / "loss_inputs.safetensors")
    tokenizer.save(str(folder / "tokenizer.json"))
    training = {field.name: getattr(settings, field.name) for field in dataclasses.fields(settings)}
    training.pop("model")
    content = {"model": dataclasses.asdict(settings.model), "training": training, "corpus": corpus_hash}
    config.write_text(json.dumps(content, indent=2) + "\n")


def load_checkpoint(folder: Path) -> tuple[Transformer, Tokenizer]:
    """The model (bf16 compute, fp32 parameters) and tokenizer that :func:`save_checkpoint` wrote.

    Raises ``FileNotFoundError`` when the folder holds no complete checkpoint.
    """
    from safetensors.torch import load_file
    from tokenizers import Tokenizer

    config = folder / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"no checkpoint in {folder}; 'tokcore demo' writes one")
    model = Transformer(ModelConfig(**json.loads(config.read_text())["model"]))
    state = load_file(folder / "model.safetensors")
    with torch.no_grad():
        model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))
