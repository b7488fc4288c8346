"""What a member is trained for beside label smoothing: other losses, augmentations of the label, smoothing by example.

A config names them in `members.objectives` as "name=strength", e.g. "max_suppression=0.2": each is a member with every seed, in
one program with the α of label smoothing, on the same batches from the same initialisation. What an objective knows of an example
beyond its label (`Known`) comes from an earlier run on the same train split, `training.teacher`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sc_jax import files
from sc_jax.data import augment, pipelines
from sc_jax.data.pipelines import Targets
from sc_jax.files import InputError
from sc_jax.ops import abstention_losses, losses
from sc_jax.ops.sparsemax import entmax_loss
from sc_jax.ops.temperature_scaling import fit_temperature

FOLDS = 5
"""Folds of the train split for predictions of examples that were not trained on."""

MOST_SMOOTHING = 0.8
"""Bound of the α(x) of smoothing by example."""


class Known(NamedTuple):
    """What is known of training examples beyond their labels; fields that no objective asks for are None.

    Attributes:
      fold: int32 [n], the fold an example is in.
      teacher: float32 [s, n, k], logits of the seed's network of plain cross-entropy, which was trained on the example.
      error: float32 [s, n], P_err(x) = 1 − max_k p(k | x) by the seed's network that learned from no label of the example's fold, at the
        temperature at which the log loss of all such predictions is least. (BatchNorm's statistics see the inputs of all folds.)
      mean_error: float32 [s], its mean over the examples.
      shuffled_error: float32 [s, n], `error` of another example, by a fixed permutation.
    """

    fold: jax.Array | None = None
    teacher: jax.Array | None = None
    error: jax.Array | None = None
    mean_error: jax.Array | None = None
    shuffled_error: jax.Array | None = None

    def at(self, index: jax.Array) -> Known:
        """Of a batch: index int32 [s, b] → the same fields [s, b, …]."""
        rows = jnp.arange(len(index))[:, None]

        def of(field: jax.Array | None) -> jax.Array | None:
            return None if field is None else field[rows, index]

        mean = None if self.mean_error is None else jnp.broadcast_to(self.mean_error[:, None], index.shape)
        fold = None if self.fold is None else self.fold[index]
        return Known(fold, of(self.teacher), of(self.error), mean, of(self.shuffled_error))


NOTHING = Known()

Loss = Callable[[jax.Array, jax.Array, float, Known], jax.Array]
"""(logits [b, k], label [b], strength, what is known of the batch) → [b]."""


class Beside(NamedTuple):
    """What a member that is trained to abstain has beside its logits; fields that no objective asks for are None.

    Attributes:
      abstain_logit, selection_logit: float32 [b]; auxiliary_logits: float32 [b, k]: heads of its network (`sc_jax.models.heads`).
      target: float32 [b], the running target of each example's label, this visit included.
      progress: float32 [], the share of training that lies behind.
    """

    abstain_logit: jax.Array | None = None
    selection_logit: jax.Array | None = None
    auxiliary_logits: jax.Array | None = None
    target: jax.Array | None = None
    progress: jax.Array | float = 0.0


ALONE = Beside()

HeadLoss = Callable[[jax.Array, Beside, jax.Array, float], jax.Array]
"""(logits [b, k], what is beside them, label [b], strength) → [b]."""


class Objective(NamedTuple):
    """A loss of one member's batch, or cross-entropy after a change of the batch.

    Attributes:
      loss: see `Loss`.
      least, below: the strength lies in [least, below), or in (0, below) where least is None.
      change: (key, images [b, …], label [b], strength) → images, targets; or None.
      needs: fields of `Known`.
      of_heads: the loss of a network with the `heads`, in place of `loss`.
      warm_up: the share of training at its start in which `loss` is taken in place of `of_heads`.
      confidence: the head by which the member itself ranks; none where its logits do.
      momentum: strength → that of the running targets, where there are such; they move after the warm-up.
      by_batch: the loss weighs examples against their batch: no mixture of two labels may be taken of it.
    """

    loss: Loss
    least: float | None = 0.0
    below: float = math.inf
    change: Callable[[jax.Array, jax.Array, jax.Array, float], tuple[jax.Array, Targets]] | None = None
    needs: tuple[str, ...] = ()
    of_heads: HeadLoss | None = None
    heads: tuple[str, ...] = ()
    warm_up: float = 0.0
    confidence: str = ""
    momentum: Callable[[float], float] | None = None
    by_batch: bool = False


def _cross_entropy(logits: jax.Array, label: jax.Array, strength: float, known: Known) -> jax.Array:
    return losses.smoothed_cross_entropy(logits, label, 0.0)


def _of_label(loss: Callable[..., jax.Array]) -> Loss:
    return lambda logits, label, strength, known: loss(logits, label, strength)


def _mixed(mix: Callable[..., augment.Mixed]) -> Callable[..., tuple[jax.Array, Targets]]:
    return lambda key, images, label, strength: pipelines.mixed(mix, strength, key, images, label)


def _disturbed(num_classes: int) -> Callable[..., tuple[jax.Array, Targets]]:
    """Each label is replaced by a class drawn uniformly, with the probability that is the strength, anew at each step."""

    def change(key: jax.Array, images: jax.Array, label: jax.Array, strength: float) -> tuple[jax.Array, Targets]:
        which, draw = jax.random.split(key)
        drawn = jax.random.randint(draw, label.shape, 0, num_classes)
        return images, Targets(jnp.where(jax.random.bernoulli(which, strength, label.shape), drawn, label))

    return change


def _left_out(logits: jax.Array, label: jax.Array, fold: float, known: Known) -> jax.Array:
    """Cross-entropy of the examples of the other folds, so scaled that its mean over the batch is their mean."""
    kept = known.fold != int(fold)
    return jnp.where(kept, losses.smoothed_cross_entropy(logits, label, 0.0), 0) / jnp.maximum(jnp.mean(kept), 1e-6)


def _distillation(logits: jax.Array, label: jax.Array, temperature: float, known: Known) -> jax.Array:
    """T²·CE(softmax(u/T), v/T), u the teacher's logits."""
    target = jax.nn.softmax(known.teacher / temperature)
    return temperature**2 * losses.soft_cross_entropy(logits / temperature, target)


def _instance_smoothing(inverse: bool) -> Loss:
    """ILS-1: the label gets 1 − ε·q_y, each other class ε·q_y/(K − 1), q the teacher's probabilities; `inverse` has 1 − q_y for q_y."""

    def loss(logits: jax.Array, label: jax.Array, epsilon: float, known: Known) -> jax.Array:
        k = logits.shape[-1]
        q = jnp.take_along_axis(jax.nn.softmax(known.teacher), label[:, None], axis=-1)[:, 0]
        return losses.smoothed_cross_entropy(logits, label, epsilon * (1 - q if inverse else q) * k / (k - 1))

    return loss


def equal_suppression(error: jax.Array, alpha: float, num_classes: int) -> jax.Array:
    """The α(x) that suppresses every max logit alike: min(α(1 − 1/K)/(1 − P_err − 1/K), bound), the bound where that is not > 0.

    Up to the bound its suppression in the mean over fresh labels, α(x)(1 − P_err − 1/K), is that of MaxSup, α(1 − 1/K), whatever P_err
    is. Of an example that is fitted already it is α(x)(1 − 1/K), which grows with P_err.

    Args:
      error: P_err [...]; alpha: the smoothing where P_err = 0; num_classes: K.

    Returns:
      [...], at most `MOST_SMOOTHING`.
    """
    share = 1 - error - 1 / num_classes
    return jnp.minimum(alpha * (1 - 1 / num_classes) / jnp.maximum(share, 1e-6), MOST_SMOOTHING)


def error_smoothing(error: jax.Array, mean_error: jax.Array, alpha: float) -> jax.Array:
    """The α(x) that grows with the risk of error: min(α·P_err/mean P_err, bound); its mean is α but for the bound.

    Its suppression in the mean over fresh labels, up to the bound proportional to P_err(1 − P_err − 1/K), is 0 where errors are impossible
    and grows up to P_err = (1 − 1/K)/2: the reverse of label smoothing's. Of an example that is fitted it is α(x)(1 − 1/K).

    Args:
      error: P_err [...]; mean_error: its mean over the train split; alpha: the smoothing on average.

    Returns:
      [...], at most `MOST_SMOOTHING`.
    """
    return jnp.minimum(alpha * error / jnp.maximum(mean_error, 1e-6), MOST_SMOOTHING)


def _equally_suppressed(logits: jax.Array, label: jax.Array, alpha: float, known: Known) -> jax.Array:
    return losses.smoothed_cross_entropy(logits, label, equal_suppression(known.error, alpha, logits.shape[-1]))


def _smoothed_by_error(logits: jax.Array, label: jax.Array, alpha: float, known: Known) -> jax.Array:
    return losses.smoothed_cross_entropy(logits, label, error_smoothing(known.error, known.mean_error, alpha))


def _smoothed_by_shuffled_error(logits: jax.Array, label: jax.Array, alpha: float, known: Known) -> jax.Array:
    return _smoothed_by_error(logits, label, alpha, known._replace(error=known.shuffled_error))


def _margin_smoothing(logits: jax.Array, label: jax.Array, margin: float, known: Known) -> jax.Array:
    return losses.margin_label_smoothing(logits, label, margin, 0.1 / logits.shape[-1])


def _of_temperature(logits: jax.Array, label: jax.Array, temperature: float, known: Known) -> jax.Array:
    return losses.smoothed_cross_entropy(logits / temperature, label, 0.0)


def _ranked(estimator: str) -> Loss:
    return lambda logits, label, share, known: abstention_losses.ranked_cross_entropy(
        logits, label, share, estimator=estimator
    )


def _surer(logits: jax.Array, label: jax.Array, beta: float, known: Known) -> jax.Array:
    """Cross-entropy + β·H(p)."""
    return losses.confidence_penalty(logits, label, -beta)


COVERAGE, PAYOFF, MOMENTUM = 0.8, 2.2, 0.9
"""c of SelectiveNet, o of Deep Gamblers and m of self-adaptive training where the strength is another parameter: the authors' defaults."""


def _selective_net(logits: jax.Array, beside: Beside, label: jax.Array, coverage: float, **how: bool) -> jax.Array:
    return abstention_losses.selective_net_loss(
        logits, beside.selection_logit, beside.auxiliary_logits, label, coverage, **how
    )


def _gambler(logits: jax.Array, beside: Beside, label: jax.Array, payoff: float) -> jax.Array:
    return abstention_losses.gambler_loss(logits, beside.abstain_logit, label, payoff)


def _self_adaptive(logits: jax.Array, beside: Beside, label: jax.Array, momentum: float) -> jax.Array:
    return abstention_losses.self_adaptive_loss(logits, beside.abstain_logit, label, beside.target)


def _with_entropy(loss: HeadLoss, parameter: float) -> HeadLoss:
    """The loss at its usual parameter + β·H(p), β the strength."""

    def surer(logits: jax.Array, beside: Beside, label: jax.Array, beta: float) -> jax.Array:
        return loss(logits, beside, label, parameter) + beta * abstention_losses.softmax_entropy(logits)

    return surer


def _trained_to_abstain() -> dict[str, Objective]:
    """Warm-up: a third of training for Deep Gamblers and half of it for self-adaptive training, as in the authors' code for CIFAR-10."""
    selective = Objective(
        _cross_entropy,
        least=None,
        below=1.0,
        of_heads=_selective_net,
        heads=("selection_logit", "auxiliary_logits"),
        confidence="selection_logit",
        by_batch=True,
    )
    gambler = Objective(
        _cross_entropy,
        least=1.0,
        of_heads=_gambler,
        heads=("abstain_logit",),
        warm_up=1 / 3,
        confidence="abstain_logit",
    )
    adaptive = Objective(
        _cross_entropy,
        below=1.0,
        of_heads=_self_adaptive,
        heads=("abstain_logit",),
        warm_up=1 / 2,
        confidence="abstain_logit",
        momentum=lambda momentum: momentum,
    )
    released = functools.partial(_selective_net, normalise_by_coverage=False)
    of_beta = {"least": 0.0, "below": math.inf}
    return {
        "selective_net": selective,  # c
        "selective_net_released": selective._replace(of_heads=released),  # c; r̂ not divided by coverage
        "deep_gamblers": gambler,  # o
        "self_adaptive": adaptive,  # m
        "selective_net_entropy": selective._replace(of_heads=_with_entropy(_selective_net, COVERAGE), **of_beta),  # β
        "deep_gamblers_entropy": gambler._replace(of_heads=_with_entropy(_gambler, PAYOFF), **of_beta),  # β
        "self_adaptive_entropy": adaptive._replace(  # β
            of_heads=_with_entropy(_self_adaptive, MOMENTUM), momentum=lambda beta: MOMENTUM, **of_beta
        ),
        "entropy_minimisation": Objective(_surer),  # β
        "aurc": Objective(_ranked("mean"), below=1.0, by_batch=True),  # share of AURC
        "sele": Objective(_ranked("sele"), below=1.0, by_batch=True),  # share of SELE
        "entmax": Objective(_of_label(entmax_loss), least=1.0),  # α
    }


def registry(num_classes: int) -> dict[str, Objective]:
    """Every objective by name; what its strength is stands beside it."""
    return {
        "max_suppression": Objective(_of_label(losses.max_suppression)),  # α
        "confidence_penalty": Objective(_of_label(losses.confidence_penalty)),  # β
        "focal": Objective(_of_label(losses.focal_loss)),  # γ
        "logit_norm": Objective(_of_label(losses.logit_norm_cross_entropy), least=None),  # τ
        "margin_smoothing": Objective(_margin_smoothing),  # m; λK = 0.1
        "acls": Objective(_of_label(losses.acls)),  # w; m = 10, λ = 0.1
        "temperature": Objective(_of_temperature, least=None),  # T: cross-entropy of v/T
        "mixup": Objective(_cross_entropy, least=None, change=_mixed(augment.mixup)),  # of Beta(a, a)
        "cutmix": Objective(_cross_entropy, least=None, change=_mixed(augment.cutmix)),  # of Beta(a, a)
        "label_noise": Objective(_cross_entropy, below=1.0, change=_disturbed(num_classes)),  # DisturbLabel's rate
        "left_out": Objective(_left_out, below=FOLDS, needs=("fold",)),  # the fold
        "distillation": Objective(_distillation, least=None, needs=("teacher",)),  # T
        "instance_smoothing": Objective(_instance_smoothing(False), below=1.0, needs=("teacher",)),  # ε
        "inverse_instance_smoothing": Objective(_instance_smoothing(True), below=1.0, needs=("teacher",)),  # ε
        "equal_suppression": Objective(_equally_suppressed, below=1.0, needs=("error",)),  # α
        "error_smoothing": Objective(_smoothed_by_error, below=1.0, needs=("error", "mean_error")),  # mean α
        "shuffled_error_smoothing": Objective(  # mean α; the control: the same α(x), of another x
            _smoothed_by_shuffled_error, below=1.0, needs=("error", "mean_error", "shuffled_error")
        ),
        **_trained_to_abstain(),
    }


class Named(NamedTuple):
    """An objective of a config: its name, its strength, and what it is."""

    name: str
    strength: float
    objective: Objective


def named(texts: Sequence[str], num_classes: int) -> list[Named]:
    """The objectives "name=strength" of a config.

    Raises:
      InputError: a name is unknown, or a strength is outside its range.
    """
    known, found = registry(num_classes), []
    for text in texts:
        name, _, value = text.partition("=")
        if name not in known:
            raise InputError(f"members.objectives: there is no objective {name!r}; there are {', '.join(known)}")
        objective = known[name]
        try:
            strength = float(value)
        except ValueError:
            raise InputError(f"members.objectives: {text!r} is not name=strength, e.g. {name}=0.2") from None
        if text != f"{name}={strength:g}":  # names of folders, and of what others learn from
            raise InputError(f"members.objectives: {text!r}: write '{name}={strength:g}'")
        over = strength > 0 if objective.least is None else strength >= objective.least
        whole = name != "left_out" or strength == int(strength)
        if not (over and strength < objective.below and whole):
            lower = "above 0" if objective.least is None else f"≥ {objective.least:g}"
            upper = "finite" if objective.below == math.inf else f"below {objective.below:g}"
            whole_number = ", a whole number" * (name == "left_out")
            raise InputError(f"members.objectives: {text!r}: the strength must be {lower} and {upper}{whole_number}")
        found.append(Named(name, strength, objective))
    return found


def needs(objectives: Sequence[Named]) -> set[str]:
    """The fields of `Known` that any of them asks for."""
    return {field for one in objectives for field in one.objective.needs}


def heads(objectives: Sequence[Named]) -> tuple[str, ...]:
    """The heads that any of them needs, which all members of the program have, in one order."""
    return tuple(sorted({head for one in objectives for head in one.objective.heads}))


def has_targets(objectives: Sequence[Named]) -> bool:
    """Whether any of them keeps running targets."""
    return any(one.objective.momentum for one in objectives)


def moved_targets(
    objectives: Sequence[Named],
    which: jax.Array,
    logits: jax.Array,
    label: jax.Array,
    target: jax.Array,
    progress: jax.Array,
) -> jax.Array:
    """The running targets [b] of one member after this batch; as they are in the warm-up, and of members without.

    Args:
      objectives, which, logits: as of `loss`; label: int32 [b]; target: [b], before; progress: see `Beside`.
    """
    for place, one in enumerate(objectives, 1):
        if one.objective.momentum is not None:
            momentum = one.objective.momentum(one.strength)
            moved = abstention_losses.self_adaptive_target(target, logits, label, momentum)
            target = jnp.where((which == place) & (progress >= one.objective.warm_up), moved, target)
    return target


def changed(
    objectives: Sequence[Named], keys: jax.Array, inputs: jax.Array, targets: Targets
) -> tuple[jax.Array, Targets, jax.Array]:
    """The batches of all seeds, as they are and as each objective that changes them has them.

    Members of a seed draw alike, so each is made once a seed.

    Args:
      objectives: of the program; keys: of each seed and the step, [s]; inputs: [s, b, …] as the model takes them.
      targets: with one label each.

    Returns:
      Inputs [v, s, b, …], targets of two labels [v, s, b], and which of the v are an objective's, int32 [1 + objectives]; label
      smoothing, at place 0, has the batches as they are.
    """
    made, place = [(inputs, _paired(targets))], [0]
    for one in objectives:
        if one.objective.change is None:
            place.append(0)
            continue

        def change(key: jax.Array, images: jax.Array, label: jax.Array, one: Named = one) -> tuple[jax.Array, Targets]:
            images, changed = one.objective.change(key, images, label, one.strength)
            return images, _paired(changed)

        place.append(len(made))
        made.append(jax.vmap(change)(keys, inputs, targets.label))
    stacked, both = jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)
    return stacked, both, jnp.asarray(place, jnp.int32)


def _paired(targets: Targets) -> Targets:
    if targets.other is not None:
        return targets
    return Targets(targets.label, targets.label, jnp.ones(targets.label.shape, jnp.float32))


def loss(
    objectives: Sequence[Named],
    which: jax.Array,
    logits: jax.Array,
    targets: Targets,
    alpha: jax.Array,
    known: Known,
    beside: Beside = ALONE,
) -> jax.Array:
    """The loss of each example of one member: [b].

    Args:
      objectives: of the program; which: int32 [], 0 for label smoothing, else the place of the member's objective from 1.
      logits: [b, k]; targets: of the member's batch; alpha: of label smoothing.
      known: of the batch; beside: what the network and the state have beside the logits.
    """

    def smoothed(logits: jax.Array) -> jax.Array:
        return targets.loss(lambda label: losses.smoothed_cross_entropy(logits, label, alpha))

    def branch(one: Named) -> Callable[[jax.Array], jax.Array]:
        def of_label(logits: jax.Array, label: jax.Array) -> jax.Array:
            plain, of_heads = one.objective.loss(logits, label, one.strength, known), one.objective.of_heads
            if of_heads is None:
                return plain
            return jnp.where(
                beside.progress >= one.objective.warm_up, of_heads(logits, beside, label, one.strength), plain
            )

        return lambda logits: targets.loss(lambda label: of_label(logits, label))

    if not objectives:
        return smoothed(logits)
    return jax.lax.switch(which, [smoothed, *(branch(one) for one in objectives)], logits)


def folds(example_id: np.ndarray) -> np.ndarray:
    """The fold of each example, int32 [n], by the rank of its id: a fixed permutation dealt out in turn, so that folds differ by at most one."""
    rank = np.argsort(np.argsort(example_id, kind="stable"), kind="stable")
    return (np.random.default_rng(0).permutation(len(rank)) % FOLDS).astype(np.int32)[rank]


def known_of(
    wanted: set[str],
    teacher: str,
    split: str,
    seeds: Sequence[int],
    label: np.ndarray,
    example_id: np.ndarray,
    data_fingerprint: str,
) -> Known:
    """What the objectives ask for, from the predictions of the run `teacher` for the train split.

    Args:
      wanted: fields of `Known`; teacher: a workdir; split: the name of the train split; seeds: distinct ones, in order.
      label, example_id: of the examples, in order; data_fingerprint: of the data set.

    Raises:
      InputError: no teacher is named, or its predictions are not there or are of other data.
    """
    fold = folds(example_id) if wanted else None
    of_teacher = error = mean = shuffled = None

    def predicted(member: str) -> np.ndarray:
        return _predicted(teacher, member, split, label, example_id, data_fingerprint)

    if {"teacher", "error"} & wanted and not teacher:
        raise InputError(
            "training.teacher: an objective asks for what an earlier run predicts of the train split; name its workdir"
        )
    if "teacher" in wanted:
        of_teacher = np.stack([predicted(f"alpha=0-seed={seed}") for seed in seeds]).astype(np.float32)
    if "error" in wanted:
        rows, out_of_fold = np.arange(len(label)), []
        for seed in seeds:
            each = [predicted(f"left_out={f}-seed={seed}") for f in range(FOLDS)]
            out_of_fold.append(error_probability(np.stack(each)[fold, rows], label))
        error = np.stack(out_of_fold).astype(np.float32)
        mean, shuffled = error.mean(axis=1), error[:, np.random.default_rng(1).permutation(len(label))]
    return Known(fold, of_teacher, error, mean, shuffled)


def _predicted(
    workdir: str, member: str, split: str, label: np.ndarray, example_id: np.ndarray, data_fingerprint: str
) -> np.ndarray:
    path = Path(workdir) / "predictions" / member / f"{split}.npz"
    if not path.is_file():
        raise InputError(
            f"training.teacher: {path}: not there; run a study with this member, these seeds and prediction.splits that "
            f"hold {split!r} first"
        )
    arrays, about = files.read_npz(path), files.read_json(path.with_suffix(".json"))
    place = np.argsort(arrays["example_id"], kind="stable")
    back = np.argsort(np.argsort(example_id, kind="stable"), kind="stable")
    same = np.array_equal(arrays["example_id"][place][back], example_id) if len(place) == len(example_id) else False
    if not (
        same
        and np.array_equal(arrays["label"][place][back], label)
        and about.get("data_fingerprint") == data_fingerprint
        and about.get("fingerprint") == files.fingerprint(arrays)
    ):
        raise InputError(f"training.teacher: {path}: is of other data than {split!r} here; train the teacher on it")
    return arrays["logits"][place][back]


def error_probability(logits: np.ndarray, label: np.ndarray) -> np.ndarray:
    """P_err(x) = 1 − max_k softmax(v/T)_k, at the T of least log loss.

    Args:
      logits: [n, k] of examples that were not trained on; label: int [n].

    Returns:
      float64 [n].
    """
    v = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return 1 - 1 / np.exp(v / fit_temperature(v, label)).sum(axis=-1)
