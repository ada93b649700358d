"""Optimizers that do not load torch's compiler when nobody compiles.

torch's optimizers keep themselves out of compiled graphs, and load the compiler (``torch._dynamo``, with sympy: 800
modules) to say so: 1.1 s of processor time and 70 MiB in each process that trains. As long as nothing has loaded it
there is no graph to keep out of, and the same code runs without saying so.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any, Final

import torch as th

_COMPILER: Final = "torch._dynamo"
_METHODS: Final = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")


def spare_the_compiler() -> None:
    """Let the optimizers of ``torch.optim`` work without ``torch._dynamo`` until something else loads it.

    Goes by what torch's own wrappers look like (seen with 2.13); a method that looks otherwise stays as it is. Without
    effect once an optimizer was made, which has loaded it.
    """
    if _COMPILER in sys.modules:
        return
    for name in _METHODS:
        method: Any = getattr(th.optim.Optimizer, name)
        if _is_wrapper(method, "torch._compile", "inner"):
            setattr(th.optim.Optimizer, name, _until_compiled(method, method.__wrapped__))
    for kind in vars(th.optim).values():
        step: Any = vars(kind).get("step") if isinstance(kind, type) else None
        if step is not None and _is_wrapper(step, "torch.optim.optimizer", "_use_grad"):
            kind.step = _until_compiled(step, _with_grad_mode(step.__wrapped__))


def _is_wrapper(method: Any, module: str, name: str) -> bool:
    code = getattr(method, "__code__", None)
    where = getattr(method, "__globals__", {}).get("__name__")
    return code is not None and (where, code.co_name) == (module, name) and hasattr(method, "__wrapped__")


def _until_compiled(method: Callable[..., Any], plain: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(*arguments: Any, **named: Any) -> Any:
        return (method if _COMPILER in sys.modules else plain)(*arguments, **named)

    return call


def _with_grad_mode(step: Callable[..., Any]) -> Callable[..., Any]:
    """What torch's ``_use_grad_for_differentiable`` does besides: gradients are followed as the optimizer was told."""

    def call(self: th.optim.Optimizer, *arguments: Any, **named: Any) -> Any:
        with th.set_grad_enabled(self.defaults["differentiable"]):
            return step(self, *arguments, **named)

    return call
