"""A forked process loads and answers, or says at once why it cannot; it never waits for threads that it lacks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import PROMPT, Packages

# What a child does with `expert` and `manager` of its parent, and what it then tells.
CHILDREN = {
    "an expert of the parent": "refused(lambda: expert.generate(PROMPT))",
    "its stream": "refused(lambda: expert.generate_stream(PROMPT))",
    "its batch": "refused(lambda: expert.generate_batch([PROMPT, PROMPT]))",
    "its awaited answer": "refused(lambda: asyncio.run(expert.agenerate(PROMPT)))",
    "an answer that had begun": "refused(lambda: list(running)) and refused(lambda: running.result)",
    "a batch in its middle": "running.close() or fresh()",
    "a manager of the parent": "refused(lambda: manager.generate('lora', PROMPT))",
    "loading into it": "refused(lambda: manager.load_expert('new', PACKAGE))",
    "its lists": "refused(manager.stats) and refused(manager.list_loaded_experts)",
    "an expert of its own": "fresh()",
    "one with more threads": "fresh(threads=2)",
    "one after closing what was the parent's": "(expert.close(), manager.close()) and fresh()",
    "one where a lock was held": "fresh()",
    "two, one after the other": "fresh() and fresh()",
    "a manager of its own": "fresh_manager()",
    "masks of several answers": "grammars()",
    "a child of its own": "grandchild()",
    "a collection of garbage": "gc.collect() >= 0 and fresh()",
}

SCRIPT = """
import asyncio, contextlib, gc, json, multiprocessing, os, pty, signal, sys, threading, traceback
from tqdm import tqdm

from hivellm_ort import Expert, ExpertManager, InferenceError
from hivellm_ort.serving.pool import BASES
from hivellm_ort.integrity import trust

sys.stderr.isatty = lambda: True  # so that loading has a progress bar
PACKAGE, CACHE, PROMPT = sys.argv[1:4]
CHILDREN = json.loads(sys.argv[4])

def load(threads=1):
    return Expert.load(PACKAGE, cache_dir=CACHE, threads=threads)

def refused(call):
    try:
        call()
    except InferenceError as error:
        assert "'spawn'" in str(error) or "not ended" in str(error), error
        return True
    raise AssertionError("no error")

def fresh(threads=1):
    with load(threads) as mine:
        assert mine.generate(PROMPT, max_tokens=5).tokens == TOKENS
    return True

def fresh_manager():
    with ExpertManager(cache_dir=CACHE, threads=1) as mine:
        mine.load_expert("lora", PACKAGE)
        assert mine.generate("lora", PROMPT, max_tokens=5).tokens == TOKENS
    return True

def answers(one):
    return [answer.text for answer in one.generate_batch([PROMPT] * 3, choice=["yes", "no", "nobody knows"])]

def grammars():
    with load() as mine:
        assert answers(mine) == CHOSEN
    return True

def grandchild():
    with load() as mine:
        mine.generate(PROMPT, max_tokens=5)
        return forked(lambda: refused(lambda: mine.generate(PROMPT)) and fresh(), os._exit)

def forked(work, leave=sys.exit):
    child = os.fork()
    if not child:
        signal.alarm(20)  # nothing but the end of the process helps where it hangs
        status = 1
        try:
            status = 0 if work() else 2
        except BaseException:
            traceback.print_exc()
        leave(status)
    return os.waitpid(child, 0)[1] == 0

def of_pool(_):
    return refused(lambda: expert.generate(PROMPT)) and fresh()

expert = load()
TOKENS = expert.generate(PROMPT, max_tokens=5).tokens
CHOSEN = answers(expert)
manager = ExpertManager(cache_dir=CACHE, threads=1)
manager.load_expert("lora", PACKAGE)
manager.generate("lora", PROMPT, max_tokens=2)
gate = threading.Event()
running = expert.generate_stream(PROMPT, max_tokens=50, processors=[lambda *_: gate.wait(60) and None])
outcome = {}
held = threading.Event()
def hold():
    with BASES._lock, trust._warned_lock, tqdm.get_lock():
        held.set()
        gate.wait(60)
threading.Thread(target=hold, daemon=True).start()
held.wait(20)
for name, work in CHILDREN.items():
    outcome[name] = forked(lambda: eval(work))
with multiprocessing.get_context("fork").Pool(2) as pool:
    outcome["a pool of processes"] = all(pool.map_async(of_pool, range(4)).get(60))
gate.set()
outcome["the parent"] = len(list(running)) > 0 and expert.generate(PROMPT, max_tokens=5).tokens == TOKENS
by_processor = []
def forking(*_):
    if not by_processor:
        by_processor.append(forked(fresh, os._exit))
expert.generate(PROMPT, max_tokens=2, processors=[forking])
outcome["a child of a processor"] = by_processor == [True]
by_hook, by_listener = [], []
manager.events.add(lambda event: by_hook or by_hook.append(forked(
    lambda: refused(lambda: manager.generate("lora", PROMPT)) and fresh(), os._exit
)))
manager.generate("lora", PROMPT, max_tokens=2)
outcome["a child of an event hook"] = by_hook == [True]
stream = expert.generate_stream(PROMPT, max_tokens=5)
stream.listen(lambda: by_listener or by_listener.append(forked(fresh, os._exit)))
list(stream)
expert.generate(PROMPT, max_tokens=1)  # by the thread that calls the listener
outcome["a child of a listener"] = by_listener == [True]
thread = threading.Thread(target=lambda: outcome.update({"a child of a thread": forked(fresh, os._exit)}))
thread.start()
thread.join()
running = expert.generate_stream(PROMPT, max_tokens=200)
outcome["children while an answer runs"] = all([forked(fresh, os._exit) for _ in range(3)])
running.close()
child, terminal = pty.fork()
if not child:
    signal.alarm(20)
    os._exit(0 if fresh() else 2)
with contextlib.suppress(OSError):  # the end of the other side
    while os.read(terminal, 1000):
        pass
outcome["a child with a terminal of its own"] = os.waitpid(child, 0)[1] == 0
print(json.dumps(outcome))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_forks(packages: Packages, tmp_path: Path) -> None:
    """In a forked process inherited experts raise at once, and newly loaded experts answer. The parent goes on."""
    script = tmp_path / "forks.py"
    script.write_text(SCRIPT, encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script, packages.lora, packages.cache, PROMPT, json.dumps(CHILDREN)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert 0 == done.returncode, done.stderr
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert [] == [name for name, sound in outcome.items() if not sound], done.stderr
    assert len(CHILDREN) + 8 == len(outcome)
