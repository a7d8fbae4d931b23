"""A slower disk: a library that lets each fsync take longer, made by gcc where there is one."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

VARIABLE = "BENCH_FSYNC_MICROSECONDS"
_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_longer(void) {
    const char *text = getenv("%s");
    long microseconds = text ? atol(text) : 0;
    struct timespec left = {microseconds / 1000000, microseconds %% 1000000 * 1000};
    while (nanosleep(&left, &left)) {}
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(descriptor);
    wait_longer();
    return result;
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(descriptor);
    wait_longer();
    return result;
}
"""


def build(directory: Path) -> Path | None:
    """Make the library; None where there is no gcc."""
    if shutil.which("gcc") is None:
        return None
    library = directory / "slowdisk.so"
    source = directory / "slowdisk.c"
    source.write_text(_SOURCE % VARIABLE)
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    return library


def environment(library: Path, milliseconds: float) -> dict[str, str]:
    """Return what makes a program use the library."""
    return {"LD_PRELOAD": str(library), VARIABLE: str(int(milliseconds * 1000))}
