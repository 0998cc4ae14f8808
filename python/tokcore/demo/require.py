"""Clear messages for the optional packages that only the demo needs."""

from __future__ import annotations

import importlib.util

PACKAGES = ("tokenizers", "safetensors", "matplotlib", "rich", "numpy", "skimage")


def require_packages(packages: tuple[str, ...] = PACKAGES) -> None:
    """Raise ``ImportError`` that names every missing package and the extra that installs them."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        names = ", ".join(missing)
        raise ImportError(f"tokcore demo: missing {names}; install the extra: pip install 'tokcore[demo]'")
