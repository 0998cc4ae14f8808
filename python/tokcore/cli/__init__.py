"""The command line: ``tokcore info | bench | verify | calibrate | demo``."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the ``tokcore`` script; tells what to install when the extra ``cli`` is missing."""
    try:
        from tokcore.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        print(f"tokcore: the command line needs {error.name}: pip install 'tokcore[cli]'", file=sys.stderr)
        sys.exit(2)
    app()
