"""The typer application: one command per module."""

from __future__ import annotations

import typer

from tokcore.cli.bench.command import bench
from tokcore.cli.calibrate.command import calibrate
from tokcore.cli.demo import demo
from tokcore.cli.info import info
from tokcore.cli.verify import verify

app = typer.Typer(
    name="tokcore",
    help="Token-level kernels for PyTorch: what runs here, how fast, and how exactly.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for command in (info, bench, verify, calibrate, demo):
    app.command()(command)
