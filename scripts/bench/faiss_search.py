"""Searches by faiss-cpu in one thread, for `face-id bench search` to compare with.

Vectors and queries are raw files of little-endian f32, row-major. Prints one JSON object, for the exact index and, where
asked for, for HNSW: the milliseconds of each query, as the best of its rounds, and the scores and rows of its answers.
"""

import argparse
import json
import os
import time

import faiss
import numpy as np


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vectors", required=True)
    parser.add_argument("--queries", required=True)
    parser.add_argument("--dimension", type=int, required=True)
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5, help="how often each query is put")
    parser.add_argument("--hnsw", action="store_true", help="measure HNSW too; it takes long to build")
    return parser.parse_args()


def read(path, dimension):
    return np.fromfile(path, dtype="<f4").reshape(-1, dimension)


def measure(index, queries, k, rounds):
    index.search(queries[:1], k)
    times = [float("inf")] * len(queries)
    for _ in range(rounds):
        answers = []
        for n, query in enumerate(queries):
            began = time.perf_counter()
            scores, rows = index.search(query[None, :], k)
            times[n] = min(times[n], (time.perf_counter() - began) * 1e3)
            answers.append((scores[0].tolist(), rows[0].tolist()))
    scores, rows = zip(*answers)
    return {"ms": times, "scores": scores, "rows": rows}


def main():
    args = arguments()
    vectors, queries = read(args.vectors, args.dimension), read(args.queries, args.dimension)
    flat = faiss.IndexFlatIP(args.dimension)
    flat.add(vectors)
    faiss.omp_set_num_threads(1)
    result = {"version": faiss.__version__, "flat": measure(flat, queries, args.k, args.rounds), "hnsw": None}
    del flat
    if args.hnsw:
        # faiss's own defaults but for efSearch, which has to be above k for a usable recall.
        hnsw = faiss.IndexHNSWFlat(args.dimension, 32, faiss.METRIC_INNER_PRODUCT)
        hnsw.hnsw.efSearch = 64
        faiss.omp_set_num_threads(os.cpu_count())
        hnsw.add(vectors)
        faiss.omp_set_num_threads(1)
        result["hnsw"] = measure(hnsw, queries, args.k, args.rounds)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
