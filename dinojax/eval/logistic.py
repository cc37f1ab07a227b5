"""Logistic regression with an L2 penalty, solved exactly for a list of strengths.

Minimises |W|^2 / 2 + C * sum of the cross-entropies, the bias free: scikit-learn's convention,
softmax over the classes for more than two of them, one logit for two. The protocol of DINOv3's
fine-grained sets (arXiv:2508.10104, appendix D.7) tries 45 values of C.

Newton's method in float64 on the host. Its linear systems are solved by conjugate gradients, with
products in float32, which decides how fast it converges and not to what; where that takes long
and the unknowns are few, as with weak penalties and features that hardly differ, by Cholesky's
factors of the whole Hessian. Features are moved to their mean and onto the principal axes of their
own span first, where the diagonal of the Hessian is a good preconditioner; neither changes the
solution, and with fewer images than channels it leaves as many unknowns as there are images.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import scipy.linalg

STRENGTHS = tuple(10.0 ** np.linspace(-6, 5, 45))  # C of the released evaluation
TOLERANCE = 1e-9  # of the largest entry of the gradient, by its size at zero weights
MAX_NEWTON = 100
FEW = 5000  # unknowns whose Hessian may be factored (200 MB)
MOST_STEPS = 1000  # of conjugate gradients
TINY = 1e-20  # probabilities below count as 0 in the Hessian: float32 gets slow before it gets to 0


@dataclasses.dataclass(frozen=True)
class Model:
    """A fitted regression: logits = features @ weights_DK + bias_K."""

    weights_DK: np.ndarray
    bias_K: np.ndarray
    kind: str  # softmax | binary (one logit for two classes) | sigmoid (of columns of their own)
    residual: float  # largest entry of the gradient, divided by C, over its size at zero weights

    def scores(self, features_ND) -> np.ndarray:
        """Probabilities [N, C]; of two classes both, of sigmoid columns each its own."""
        logits_NK = np.asarray(features_ND, np.float64) @ self.weights_DK + self.bias_K
        if self.kind == "sigmoid":
            return _sigmoid(logits_NK)
        if self.kind == "binary":
            return np.concatenate([_sigmoid(-logits_NK), _sigmoid(logits_NK)], axis=1)
        return _softmax(logits_NK)


def fit(features_ND, labels, *, num_classes: int, strengths: Sequence[float]) -> Iterator[Model]:
    """A model for each C, in the order given; start with the smallest, each begins at the last.

    labels: int [N]; or 0/1 [N, C], where each column is a regression of its own (multi-label).
    Raises ValueError for features that are not finite or labels outside the classes.
    """
    kind, targets_NK = _targets(np.asarray(labels), num_classes)
    features_ND = np.asarray(features_ND, np.float64)
    if features_ND.ndim != 2 or not features_ND.size or not np.all(np.isfinite(features_ND)):
        raise ValueError(f"features {features_ND.shape} must be a filled, finite [N, D].")
    if len(features_ND) != len(targets_NK):
        raise ValueError(f"{len(features_ND)} features have {len(targets_NK)} labels.")
    mean_D = features_ND.mean(axis=0)
    moved_NR, axes_DR = _principal(features_ND - mean_D)
    problem = _Problem(moved_NR, targets_NK, softmax=kind == "softmax")
    theta = np.zeros((moved_NR.shape[1] + 1, targets_NK.shape[1]))
    for strength in strengths:
        theta, residual = _newton(problem, theta, 1.0 / strength)
        weights_DK = axes_DR @ theta[:-1]
        bias_K = theta[-1] - mean_D @ weights_DK
        if problem.softmax:  # a constant added to all classes changes nothing
            weights_DK = weights_DK - weights_DK.mean(axis=1, keepdims=True)
            bias_K = bias_K - bias_K.mean()
        yield Model(weights_DK, bias_K, kind, residual)


@dataclasses.dataclass(frozen=True)
class Chosen:
    """The strength that a validation set prefers, and the model that is tested."""

    strength: float
    values: tuple[float, ...]  # of the metric on the validation set, one per C
    model: Model


def choose(
    train: tuple,
    val: tuple,
    *,
    num_classes: int,
    metric: Callable,
    strengths: Sequence[float] = STRENGTHS,
    refit: bool = True,
) -> Chosen:
    """Fit every C on train, keep the first with the highest `metric(scores, labels)` on val.

    train, val: (features, labels). refit: on both together with that C, as the released evaluation
    does but for few shots.
    """
    best: tuple[float, float, Model] | None = None
    values = []
    fitted = fit(*train, num_classes=num_classes, strengths=strengths)
    for strength, model in zip(strengths, fitted, strict=True):
        values.append(float(metric(model.scores(val[0]), val[1])))
        if best is None or values[-1] > best[1]:
            best = (strength, values[-1], model)
    assert best is not None, "there is at least one strength"
    strength, _, model = best
    if refit:
        features, labels = (np.concatenate(pair) for pair in zip(train, val, strict=True))
        # From weak to strong, so that no step of Newton's starts far away.
        path = [c for c in strengths if c < strength][-8::2] + [strength]
        *_, model = fit(features, labels, num_classes=num_classes, strengths=path)
    return Chosen(strength, tuple(values), model)


class _Problem:
    """Cross-entropy of logits X W + b, its gradient and products with its Hessian."""

    def __init__(self, features_NR: np.ndarray, targets_NK: np.ndarray, *, softmax: bool):
        ones_N1 = np.ones((len(features_NR), 1))
        self.x = np.concatenate([features_NR, ones_N1], axis=1)
        self.x32 = self.x.astype(np.float32)
        self.squares32 = self.x32**2
        self.targets, self.softmax = targets_NK, softmax
        self.scale = max(
            np.max(np.abs(self.x.T @ (self._mean(0 * targets_NK) - targets_NK))), 1e-30
        )

    def _mean(self, logits_NK: np.ndarray) -> np.ndarray:
        return _softmax(logits_NK) if self.softmax else _sigmoid(logits_NK)

    def at(self, theta: np.ndarray, penalty: float) -> tuple[float, np.ndarray, np.ndarray]:
        """(value, gradient, probabilities)"""
        logits = self.x @ theta
        probabilities = self._mean(logits)
        if self.softmax:
            top = logits.max(axis=1)
            totals = np.log(np.sum(np.exp(logits - top[:, None]), axis=1)) + top
            loss = np.sum(totals) - np.sum(logits * self.targets)
        else:
            loss = np.sum(np.logaddexp(0.0, logits) - logits * self.targets)
        gradient = self.x.T @ (probabilities - self.targets)
        gradient[:-1] += penalty * theta[:-1]
        return loss + 0.5 * penalty * np.sum(theta[:-1] ** 2), gradient, probabilities

    def hessian(self, probabilities: np.ndarray, penalty: float) -> tuple[Callable, np.ndarray]:
        """(its product with a direction, its diagonal), in float32."""
        p = np.where(probabilities < TINY, 0, probabilities).astype(np.float32)
        weights = np.full(len(self.x32[0]), penalty, np.float32)[:, None]
        weights[-1] = 0.0
        curvature = p * (1 - p)

        def product(direction: np.ndarray) -> np.ndarray:
            moved = self.x32 @ direction
            if self.softmax:
                change = p * (moved - np.sum(p * moved, axis=1, keepdims=True))
            else:
                change = curvature * moved
            return self.x32.T @ change + weights * direction

        diagonal = self.squares32.T @ curvature + weights
        return product, np.maximum(diagonal, 1e-7)  # where all is certain

    def solved(self, probabilities: np.ndarray, penalty: float, target: np.ndarray) -> np.ndarray:
        """The step with Hessian x step = target, by factors of the Hessian in float64."""
        num, width = self.x.shape[1], target.shape[1]
        ridge = np.full(num, penalty)
        ridge[-1] = 1e-12 * self.scale  # of the bias: a constant of all classes is free
        whole = np.zeros((width, num, width, num))
        for one in range(width):
            for two in range(one, width) if self.softmax else (one,):
                p = probabilities[:, one]
                weights = p * ((one == two) - (probabilities[:, two] if self.softmax else p))
                whole[two, :, one] = (self.x * weights[:, None]).T @ self.x
            whole[one, :, one] += np.diag(ridge)
        factors = scipy.linalg.cho_factor(
            whole.reshape(width * num, -1), lower=True, overwrite_a=True, check_finite=False
        )
        return scipy.linalg.cho_solve(factors, target.T.reshape(-1)).reshape(width, num).T


def _newton(problem: _Problem, theta: np.ndarray, penalty: float) -> tuple[np.ndarray, float]:
    """(the minimum, its residual), from a start. Each step is halved until the value falls."""
    value, gradient, probabilities = problem.at(theta, penalty)
    for _ in range(MAX_NEWTON):
        residual = np.max(np.abs(gradient)) / problem.scale
        if residual < TOLERANCE:
            break
        # Far from the minimum a rough solution of the linear system will do.
        accuracy = max(min(0.1, np.sqrt(residual)), 1e-4)
        step = _step(problem, probabilities, penalty, -gradient, accuracy)
        slope, size = np.sum(gradient * step), 1.0
        while True:
            new = problem.at(theta + size * step, penalty)
            if new[0] <= value + 1e-4 * size * slope + 1e-13 * abs(value):
                break
            size /= 2
            if size < 1e-10:
                return theta, float(residual)  # as low as float64 tells
        theta = theta + size * step
        value, gradient, probabilities = new
    return theta, float(np.max(np.abs(gradient)) / problem.scale)


def _step(problem: _Problem, probabilities, penalty: float, target: np.ndarray, accuracy: float):
    """The solution of H x = target, to a share `accuracy` of the target or better."""
    hessian, most = problem.hessian(probabilities, penalty), MOST_STEPS
    if target.size <= FEW:  # twice as many float32 products as the factors in float64 are worth
        most = int(min(most, 100 + target.size / 2 + target.size**2 / (6 * len(problem.x))))
    step, is_there = _conjugate_gradients(*hessian, target, accuracy, most=most)
    if is_there or target.size > FEW:
        return step
    try:
        return problem.solved(probabilities, penalty, target)
    except np.linalg.LinAlgError:  # not positive definite, by rounding
        return step


def _conjugate_gradients(
    product, diagonal, target: np.ndarray, accuracy: float, *, most: int
) -> tuple[np.ndarray, bool]:
    """(the solution of H x = target to a share `accuracy` of the target, in float32 products;
    whether it was reached in `most` steps)."""
    scale = np.max(np.abs(target))
    rest = (target / scale).astype(np.float32)
    found = np.zeros_like(rest)
    conditioned = rest / diagonal
    direction, energy = conditioned, np.vdot(rest, conditioned)
    goal = accuracy**2 * energy
    is_there = False
    for step in range(most):
        image = product(direction)
        curvature = np.vdot(direction, image)
        if curvature <= 1e-10 * np.vdot(direction, diagonal * direction):
            found = conditioned if step == 0 else found
            break  # lost to rounding
        size = energy / curvature
        found, rest = found + size * direction, rest - size * image
        conditioned = rest / diagonal
        new = np.vdot(rest, conditioned)
        if new <= goal:
            is_there = True
            break
        direction, energy = conditioned + (new / energy) * direction, new
    return found.astype(np.float64) * scale, is_there


def _principal(centered_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features on orthonormal axes [N, R], the axes [D, R]) that span all rows.

    Axes on which features are nothing but rounding are left out: their weights are 0.
    """
    num, width = centered_ND.shape
    if num < width:
        basis_DN, triangle = np.linalg.qr(centered_ND.T)
        rotation = np.linalg.eigh(triangle @ triangle.T)[1]
        moved_NR, axes_DR = triangle.T @ rotation, basis_DN @ rotation
    else:
        axes_DR = np.linalg.eigh(centered_ND.T @ centered_ND)[1]
        moved_NR = centered_ND @ axes_DR
    lengths_R = np.linalg.norm(moved_NR, axis=0)
    kept_R = lengths_R > 1e-13 * np.max(lengths_R, initial=0.0)
    return moved_NR[:, kept_R], axes_DR[:, kept_R]


def _targets(labels: np.ndarray, num_classes: int) -> tuple[str, np.ndarray]:
    """(kind, one column per logit)"""
    if labels.ndim == 2:
        if labels.shape[1] != num_classes:
            raise ValueError(f"{labels.shape[1]} columns of targets for {num_classes} classes.")
        return "sigmoid", labels.astype(np.float64)
    if not 0 <= labels.min() <= labels.max() < num_classes:
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}; there are {num_classes} classes."
        )
    one_hot = np.eye(num_classes)[labels]
    return ("binary", one_hot[:, 1:]) if num_classes == 2 else ("softmax", one_hot)


def _softmax(logits_NK: np.ndarray) -> np.ndarray:
    exponents = np.exp(logits_NK - logits_NK.max(axis=1, keepdims=True))
    return exponents / exponents.sum(axis=1, keepdims=True)


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return 0.5 * (1.0 + np.tanh(0.5 * logits))
