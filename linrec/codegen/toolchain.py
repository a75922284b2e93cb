"""From assembly text to a function's address, by LLVM (llvmlite), with the machine code kept in the user's cache
directory: ``LINREC_CACHE_DIR``, or linrec under ``XDG_CACHE_HOME`` or ``~/.cache``, or a private temporary directory
where that cannot be written. A file is named by a hash of all that the code depends on, and carries a checksum."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

_lock = threading.Lock()
_loaded: dict[str, tuple[Any, int]] = {}


@functools.cache
def _llvm() -> Any:
    """llvmlite's binding; None where it is not installed."""
    try:
        import llvmlite.binding as llvm
    except ImportError:
        return None
    with contextlib.suppress(RuntimeError, AttributeError):  # newer releases initialise themselves
        llvm.initialize()
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name in filter(None, (ctypes.util.find_library("m"), ctypes.util.find_library("c"))):
        with contextlib.suppress(RuntimeError, OSError):
            llvm.load_library_permanently(name)
    return llvm


def available() -> bool:
    """Whether code can be compiled on this machine."""
    return _llvm() is not None


@functools.cache
def vector_bytes() -> int:
    """The size of the vectors that the processor works with, or a small multiple of it."""
    llvm = _llvm()
    features = llvm.get_host_cpu_features() if llvm else {}
    return 64 if features.get("avx512f") else 32


@functools.cache
def _machine() -> tuple[Any, str]:
    llvm = _llvm()
    target = llvm.Target.from_default_triple()
    cpu, features = llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()
    machine = target.create_target_machine(
        cpu=cpu, features=features, opt=3, reloc="pic", codemodel="jitdefault", jit=True
    )
    import llvmlite

    return machine, f"{llvmlite.__version__} {llvm.llvm_version_info} {machine.triple} {cpu} {features}"


def function(text: str, name: str) -> int:
    """The address of a function of some assembly text; compiled at most once per machine.

    Raises:
        RuntimeError: where LLVM does not accept the text.
    """
    with _lock:
        key = hashlib.sha256(f"{_machine()[1]}\n{text}".encode()).hexdigest()
        if key not in _loaded:
            _loaded[key] = _load(_object(text, key), name)
        return _loaded[key][1]


def _load(code: bytes, name: str) -> tuple[Any, int]:
    llvm = _llvm()
    target = llvm.Target.from_default_triple().create_target_machine(jit=True, codemodel="jitdefault", reloc="pic")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return engine, engine.get_function_address(name)


def _object(text: str, key: str) -> bytes:
    """Machine code for a text, from the cache where it is."""
    folder = cache_folder()
    path = folder / f"{key[:40]}.o" if folder else None
    if path is not None:
        code = _checked(path)
        if code is not None:
            return code
    code = _compiled(text)
    if path is not None:
        _write(path, hashlib.sha256(code).digest() + code)
    return code


def _compiled(text: str) -> bytes:
    llvm = _llvm()
    module = llvm.parse_assembly(text)
    module.verify()
    machine = _machine()[0]
    tuning = llvm.create_pipeline_tuning_options(speed_level=2)
    tuning.loop_vectorization = False
    tuning.slp_vectorization = False
    builder = llvm.create_pass_builder(machine, tuning)
    builder.getModulePassManager().run(module, builder)
    code: bytes = machine.emit_object(module)
    return code


def _checked(path: Path) -> bytes | None:
    try:
        found = path.read_bytes()
    except OSError:
        return None
    digest, code = found[:32], found[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _write(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    with contextlib.suppress(OSError):
        handle, name = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise


@functools.cache
def _folder(given: str, home: str) -> Path | None:
    first = Path(given) if given else Path(home or os.path.expanduser("~/.cache")) / "linrec"
    private = Path(tempfile.gettempdir()) / f"linrec-{os.getuid() if hasattr(os, 'getuid') else 'user'}"
    for folder in (first, private):
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError:
            continue
        if _is_mine(folder):
            return folder
    return None


def cache_folder() -> Path | None:
    """Where machine code is kept; None where no folder can be written by this user and nobody else."""
    return _folder(os.environ.get("LINREC_CACHE_DIR", ""), os.environ.get("XDG_CACHE_HOME", ""))


def _is_mine(folder: Path) -> bool:
    """Whether this user owns a folder that others cannot write: what is in it is run."""
    if not os.access(folder, os.W_OK):
        return False
    if not hasattr(os, "getuid"):
        return True
    found = folder.stat()
    return found.st_uid == os.getuid() and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
