"""45 logistic regressions of one data set: `eval/logistic.py` against scikit-learn's loop.

    python -m benchmarks.logistic_sweep                      # 10,000 x 384, 100 classes
    python -m benchmarks.logistic_sweep --images 1000 --width 64 --classes 10

One JSON line. value: seconds of ours; baseline: of LogisticRegression with tol=1e-12 and
max_iter=1000 fitted anew for each C, as the released evaluation does, in the same process. equal:
the same C chosen on a validation part of a tenth, and coefficients within 1e-4 of the largest at
every C. Features are Gaussian classes that overlap, so that no C is without errors.
"""

import argparse
import time
import warnings

import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--classes", type=int, default=100)
    args = parser.parse_args()
    from benchmarks.rows import row
    from dinojax.eval import logistic

    train, val = (data(args, seed) for seed in (0, 1))
    val = tuple(part[: args.images // 10] for part in val)
    began = time.perf_counter()
    models = list(logistic.fit(*train, num_classes=args.classes, strengths=logistic.STRENGTHS))
    ours = time.perf_counter() - began
    began = time.perf_counter()
    peers = [fit_peer(*train, strength) for strength in logistic.STRENGTHS]
    theirs = time.perf_counter() - began
    differences = [
        float(np.max(np.abs(m.weights_DK.T - p.coef_)) / np.max(np.abs(p.coef_)))
        for m, p in zip(models, peers, strict=True)
    ]
    chosen = [int(np.argmax([share(m.scores, *val) for m in models]))]
    chosen.append(int(np.argmax([share(p.predict_proba, *val) for p in peers])))
    row(
        name="logistic_sweep",
        config=vars(args),
        value=round(ours, 2),
        unit="s",
        baseline=round(theirs, 2),
        ratio=round(theirs / ours, 2),
        equal=chosen[0] == chosen[1] and max(differences) < 1e-4,
        chosen=[logistic.STRENGTHS[number] for number in chosen],
        largest_difference=max(differences),
        largest_residual=max(model.residual for model in models),
        iterations=[int(p.n_iter_[0]) for p in peers],
    )


def data(args, seed: int):
    """(features, labels); the classes' means are the same for every seed."""
    means = np.random.default_rng(99).normal(size=(args.classes, args.width))
    rng = np.random.default_rng(seed)
    labels = np.arange(args.images) % args.classes
    noise = rng.normal(size=(args.images, args.width))
    return (0.25 * means[labels] + noise).astype(np.float32), labels


def fit_peer(features, labels, strength: float):
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of iterations that ran out
        peer = LogisticRegression(C=strength, tol=1e-12, max_iter=1000)
        return peer.fit(features.astype(np.float64), labels)


def share(scores, features, labels) -> float:
    return float(np.mean(np.argmax(scores(features.astype(np.float64)), axis=1) == labels))


if __name__ == "__main__":
    main()
