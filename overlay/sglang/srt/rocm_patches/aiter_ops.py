"""Look up an operator of aiter. Images carry different aiters, so an operator may be missing."""

import importlib
import logging
from collections.abc import Callable

logger = logging.getLogger(__name__)


def aiter_op(module: str, name: str) -> Callable | None:
    """``module.name``; None if SGLANG_USE_AITER is off, or (logged) if aiter lacks the operator."""
    from sglang.srt.utils import get_bool_env_var

    if not get_bool_env_var("SGLANG_USE_AITER"):
        return None
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        logger.info("rocm patches: our kernel replaces %s.%s: %s", module, name, error)
        return None
