"""One input after another to one target: what is not refused with a typed error is kept as a finding."""

from __future__ import annotations

import contextlib
import faulthandler
import hashlib
import importlib
import json
import random
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import psutil

try:
    import resource
except ImportError:  # Windows has none: memory is measured there, and not bounded
    resource = None  # type: ignore[assignment]

__all__ = ["CORPUS", "Attempts", "limit_memory", "load", "refusing", "starts"]

CORPUS = Path(__file__).parent / "corpus"
_TESTS = Path(__file__).resolve().parents[1]
SECONDS = 10.0
"""Most processor time of one input."""
HANGS = 60.0
"""Most time of one input by the clock: then the process ends."""
GROWTH = 1 << 30
"""Most bytes that one input may add to the process."""
_ADDRESSES = 8 << 30  # beyond those of the start: an allocation that is larger fails
_SHRINKING = 5.0  # seconds to shorten an input


def load(name: str) -> ModuleType:
    """The module of a target; the tests' own samples can be imported then."""
    folders = ("fuzz", "package", "text", "grammar", "export", "runtime")
    sys.path[:0] = [str(_TESTS / folder) for folder in folders] + [str(_TESTS)]
    return importlib.import_module(f"fuzz_{name}")


def starts(module: ModuleType) -> list[bytes]:
    """What mutations begin with: the files of the corpus, and the samples that the target makes."""
    folder = CORPUS / module.__name__.removeprefix("fuzz_")
    return [path.read_bytes() for path in sorted(folder.glob("*"))] + list(module.samples())


@contextlib.contextmanager
def refusing(*kinds: type[Exception]) -> Iterator[None]:
    """Let typed errors pass that say something, and not without end."""
    try:
        yield
    except kinds as error:
        message = str(error)
        assert message.strip(), f"{type(error).__name__} without a message"  # noqa: PT017
        assert len(message) < 20_000, f"a message of {len(message)} characters"


def limit_memory() -> None:
    """Limit the addresses of this process, for good: an allocation that is much larger than the others fails."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            most = psutil.Process().memory_info().vms + _ADDRESSES
            resource.setrlimit(resource.RLIMIT_AS, (most, resource.getrlimit(resource.RLIMIT_AS)[1]))


class Attempts:
    """Runs a target on inputs, within bounds.

    Args:
        target: The function.
        folder: Where findings go: an input, and beside it what happened.
    """

    def __init__(self, target: Callable[[bytes], None], folder: Path) -> None:
        self._target = target
        self._folder = folder
        self._known: set[str] = set()
        self._said = 0.0
        self.count = 0
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, data: bytes) -> None:
        """Try one input. A crash, or a hang, ends the process: the input is then in the file `running`."""
        (self._folder / "running").write_bytes(data)
        self.count += 1
        if time.monotonic() - self._said > 1:
            self.say()
        faulthandler.dump_traceback_later(HANGS, exit=True)
        fault = self._fault(data)
        faulthandler.cancel_dump_traceback_later()
        if fault is not None and fault[0] not in self._known:
            self._known.add(fault[0])
            self._keep(self._shortened(data, fault[0]), *fault)

    def say(self) -> None:
        """Write how far it is to the file `status`."""
        self._said = time.monotonic()
        (self._folder / "status").write_text(json.dumps({"inputs": self.count}))

    def _fault(self, data: bytes) -> tuple[str, str] | None:
        """What is wrong, in short and in full; None where nothing is."""
        begin, size = time.process_time(), _peak()
        try:
            self._target(data)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # a panic of Rust is no Exception
            place = traceback.extract_tb(error.__traceback__)[-1]
            short = f"{type(error).__name__} at {Path(place.filename).name}:{place.lineno}"
            return short, "".join(traceback.format_exception(error, limit=-12))
        seconds, growth = time.process_time() - begin, _peak() - size
        if seconds > SECONDS:
            return "slow", f"took {seconds:.1f} s of processor time\n"
        if growth > GROWTH:
            return "memory", f"took {growth >> 20} MiB more than anything before\n"
        return None

    def _shortened(self, data: bytes, fault: str) -> bytes:
        """A shorter input with the same fault, if a few attempts find one."""
        end, step = time.monotonic() + _SHRINKING, len(data) // 2
        while step and fault not in ("slow", "memory"):
            for at in range(0, len(data), step):
                if time.monotonic() > end:
                    return data
                shorter = data[:at] + data[at + step :]
                found = self._fault(shorter)
                if found is not None and found[0] == fault:
                    data = shorter
                    break
            else:
                step //= 2
        return data

    def _keep(self, data: bytes, short: str, full: str) -> None:
        path = self._folder / hashlib.sha256(data).hexdigest()[:16]
        path.write_bytes(data)
        path.with_suffix(".txt").write_text(f"{short}\n\n{full}", encoding="utf-8", errors="backslashreplace")
        print(f"finding: {short}: {path}", flush=True)


def _peak() -> int:
    """Most bytes that this process ever had in memory."""
    if resource is None:
        return int(psutil.Process().memory_info().peak_wset)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def loop(module: ModuleType, attempts: Attempts, *, seconds: float, seed: int, known: bool) -> None:
    """Try what is known, unless it was tried before, then mutations until the time is over."""
    begins, rng = starts(module), random.Random(seed)
    for data in begins if known else ():
        attempts.run(data)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        attempts.run(module.mutate(rng.choice(begins), rng))


def guided(module: ModuleType, attempts: Attempts, *, seconds: float, seed: int, folder: Path) -> None:
    """As `loop`, where atheris chooses by the code that an input reaches; it does not come back."""
    import atheris

    corpus = folder / "reached"
    corpus.mkdir(exist_ok=True)
    for data in starts(module):
        (corpus / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)

    def mutate(data: bytes, most: int, number: int) -> bytes:
        rng = random.Random(number)
        changed = atheris.Mutate(data, most) if rng.random() < 0.3 else module.mutate(data, rng)
        return bytes(changed[:most])

    options = [
        f"-max_total_time={max(1, int(seconds))}", f"-seed={seed % 2**31 or 1}", "-max_len=262144",
        "-timeout=3600", "-rss_limit_mb=0", "-print_final_stats=0", f"-artifact_prefix={folder}/",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], *options, str(corpus)], attempts.run, custom_mutator=mutate)
    atheris.Fuzz()
