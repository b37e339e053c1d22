"""Lets transformers open our models in programs that do not import us.

torch calls the entry points of the group `torch.backends` when it is imported, and `install` is ours. It does nothing
but wait for transformers' module of quantizers. When that has been imported, the two functions that look up a
quantisation method get a step in front: a model whose method is ours first imports `transformers_plugin`, which
registers itself. Programs that open no such model never import the plug-in.

    import torch ──▶ install ──▶ _Waiting ──import of transformers.quantizers.auto──▶ _watch ──our method──▶ the plug-in

TERNARIZE_NO_HOOK=1 switches this off; `import ternarize_cli.hf` then registers the plug-in.
"""

import os
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType
from typing import Any

__all__ = ["install"]

_QUANTIZERS = "transformers.quantizers.auto"
_IMPORTERS = (_QUANTIZERS, "transformers.modeling_utils")
"""Whichever is imported first: torch may be imported by the first of them, and then comes too late to wait for it."""


def install() -> None:
    """Waits for transformers' quantizers, or watches them at once if they have been imported."""
    if os.environ.get("TERNARIZE_NO_HOOK") == "1" or any(isinstance(finder, _Waiting) for finder in sys.meta_path):
        return
    if not _watch():
        sys.meta_path.insert(0, _Waiting())


class _Waiting:
    """A finder that finds modules as those after it do, and calls `_watch` when one of `_IMPORTERS` has been run."""

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _IMPORTERS:
            return None
        sys.meta_path.remove(self)
        try:
            spec = find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        if spec is not None and spec.loader is not None:
            loader: Any = spec.loader
            loader.exec_module = self._then_watch(loader.exec_module)
        return spec

    def _then_watch(self, run: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def run_and_watch(module: ModuleType) -> None:
            run(module)
            if _watch() and self in sys.meta_path:
                sys.meta_path.remove(self)

        return run_and_watch


def _watch() -> bool:
    """Puts the import of the plug-in before the look-ups of quantisation methods; False if they are not there yet."""
    module: Any = sys.modules.get(_QUANTIZERS)
    if not hasattr(module, "AutoHfQuantizer"):
        return False
    for owner, name in (
        (module.AutoHfQuantizer, "supports_quant_method"),
        (module.AutoQuantizationConfig, "from_dict"),
    ):
        setattr(owner, name, staticmethod(_with_plugin(getattr(owner, name))))
    return True


def _with_plugin(look_up: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def look_up_with_plugin(config: Any) -> Any:
        from ternarize_cli.format.scheme import METHOD

        if isinstance(config, dict) and config.get("quant_method") == METHOD:
            import ternarize_cli.encoders.transformers_plugin  # noqa: F401
        return look_up(config)

    return look_up_with_plugin
