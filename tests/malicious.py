"""Snapshots that somebody else would like a worker to load: pickles that touch a file as soon as any part of them runs.

Each is a payload alone, to be put behind a true header, unsigned or signed. The canary is a file that must not exist
afterwards, or, for those that would change a class, the class itself.
"""

from __future__ import annotations

import builtins
import importlib
import io
import operator
import os
import pickle
import runpy
import shutil
import subprocess
import timeit
from collections import Counter, defaultdict
from functools import partial, reduce
from pathlib import Path
from typing import Any

from river import datasets
from river.naive_bayes import GaussianNB
from river.stream import iter_csv
from river.utils.math import softmax

from streamal.learning.estimators import LeanGaussian
from streamal.learning.online import FactoryModel, OnlineModel
from streamal.learning.presets import build, call_factory
from streamal.learning.snapshot import AllowListUnpickler

PROTOCOL = 5
EXTENSION = 240
"""A code that copyreg keeps for private use."""


class Call:
    """Pickles to a call of `function` with `arguments`, and whatever else a reduction may hold."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None, items: Any = None) -> None:
        self.call = (function, arguments, state, items)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call

    def __call__(self) -> None:
        """Only what can be called may stand for the function of another call."""


class WithSetState:
    """Stands for an object whose `__setstate__` runs something."""

    def __setstate__(self, state: str) -> None:
        Path(state).touch()


def text(value: str) -> bytes:
    """A short string, as protocol 4 writes it."""
    return b"\x8c" + bytes([len(value)]) + value.encode()


def named(module: str, name: str) -> bytes:
    """The opcodes that put a global on the stack."""
    return text(module) + text(name) + b"\x93"


def corpus(canary: Path) -> dict[str, bytes]:
    """Return payloads by name; each would touch the canary, or do other harm, if it were loaded by `pickle.loads`."""
    path = str(canary)
    touch = f"touch {path}"
    code = f"open({path!r}, 'w').close()"
    shell = Call(os.system, touch)
    model = build("gaussian_nb", parameters={}, seed=1)
    calls: dict[str, Any] = {
        "os.system": shell,
        "os.popen": Call(os.popen, touch),
        "subprocess.Popen": Call(subprocess.Popen, ["touch", path]),
        "subprocess.check_output": Call(subprocess.check_output, ["touch", path]),
        "eval": Call(builtins.eval, code),
        "exec": Call(builtins.exec, code),
        "compile, then exec": Call(builtins.exec, Call(builtins.compile, code, "<x>", "exec")),
        "open": Call(builtins.open, path, "w"),
        "pathlib": Call(Path.touch, canary),
        "import": Call(builtins.__import__, "antigravity"),
        "import_module": Call(importlib.import_module, "antigravity"),
        "runpy": Call(runpy.run_path, path),
        "timeit": Call(timeit.timeit, code, "pass", timeit.default_timer, 1),
        "shutil.copy": Call(shutil.copy, __file__, path),
        "io.FileIO": Call(io.FileIO, path, "w"),
        "getattr chain": Call(Call(getattr, Call(builtins.__import__, "os"), "system"), touch),
        "getattr of an allowed class": Call(getattr, OnlineModel, "copy"),
        "setattr on an allowed class": Call(setattr, OnlineModel, "copy", None),
        "operator.methodcaller": Call(Call(operator.methodcaller, "touch"), canary),
        "functools.reduce": Call(reduce, os.system, [touch]),
        "functools.partial": Call(Call(partial, os.system, touch)),
        "partial in a defaultdict": Call(defaultdict, Call(partial, os.system, touch)),
        "defaultdict of a function": Call(defaultdict, os.system),
        "map over system": Call(list, Call(map, os.system, [touch])),
        "pickle within a pickle": Call(pickle.loads, pickle.dumps(shell)),
        "the unpickler itself": Call(AllowListUnpickler, b"", frozenset({"os:system"})),
        "streamal's own call of a factory": Call(call_factory, "antigravity:build"),
        "a dataset of River": Call(datasets.Phishing),
        "a download of River": Call(datasets.base.RemoteDataset, "http://127.0.0.1:9/x", 1, "BINARY", 1, 1),
        "a reader of River": Call(iter_csv, __file__),
        "a function of River": Call(softmax, {"a": 1.0}),
        "a class of River that this model has not": Call(GaussianNB),
        "a list around it": [1, {"x": (shell,)}],
        "a model around it": FactoryModel(shell, task="regression", weighted=False),
        "the state of an allowed class": Call(LeanGaussian, state=(None, {"mean": shell})),
        "items of an allowed class": Call(Counter, items=iter([shell])),
        "hostile arguments of an allowed class": Call(LeanGaussian, shell, shell),
        "setstate of another class": Call(WithSetState, state=path),
    }
    found = {name: pickle.dumps(call, PROTOCOL) for name, call in calls.items()}
    raw = {
        "protocol 0": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "the opcode of instances": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "the opcode of objects": b"\x80\x05(" + named("os", "system") + text(touch[:200]) + b"o.",
        "a registered extension": b"\x80\x05\x82" + bytes([EXTENSION]) + text(touch[:200]) + b"\x85R.",
        "a persistent id": b"\x80\x05" + text(path[:200]) + b"Q.",
        "a persistent id of protocol 0": f"P{path}\n.".encode(),
        "a buffer out of band": b"\x80\x05\x97.",
        "a memo of 2**31 places": b"\x80\x05Nr\xff\xff\xff\x7f.",
        "a memo of 2**31 places in text": b"\x80\x05Np2147483647\n.",
        "a number of a million digits": b"I" + b"9" * 1_000_000 + b"\n.",
        "protocol 255": b"\x80\xff" + pickle.dumps(shell, PROTOCOL)[2:],
        "a pickle behind a pickle's end": pickle.dumps(shell, 0) + pickle.dumps(model, PROTOCOL),
        "dots through an allowed module": b"\x80\x05" + named("streamal.learning.online", "pickle.loads") + b"N\x85R.",
        "modules through an allowed one": b"\x80\x05" + named("collections", "_sys.modules") + b".",
        "a colon in a name": b"\x80\x05" + named("collections", "Counter:x") + b".",
        "a frame longer than the rest": b"\x80\x05\x95" + b"\xff" * 8 + pickle.dumps(shell, PROTOCOL)[11:],
        "a string longer than the rest": b"\x80\x05X\xff\xff\xff\xff.",
        "a string longer than all memory": b"\x80\x05\x8d" + b"\xff" * 7 + b"\x7f.",
        "cut in the middle": pickle.dumps(model, PROTOCOL)[:-200],
        "an attribute of an allowed class": b"\x80\x05"
        + named("streamal.learning.online", "OnlineModel")
        + b"N}"
        + text("copy")
        + named("collections", "Counter")
        + b"s\x86b.",
        "a model, and an attribute of its class": pickle.dumps(model, PROTOCOL)[:-1]
        + named("streamal.learning.estimators", "LeanGaussian")
        + b"N}"
        + text("update")
        + named("collections", "Counter")
        + b"s\x86b0.",
        "a list that holds itself": b"\x80\x05]\x94h\x00a.",
        "a million tuples in each other": b"\x80\x05)" + b"\x85" * 1_000_000 + b".",
        "the stack of nobody": b"\x80\x05" + b"0" * 100 + b".",
    }
    return found | raw
