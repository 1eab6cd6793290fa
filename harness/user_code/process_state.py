"""Save and restore the process state that a user's code may change.

Not put back: functions of other packages that were replaced (``torch.load``, say), because the model may need them.
"""

from __future__ import annotations

import builtins
import decimal
import gc
import io
import locale
import logging
import os
import signal
import socket
import ssl
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

import numpy as np
import torch
from torch import nn

from .. import determinism

_torch: Final[Any] = torch  # not all of it is typed
_LOGGER: Final = ("level", "disabled", "propagate", "handlers", "filters")
_STREAMS: Final[list[Any]] = []
"""Streams that a user's code has put in place of ours: one that is forgotten closes the file that it shares."""


def _attribute(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    def restore(value: Any) -> None:
        now = getattr(owner, name)
        if isinstance(now, io.IOBase) and now is not value:
            _STREAMS[:] = [*(one for one in _STREAMS if one is not now), now]
            with suppress(ValueError):  # closed
                now.flush()
        setattr(owner, name, value)

    return lambda: getattr(owner, name), restore


def _mapping(held: Any, *apart: str) -> tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], None]]:
    def read() -> dict[str, Any]:
        return {name: value for name, value in held.items() if name not in apart}

    def restore(values: dict[str, Any]) -> None:
        for name in held.keys() - values.keys() - set(apart):
            del held[name]
        held.update(values)

    return read, restore


def _loggers() -> dict[logging.Logger, dict[str, Any]]:
    known = [
        logging.root,
        *(one for one in logging.root.manager.loggerDict.values() if isinstance(one, logging.Logger)),
    ]
    values = {one: {name: getattr(one, name) for name in _LOGGER} for one in known}
    return {
        one: {name: list(v) if isinstance(v, list) else v for name, v in kept.items()} for one, kept in values.items()
    }


def _set_loggers(values: Mapping[logging.Logger, Mapping[str, Any]]) -> None:
    for one, kept in values.items():
        vars(one).update({name: list(value) if isinstance(value, list) else value for name, value in kept.items()})
        one.setLevel(kept["level"])  # and forget what was enabled


def _set_signals(handlers: Mapping[int, Any]) -> None:
    for one, handler in handlers.items():
        if handler is not None and signal.getsignal(one) is not handler:
            signal.signal(one, handler)


def _set_all(owner: object, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        setattr(owner, name, value)


def _directory() -> str | None:
    try:
        return os.getcwd()  # noqa: PTH109
    except FileNotFoundError:
        return None


def _autocast() -> list[tuple[Any, ...]]:
    return [(kind, _torch.is_autocast_enabled(kind), _torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]


def _set_autocast(values: list[tuple[Any, ...]]) -> None:
    for kind, enabled, dtype in values:
        _torch.set_autocast_enabled(kind, enabled)
        _torch.set_autocast_dtype(kind, dtype)


def _default_device() -> torch.device | None:
    """The one that was set; None where none was, which costs nothing at each call of a function."""
    context = getattr(_torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)
    return None if context is None else context.device


_SETTINGS: Final[dict[str, tuple[Callable[[], Any], Callable[[Any], object]]]] = {
    "default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "default device": (_default_device, _torch.set_default_device),
    "gradients": (torch.is_grad_enabled, _torch.set_grad_enabled),
    "anomaly detection": (
        lambda: (_torch.is_anomaly_enabled(), _torch.is_anomaly_check_nan_enabled()),
        lambda value: _torch.autograd.set_detect_anomaly(*value),
    ),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        lambda value: torch.use_deterministic_algorithms(value[0], warn_only=value[1]),
    ),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "small numbers": (
        lambda: not float(torch.full((1,), 1e-40, dtype=torch.float32, device="cpu") * 0.5),
        torch.set_flush_denormal,
    ),
    "autocast": (_autocast, _set_autocast),
    "warnings of torch": (torch.is_warn_always_enabled, torch.set_warn_always),
    "cudnn": (
        lambda: {name: getattr(torch.backends.cudnn, name) for name in ("enabled", "benchmark", "deterministic")},
        lambda values: _set_all(torch.backends.cudnn, values),
    ),
    "printing of tensors": (
        lambda: dict(vars(_torch._tensor_str.PRINT_OPTS)),
        lambda values: vars(_torch._tensor_str.PRINT_OPTS).update(values),
    ),
    "errors of NumPy": (np.geterr, lambda values: np.seterr(**values)),
    "printing of arrays": (np.get_printoptions, lambda values: np.set_printoptions(**values)),
    "locale": (lambda: locale.setlocale(locale.LC_ALL), lambda value: locale.setlocale(locale.LC_ALL, value)),
    "recursion": (sys.getrecursionlimit, sys.setrecursionlimit),
    "digits of integers": (sys.get_int_max_str_digits, sys.set_int_max_str_digits),
    "garbage": (gc.isenabled, lambda value: gc.enable() if value else gc.disable()),
    "working directory": (_directory, os.chdir),
    "environment": _mapping(os.environ),
    "builtins": _mapping(vars(builtins), "__import__"),  # that one is a World's
    "signals": (lambda: {one: signal.getsignal(one) for one in signal.valid_signals()}, _set_signals),
    "logging": (lambda: logging.root.manager.disable, logging.disable),
    "loggers": (_loggers, _set_loggers),
    "timeout of sockets": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    **{
        f"{owner.__name__}.{name}": _attribute(owner, name)
        for owner, names in {
            sys: ("stdin", "stdout", "stderr", "excepthook", "displayhook", "unraisablehook"),
            threading: ("excepthook",),
            ssl: ("_create_default_https_context",),
        }.items()
        for name in names
    },
}
"""What is kept, each as a function that reads it and one that sets it."""


def settings() -> dict[str, Any]:
    """The present value of each setting, by name."""
    return {name: read() for name, (read, _) in _SETTINGS.items()}


def changed(before: Mapping[str, Any]) -> dict[str, Any]:
    """Those settings that are not what they were, with their present values."""
    return {name: now for name, now in settings().items() if name in before and not _same(now, before[name])}


def assume(values: Mapping[str, Any]) -> None:
    """Set some settings; one that cannot be set (a folder that is gone) keeps no other from being set."""
    for name, value in values.items():
        with suppress(Exception):
            _SETTINGS[name][1](value)


@contextmanager
def kept() -> Iterator[dict[str, Any]]:
    """Leave the process as it was when the block ends, whatever a user's code has set in it.

    Settings of torch and NumPy, precision, generators of random numbers, warnings, logging, streams, signals, the
    environment, the working directory and what else :data:`_SETTINGS` names; ``sys.path`` and modules belong to
    :class:`harness.user_code.python_file.World`. Costs about two milliseconds.

    Yields:
        The settings as they were.
    """
    with warnings.catch_warnings(), decimal.localcontext(), determinism.kept(), determinism.isolated():
        before = settings()
        try:
            yield before
        finally:
            assume({name: before[name] for name in changed(before)})


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a is b or a == b)
    except Exception:  # the values may be anybody's
        return False


class _Held:
    """Sets a default dtype whenever a model is called."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.before: list[torch.dtype] = []

    def enter(self, *_: Any) -> None:
        self.before.append(torch.get_default_dtype())
        torch.set_default_dtype(self.dtype)

    def leave(self, *_: Any) -> None:
        torch.set_default_dtype(self.before.pop())


def hold(made: object, before: Mapping[str, Any]) -> None:
    """Let a model find, whenever it is called, the default dtype that its code has set: its tensors are of that kind.

    Everything else that its code has set is not there any more when the model is called.
    """
    dtype = torch.get_default_dtype()
    if isinstance(made, nn.Module) and dtype != before["default dtype"]:
        held = _Held(dtype)
        made.register_forward_pre_hook(held.enter)
        made.register_forward_hook(held.leave, always_call=True)
