"""Let llama.cpp write: the child of ``benchmarks.bench_generation``, in an environment of its own.

It imports nothing of this project, so that llama-cpp-python can be installed anywhere:
``python llama_writer.py MODEL.gguf PROMPT_AS_JSON``. Whenever a line with a number of tokens comes
in, it measures and writes what was found, as the other children do.
"""

import json
import os
import re
import sys
import time

from llama_cpp import Llama, __version__


def peak_memory() -> float:
    """Return the largest resident size since the peak was forgotten, in bytes (Linux)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) * 1024


def main() -> None:
    """Load, warm up, and answer."""
    path, prompt = sys.argv[1], json.loads(sys.argv[2])
    cores = os.cpu_count()
    llama = Llama(path, n_ctx=1024, n_threads=cores, n_threads_batch=cores, verbose=False)

    def write(count: int) -> None:
        llama.reset()
        tokens = llama.generate(prompt, temp=0.0)
        for _ in range(count):
            next(tokens)

    def took(count: int) -> tuple[float, float]:
        start, cpu = time.perf_counter(), time.process_time()
        write(count)
        return time.perf_counter() - start, time.process_time() - cpu

    start = time.perf_counter()
    write(3)
    cold = time.perf_counter() - start
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")
    print(json.dumps({"cold": cold, "version": __version__}), flush=True)
    for line in sys.stdin:
        write(1)
        first, first_cpu = took(1)
        whole, whole_cpu = took(int(line))
        measured = {
            "first": first,
            "rate": (int(line) - 1) / (whole - first),
            "by_cpu": (int(line) - 1) / (whole_cpu - first_cpu),
            "peak": peak_memory(),
        }
        print(json.dumps(measured), flush=True)


if __name__ == "__main__":
    main()
