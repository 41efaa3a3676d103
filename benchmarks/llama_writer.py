"""What a child of ``benchmarks.bench_generation`` does, and llama.cpp as one of them.

It imports nothing of this project, so that llama-cpp-python can be installed anywhere, in an
environment of its own: ``python llama_writer.py MODEL.gguf PROMPT_AS_JSON``.
"""

import ctypes
import gc
import json
import os
import re
import sys
import time


def peak_memory():
    """Return the largest resident size since the last ``forget_peak``, in bytes (Linux)."""
    with open("/proc/self/status", encoding="utf-8") as file:
        return int(re.search(r"VmHWM:\s+(\d+) kB", file.read())[1]) * 1024


def forget_peak():
    """Give freed memory back and count the peak from here, loading left aside (Linux)."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w", encoding="utf-8") as file:
        file.write("5")


def serve(write, **more):
    """Warm up; then, whenever a line with a number of tokens comes in, print what was measured.

    Args:
        write: takes a number of tokens, and writes so many after the prompt.
        more: to be told beside the first measurement.
    """

    def took(count):
        start, cpu = time.perf_counter(), time.process_time()
        write(count)
        return time.perf_counter() - start, time.process_time() - cpu

    cold, _ = took(3)  # whatever is done once, compilation above all
    forget_peak()
    print(json.dumps({"cold": cold, **more}), flush=True)
    for line in sys.stdin:
        write(1)  # the memory of a process that waited for its turn may have been put away
        first, first_cpu = took(1)
        whole, whole_cpu = took(int(line))
        measured = {
            "first": first,
            "rate": (int(line) - 1) / (whole - first),
            "by_cpu": (int(line) - 1) / (whole_cpu - first_cpu),
            "peak": peak_memory(),
        }
        print(json.dumps(measured), flush=True)


def main():
    """Load, and let llama.cpp write."""
    from llama_cpp import Llama, __version__

    path, prompt = sys.argv[1], json.loads(sys.argv[2])
    cores = os.cpu_count()
    llama = Llama(path, n_ctx=1024, n_threads=cores, n_threads_batch=cores, verbose=False)

    def write(count):
        llama.reset()
        tokens = llama.generate(prompt, temp=0.0)
        for _ in range(count):
            next(tokens)

    serve(write, version=__version__)


if __name__ == "__main__":
    main()
