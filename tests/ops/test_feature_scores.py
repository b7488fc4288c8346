"""Scores of features against their definitions and scikit-learn, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.neighbors import NearestNeighbors

from sc_jax import ops
from sc_jax.ops import feature_scores as fs

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(4, 4))
MEANS = RNG.normal(size=(3, 4), scale=4)
LABEL = RNG.integers(0, 3, 200)
TRAIN = MEANS[LABEL] + RNG.normal(size=(200, 4)) @ MIXING
TEST = RNG.normal(size=(60, 4), scale=4)
KERNEL, BIAS = RNG.normal(size=(4, 3)), RNG.normal(size=3)
OTHERS = ["torch", "array_api_strict"]


def array_of(library):
    return pytest.importorskip(library).asarray


def naive_mahalanobis(x, train, label, inverse=np.linalg.inv):
    classes = sorted(set(label))
    covariance = sum(np.cov(train[label == c].T, bias=True) * (label == c).mean() for c in classes)
    gaps = [x - train[label == c].mean(axis=0) for c in classes]
    return -np.min([np.einsum("ni,ij,nj->n", gap, inverse(covariance), gap) for gap in gaps], axis=0)


def test_mahalanobis_is_its_definition():
    state = fs.fit_mahalanobis(TRAIN, LABEL)
    np.testing.assert_allclose(fs.mahalanobis(TEST, state), naive_mahalanobis(TEST, TRAIN, LABEL), rtol=1e-10)
    np.testing.assert_array_equal(state.count, np.bincount(LABEL))


def test_the_shared_covariance_is_that_of_linear_discriminant_analysis():
    lda = LinearDiscriminantAnalysis(solver="lsqr", store_covariance=True).fit(TRAIN, LABEL)
    state = fs.fit_mahalanobis(TRAIN, LABEL)
    np.testing.assert_allclose(state.mean, lda.means_, rtol=1e-12)
    np.testing.assert_allclose(state.whitening @ state.whitening.T, np.linalg.inv(lda.covariance_), rtol=1e-9)


def test_mahalanobis_is_0_at_a_mean_and_minus_1_a_deviation_away():
    state = fs.fit_mahalanobis(TRAIN, LABEL)
    np.testing.assert_allclose(fs.mahalanobis(state.mean, state), 0, atol=1e-25)
    direction = np.linalg.pinv(state.whitening)[0]  # the first principal axis, one deviation long
    np.testing.assert_allclose(fs.mahalanobis(state.mean[:1] + 1e-3 * direction, state), -1e-6, rtol=1e-9)


def test_mahalanobis_does_not_depend_on_the_coordinates():
    matrix, shift = RNG.normal(size=(4, 4)), 1e5
    state = fs.fit_mahalanobis(TRAIN @ matrix + shift, LABEL)
    np.testing.assert_allclose(
        fs.mahalanobis(TEST @ matrix + shift, state), naive_mahalanobis(TEST, TRAIN, LABEL), rtol=1e-6
    )


def test_singular_covariances_have_their_pseudo_inverse():
    wide, test = RNG.normal(size=(12, 30)), RNG.normal(size=(5, 30))  # fewer examples than dimensions
    label = np.arange(12) % 2
    expected = naive_mahalanobis(test, wide, label, lambda c: np.linalg.pinv(c, rtol=1e-12, hermitian=True))
    state = fs.fit_mahalanobis(wide, label)
    np.testing.assert_allclose(fs.mahalanobis(test, state), expected, rtol=1e-9)
    assert np.linalg.matrix_rank(state.whitening) == 10
    constant = np.hstack([TRAIN, np.full((200, 1), 7.0)])
    value = fs.mahalanobis(np.hstack([TEST, RNG.normal(size=(60, 1))]), fs.fit_mahalanobis(constant, LABEL))
    np.testing.assert_allclose(
        value, naive_mahalanobis(TEST, TRAIN, LABEL), rtol=1e-9
    )  # what never varies does not count


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
def test_a_class_without_examples_is_nobodys_nearest(array):
    label = np.where(LABEL == 2, 3, LABEL)
    state = fs.fit_mahalanobis(array(TRAIN), array(label), 5)
    near_origin = np.zeros((1, 4))  # where the mean of nothing would be
    expected = naive_mahalanobis(np.vstack([TEST, near_origin]), TRAIN, LABEL)
    np.testing.assert_allclose(fs.mahalanobis(array(np.vstack([TEST, near_origin])), state), expected, rtol=2e-4)
    np.testing.assert_array_equal(state.count, np.bincount(label, minlength=5))


@pytest.mark.parametrize(
    ("features", "label", "num_classes", "message"),
    [
        (TRAIN, LABEL[:-1], None, "label must be"),
        (TRAIN, LABEL, 2, "labels must be 0..1"),
        (TRAIN, LABEL - 1, None, "labels must be"),
        (TRAIN[:0], LABEL[:0], 3, "n ≥ 1 to fit"),
        (TRAIN[:, 0], LABEL, None, "n, d"),
        (np.where(TRAIN > 5, np.nan, TRAIN), LABEL, None, "finite"),
        (TRAIN[:3], np.arange(3), None, "no class varies"),
        (np.full((30, 2), 0.1), np.zeros(30, int), None, "no class varies"),
    ],
)
def test_what_mahalanobis_cannot_be_fitted_to_is_refused(features, label, num_classes, message):
    with pytest.raises(ValueError, match=message):
        fs.fit_mahalanobis(features, label, num_classes)


def naive_knn(x, bank, k):
    x, bank = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, bank))
    return -np.sort(np.linalg.norm(x[:, None] - bank[None], axis=2), axis=1)[:, k - 1]


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("chunk", [None, 1, 7, 60])
@pytest.mark.parametrize("k", [1, 5, 200])
def test_knn_distance_is_its_definition(array, chunk, k):
    value = fs.knn_distance(array(TEST), fs.fit_knn(array(TRAIN)), k, chunk=chunk)
    rtol = 1e-12 if array is np.asarray else 2e-4
    np.testing.assert_allclose(value, naive_knn(TEST, TRAIN, k), rtol=rtol, atol=rtol / 100)


def test_knn_distance_in_a_large_bank():
    bank, test = RNG.normal(size=(3000, 3)), RNG.normal(size=(20, 3))
    for k in (2, 400, 2999):
        np.testing.assert_allclose(fs.knn_distance(test, fs.fit_knn(bank), k), naive_knn(test, bank, k), rtol=1e-12)


def test_knn_distance_equals_scikit_learn():
    unit = TRAIN / np.linalg.norm(TRAIN, axis=1, keepdims=True)
    neighbors = NearestNeighbors(n_neighbors=9, algorithm="kd_tree").fit(unit)
    distance, _ = neighbors.kneighbors(TEST / np.linalg.norm(TEST, axis=1, keepdims=True))
    np.testing.assert_allclose(fs.knn_distance(TEST, fs.fit_knn(TRAIN), 9), -distance[:, -1], rtol=1e-9)


def test_knn_distance_depends_on_directions_only():
    bank = fs.fit_knn(TRAIN * RNG.uniform(0.1, 9, (200, 1)))
    value = fs.knn_distance(TEST * 1e-200, bank, 3)
    np.testing.assert_allclose(value, naive_knn(TEST, TRAIN, 3), rtol=1e-12)
    np.testing.assert_allclose(fs.knn_distance(TEST * 1e200, bank, 3), value, rtol=1e-12)


def test_knn_distance_to_copies_and_to_the_opposite():
    bank = fs.fit_knn(np.array([[1.0, 2.0, 3.0], [2.0, 4.0, 6.0], [-1.0, -2.0, -3.0], [0.0, 0.0, 0.0]]))
    value = [fs.knn_distance(np.array([[10.0, 20.0, 30.0]]), bank, k)[0] for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(value, [0, 0, -1, -2], atol=1e-15)  # the zero feature is 1 away from every direction


def test_knn_refuses_bad_input():
    bank = fs.fit_knn(TRAIN)
    for k in (0, 201, -1):
        with pytest.raises(ValueError, match=r"k must be in 1\.\.200"):
            fs.knn_distance(TEST, bank, k)
    with pytest.raises(ValueError, match="have 3 dimensions; the state was fitted on 4"):
        fs.knn_distance(TEST[:, :3], bank, 1)
    with pytest.raises(ValueError, match="finite"):
        fs.knn_distance(np.where(TEST > 3, np.inf, TEST), bank, 1)
    with pytest.raises(ValueError, match="n ≥ 1 to fit"):
        fs.fit_knn(TRAIN[:0])
    assert fs.knn_distance(TEST[:0], bank, 1).shape == (0,)


def naive_residual(x, train, dim):
    origin = -np.linalg.lstsq(KERNEL.T, BIAS, rcond=None)[0]
    _, _, directions = np.linalg.svd(train - origin)
    inside = (x - origin) @ directions[:dim].T @ directions[:dim]
    return -np.linalg.norm(x - origin - inside, axis=1)


@pytest.mark.parametrize("dim", [0, 1, 2, 3])
def test_residual_is_its_definition(dim):
    state = fs.fit_residual(TRAIN, KERNEL, BIAS, dim)
    np.testing.assert_allclose(fs.residual(TEST, state), naive_residual(TEST, TRAIN, dim), rtol=1e-9)
    np.testing.assert_allclose(state.origin @ KERNEL + BIAS, 0, atol=1e-12)  # there the logits are 0
    np.testing.assert_allclose(state.complement.T @ state.complement, np.eye(4 - dim), atol=1e-12)


def test_the_origin_is_the_nearest_to_0_and_a_best_fit_where_logits_cannot_vanish():
    state = fs.fit_residual(TRAIN, KERNEL, BIAS, 2)
    inside = KERNEL @ np.linalg.lstsq(KERNEL, state.origin, rcond=None)[0]
    np.testing.assert_allclose(inside, state.origin, rtol=1e-9)  # nothing of it lies where the head does not look
    kernel, bias = RNG.normal(size=(4, 7)), RNG.normal(size=7)
    origin = fs.fit_residual(TRAIN, kernel, bias, 2).origin
    np.testing.assert_allclose(kernel @ (origin @ kernel + bias), 0, atol=1e-10)  # the normal equations


def test_residual_is_what_sticks_out():
    axes = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    along = RNG.normal(size=(40, 2), scale=5) @ axes[:, :2].T
    state = fs.fit_residual(along, np.eye(6), np.zeros(6), dim=2)
    out = RNG.normal(size=(10, 4))
    value = fs.residual(RNG.normal(size=(10, 2)) @ axes[:, :2].T + out @ axes[:, 2:].T, state)
    np.testing.assert_allclose(value, -np.linalg.norm(out, axis=1), rtol=1e-9)
    np.testing.assert_allclose(fs.residual(along, state), 0, atol=1e-12)


def test_residual_refuses_bad_input():
    for dim in (-1, 4, 5):
        with pytest.raises(ValueError, match=r"dim must be in 0\.\.3"):
            fs.fit_residual(TRAIN, KERNEL, BIAS, dim)
    for kernel, bias in ((KERNEL.T, BIAS), (KERNEL, BIAS[:2]), (KERNEL[:, 0], BIAS)):
        with pytest.raises(ValueError, match="the head must be kernel"):
            fs.fit_residual(TRAIN, kernel, bias, 2)
    with pytest.raises(ValueError, match="head_kernel and head_bias must be finite"):
        fs.fit_residual(TRAIN, KERNEL, BIAS * np.nan, 2)
    with pytest.raises(ValueError, match="fitted on 4"):
        fs.residual(TEST[:, :3], fs.fit_residual(TRAIN, KERNEL, BIAS, 2))


def head(x):
    return x @ KERNEL + BIAS[None, :]


def test_vim_orders_as_the_probability_of_the_virtual_logit():
    state = fs.fit_vim(TRAIN, head(TRAIN), KERNEL, BIAS, 2)
    virtual = -state.alpha * fs.residual(TEST, state.residual)
    full = np.hstack([head(TEST), virtual[:, None]])
    probability = np.exp(full - full.max(axis=1, keepdims=True))
    probability = probability[:, -1] / probability.sum(axis=1)
    value = fs.vim(TEST, head(TEST), state)
    np.testing.assert_allclose(1 / (1 + np.exp(value)), probability, rtol=1e-9)
    np.testing.assert_allclose(value, ops.scores.energy(head(TEST)) - virtual, rtol=1e-12)


def test_alpha_makes_the_virtual_logit_as_large_as_the_max_logit():
    state = fs.fit_vim(TRAIN, head(TRAIN), KERNEL, BIAS, 1)
    virtual = -state.alpha * naive_residual(TRAIN, TRAIN, 1)
    np.testing.assert_allclose(virtual.mean(), head(TRAIN).max(axis=1).mean(), rtol=1e-9)


def test_vim_refuses_bad_input():
    flat = np.hstack([TRAIN[:, :2], np.zeros((200, 2))])
    with pytest.raises(ValueError, match="lie in a space of 2 dimensions"):
        fs.fit_vim(flat, head(flat), KERNEL, np.zeros(3), 2)
    with pytest.raises(ValueError, match="true logits are needed"):
        fs.fit_vim(TRAIN, ops.log_softmax(head(TRAIN)), KERNEL, BIAS, 2)
    with pytest.raises(ValueError, match="logits must be"):
        fs.fit_vim(TRAIN, head(TRAIN)[:-1], KERNEL, BIAS, 2)
    with pytest.raises(ValueError, match="logits must be"):
        fs.vim(TEST, head(TEST)[:, 0], fs.fit_vim(TRAIN, head(TRAIN), KERNEL, BIAS, 2))


def all_scores(train, label, test, kernel, bias, chunk=None):
    """Fits and applies every score."""
    return {
        "mahalanobis": fs.mahalanobis(test, fs.fit_mahalanobis(train, label, 3)),
        "knn": fs.knn_distance(test, fs.fit_knn(train), 4, chunk=chunk),
        "residual": fs.residual(test, fs.fit_residual(train, kernel, bias, 2)),
        "vim": fs.vim(
            test, test @ kernel + bias[None, :], fs.fit_vim(train, train @ kernel + bias[None, :], kernel, bias, 2)
        ),
    }


def test_devices_agree_with_the_host():
    arguments = (TRAIN, LABEL, TEST, KERNEL, BIAS)
    host = all_scores(*arguments)
    device = jax.jit(all_scores, static_argnums=5)(*map(jnp.asarray, arguments), 16)
    for name, value in device.items():
        assert value.dtype == jnp.float32
        assert host[name].dtype == np.float64
        np.testing.assert_allclose(value, host[name], rtol=1e-3, atol=1e-3, err_msg=name)


def test_vmap_makes_batches_of_states():
    trains = jnp.asarray(np.stack([TRAIN, TRAIN[::-1] * 2]))
    mapped = jax.vmap(lambda train, label: fs.mahalanobis(jnp.asarray(TEST), fs.fit_mahalanobis(train, label, 3)))(
        trains, jnp.asarray(np.stack([LABEL, LABEL[::-1]]))
    )
    np.testing.assert_allclose(mapped[0], naive_mahalanobis(TEST, TRAIN, LABEL), rtol=1e-3)
    np.testing.assert_allclose(mapped[1], naive_mahalanobis(TEST, 2 * TRAIN, LABEL), rtol=1e-3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int32])
def test_narrow_features_are_computed_wide(dtype):
    arguments = (TRAIN.astype(dtype), LABEL, TEST.astype(dtype), KERNEL, BIAS)
    wide = all_scores(
        TRAIN.astype(dtype).astype(np.float64), LABEL, TEST.astype(dtype).astype(np.float64), KERNEL, BIAS
    )
    for name, value in all_scores(*arguments).items():
        assert value.dtype == np.float64
        np.testing.assert_array_equal(value, wide[name])
    half = jax.eval_shape(all_scores, *map(jnp.asarray, arguments))
    assert {value.dtype for value in half.values()} == {jnp.dtype(jnp.float32)}


def test_states_fitted_on_the_host_serve_on_devices():
    test = jnp.asarray(TEST)
    state = fs.fit_vim(TRAIN, head(TRAIN), KERNEL, BIAS, 2)
    np.testing.assert_allclose(fs.vim(test, head(test), state), fs.vim(TEST, head(TEST), state), rtol=1e-3, atol=1e-3)
    state = fs.fit_mahalanobis(TRAIN, LABEL)
    np.testing.assert_allclose(fs.mahalanobis(test, state), fs.mahalanobis(TEST, state), rtol=1e-4)
    bank = fs.fit_knn(TRAIN)
    np.testing.assert_allclose(fs.knn_distance(test, bank, 2), fs.knn_distance(TEST, bank, 2), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("library", OTHERS)
def test_other_libraries_agree_with_numpy(library):
    arguments = (TRAIN, LABEL, TEST, KERNEL, BIAS)
    host = all_scores(*arguments)
    for name, value in all_scores(*map(array_of(library), arguments), 16).items():
        np.testing.assert_allclose(np.asarray(value), host[name], rtol=1e-9, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
@pytest.mark.parametrize("dim", [0, 1, 5, 11, 12, 15, 19])
def test_fewer_examples_than_dimensions_have_the_residual_of_their_covariance(array, dim):
    rng = np.random.default_rng(0)
    x, new, kernel, bias = (rng.normal(size=shape) for shape in ((12, 20), (9, 20), (20, 3), (3,)))
    state = ops.fit_residual(array(x), array(kernel), array(bias), dim)
    origin = -np.linalg.pinv(kernel.T) @ bias
    np.testing.assert_allclose(state.complement.T @ state.complement, np.eye(20 - dim), atol=1e-5)
    if dim <= 12:  # beyond that which directions without examples are principal is arbitrary
        _, vector = np.linalg.eigh((x - origin).T @ (x - origin))
        expected = -np.linalg.norm((new - origin) @ vector[:, : 20 - dim], axis=1)
        np.testing.assert_allclose(ops.residual(array(new), state), expected, rtol=1e-4)
    np.testing.assert_allclose(ops.residual(array(x), state), 0 if dim >= 12 else ops.residual(x, state), atol=1e-4)


@pytest.mark.parametrize("array", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_fewer_examples_than_dimensions_have_the_pseudo_inverse_of_their_covariance(array):
    rng = np.random.default_rng(1)
    x, new, label = rng.normal(size=(15, 24)), rng.normal(size=(8, 24)), np.arange(15) % 3
    state = ops.fit_mahalanobis(array(x), array(label), 3)
    mean = np.stack([x[label == c].mean(axis=0) for c in range(3)])
    within = x - mean[label]
    inverse = np.linalg.pinv(within.T @ within / 15, rcond=1e-9, hermitian=True)
    gap = new[:, None] - mean
    expected = -np.einsum("ncd,de,nce->nc", gap, inverse, gap).min(axis=1)
    np.testing.assert_allclose(ops.mahalanobis(array(new), state), expected, rtol=1e-3)
