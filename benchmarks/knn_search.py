"""k nearest neighbours by cosine: `eval/neighbors.py` against faiss-cpu's flat index.

    python -m benchmarks.knn_search                      # 20,000 queries, 200,000 x 384
    python -m benchmarks.knn_search --queries 2000 --bank 50000

One JSON line. value: queries per second of ours, compile included in neither; baseline: of
faiss.IndexFlatIP with as many threads as this process has cores. equal: the same neighbours, but
where two similarities differ by less than 1e-6. peak_gib: what ours adds to the process's memory.
"""

import argparse
import os
import time

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--bank", type=int, default=200_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--neighbors", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=1)
    args = parser.parse_args()
    from benchmarks.rows import row

    rng = np.random.default_rng(0)
    bank, queries = (
        _unit(rng.standard_normal((num, args.width), np.float32))
        for num in (args.bank, args.queries)
    )
    times: dict[str, list[float]] = {"ours": [], "faiss": []}
    memory = 0.0
    for _ in range(args.repeats):
        seconds, grown, ours = ours_of(bank, queries, args.neighbors)
        times["ours"].append(seconds)
        memory = max(memory, grown)
        seconds, theirs = faiss_of(bank, queries, args.neighbors)
        times["faiss"].append(seconds)
    best = {name: min(values) for name, values in times.items()}
    row(
        name="knn_search",
        config=vars(args),
        value=round(args.queries / best["ours"], 1),
        unit="queries/s",
        baseline=round(args.queries / best["faiss"], 1),
        ratio=round(best["faiss"] / best["ours"], 2),
        equal=agree(ours, theirs),
        seconds=times,
        peak_gib=round(memory, 2),
        cores=len(os.sched_getaffinity(0)),
    )


def ours_of(bank, queries, neighbors: int):
    """(seconds, GiB that the process grew by, what was found)."""
    from dinojax.eval.neighbors import nearest
    from tests.support import peak_memory

    nearest(bank, queries, neighbors)  # compiles
    before = peak_memory.begin()
    began = time.perf_counter()
    found = nearest(bank, queries, neighbors)
    return time.perf_counter() - began, peak_memory.grown(before) / 2**30, found


def faiss_of(bank, queries, neighbors: int):
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    index = faiss.IndexFlatIP(bank.shape[1])
    index.add(bank)
    began = time.perf_counter()
    found = index.search(queries, neighbors)
    return time.perf_counter() - began, found


def agree(ours, theirs) -> bool:
    """The same neighbours, or as similar ones."""
    same = ours[1] == theirs[1]
    return bool(np.all(same | (np.abs(ours[0] - theirs[0]) < 1e-6)))


def _unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


if __name__ == "__main__":
    main()
