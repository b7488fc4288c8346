"""Segmentation through the doors, from a made-up network: what predict writes, evaluate measures and report shows."""

import io
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from sc_jax import config, evaluate, files, ops, pages, predict, predictions, report
from sc_jax.data.streams import StreamedDataset
from sc_jax.files import InputError
from sc_jax.methods import pixels
from sc_jax.training import parallel

pytestmark = pytest.mark.filterwarnings("ignore:only 4 clusters")

IGNORE, K, SHAPE, PIXELS, IMAGES = 255, 4, (8, 12), 9, 5
MEMBERS = config.MemberGrid(alphas=(0.0, 0.2), seeds=(0,))
NAMES = [config.member_name(tag) for tag in MEMBERS.tags]
KINDS = {"validation": ("",), "test": ("", "_pixels", "_images", "_pictures")}


class Scenes:
    """Images of noise around the colour of each pixel's class; the second has no label at all."""

    def __init__(self, first, seed):
        rng = np.random.default_rng(seed)
        self.example_id = np.arange(first, first + IMAGES)
        self.label = rng.integers(0, K, (IMAGES, *SHAPE)).astype(np.uint8)
        noise = rng.normal(0, 30, (IMAGES, *SHAPE, 3))
        self.image = np.clip(60 * self.label[..., None] + 30 + noise, 0, 255).astype(np.uint8)
        self.label[rng.random(self.label.shape) < 0.2] = IGNORE
        self.label[1] = IGNORE

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        data = io.BytesIO()
        Image.fromarray(self.image[index]).save(data, "PNG")
        return {"image": data.getvalue(), "label": self.label[index], "example_id": int(self.example_id[index])}

    def describe(self, index):
        return f"scene {index}"


def logits_of(image):
    """Two members [2, b, h, w, k]: the nearest class colour, and less sure of it."""
    near = -((image.astype(jnp.float32).mean(-1, keepdims=True) - (60.0 * jnp.arange(K) + 30)[None, None, None]) ** 2)
    return jnp.stack([near / 900, near / 4000])


@jax.jit
def measure(batch):
    image, label, places = batch
    return pixels.measure(logits_of(image), label, places)


def job_of(splits, batch_size=2):
    evaluation = config.Evaluation(
        "test", "validation", scores=("msp", "max_logit_pnorm"), p_grid=(1, 2), ece_bins=5, resamples=30, level=0.9
    )
    configured = SimpleNamespace(
        data=config.Data("scenes", threads=2),
        prediction=config.Prediction(tuple(splits), batch_size, PIXELS),
        members=MEMBERS,
        evaluation=evaluation,
        primary=(),
        cascade=config.Cascade(),
        ensemble=config.Ensemble(),
    )
    dataset = StreamedDataset("scenes", tuple("abcd"), splits, "print", IGNORE)
    mesh = parallel.data_mesh()
    return SimpleNamespace(config=configured, dataset=dataset, names=NAMES, ignore_label=IGNORE, mesh=mesh)


def about(split):
    return [{"dataset": "scenes", "split": split, "tags": tags, "checkpoint": "c"} for tags in MEMBERS.tags]


def write(job, workdir, split, measured=measure):
    return predict._write_segmented(job, workdir, split, measured, about(split))


@pytest.fixture(scope="module")
def scenes():
    return {"validation": Scenes(100, 0), "test": Scenes(200, 1)}


@pytest.fixture(scope="module")
def workdir(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("segmentation")
    for split in scenes:
        assert write(job_of(scenes), folder, split) == IMAGES
    return folder


def test_every_member_has_its_files_and_pictures_of_the_test_split(workdir):
    assert sorted(path.name for path in (workdir / "predictions").iterdir()) == NAMES  # and nothing unfinished
    for name in NAMES:
        found = {path.name for path in (workdir / "predictions" / name).iterdir()}
        stems = [f"{split}{kind}" for split, kinds in KINDS.items() for kind in kinds]
        assert found == {f"{stem}.{ending}" for stem in stems for ending in ("npz", "json")}


def test_all_pixels_with_a_label_come_out_once_and_in_order(workdir, scenes):
    test = scenes["test"]
    labelled = test.label != IGNORE
    for member, name in enumerate(NAMES):
        logits = np.asarray(logits_of(test.image))[member]
        wrong = ops.predicted_class(logits) != test.label
        folder = workdir / "predictions" / name
        every = predictions.load_scored(folder / "test_pixels.npz")
        np.testing.assert_array_equal(every.loss, wrong[labelled])
        np.testing.assert_allclose(every.score["msp"], ops.msp(logits)[labelled], rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(every.cluster, test.example_id[np.nonzero(labelled)[0]])
        images = predictions.load_scored(folder / "test_images.npz")
        assert images.example_id.tolist() == [200, 202, 203, 204]
        np.testing.assert_allclose(images.loss, [wrong[i][labelled[i]].mean() for i in (0, 2, 3, 4)])
        sampled = predictions.load(folder / "test.npz")
        assert len(sampled) == 4 * PIXELS
        assert sampled.weight.sum() == pytest.approx(labelled.sum())
        i, place = sampled.cluster - 200, sampled.example_id & 0xFFFFFFFF
        np.testing.assert_array_equal(sampled.label, test.label.reshape(IMAGES, -1)[i, place])
        np.testing.assert_allclose(sampled.logits, logits.reshape(IMAGES, -1, K)[i, place], rtol=1e-5)


def test_members_share_their_sample_and_batches_do_not_matter(workdir, scenes, tmp_path):
    write(job_of(scenes, batch_size=5), tmp_path, "test")
    for kind in KINDS["test"]:
        for name in NAMES:
            one, other = (
                files.read_npz(folder / "predictions" / name / f"test{kind}.npz") for folder in (workdir, tmp_path)
            )
            for field, array in one.items():
                np.testing.assert_allclose(other[field], array, rtol=1e-5, atol=1e-5, err_msg=f"{kind} {field}")
    ids = [predictions.load(workdir / "predictions" / name / "test.npz").example_id for name in NAMES]
    np.testing.assert_array_equal(*ids)


@pytest.mark.parametrize("lost", ["test.npz", "test_pixels.npz", "test_images.json", "test_pictures.npz"])
def test_a_split_is_done_when_all_its_files_are_there(scenes, tmp_path, lost):
    job = job_of(scenes)
    write(job, tmp_path, "test")
    assert predict._done(job, tmp_path, "test", "c")
    assert not predict._done(job, tmp_path, "test", "another checkpoint")
    assert not predict._done(job, tmp_path, "validation", "c")
    (tmp_path / "predictions" / NAMES[1] / lost).unlink()
    assert not predict._done(job, tmp_path, "test", "c")


def test_what_fails_leaves_nothing(scenes, tmp_path):
    def fails(batch, calls=[]):  # noqa: B006 (counts its calls)
        calls.append(batch)
        if len(calls) > 1:
            raise RuntimeError("the device is gone")
        return measure(batch)

    with pytest.raises(RuntimeError, match="the device is gone"):
        write(job_of(scenes), tmp_path, "test", fails)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_what_a_killed_job_left_is_removed(tmp_path):
    (tmp_path / "predictions" / ".unfinished" / NAMES[0]).mkdir(parents=True)
    files.write_npz(tmp_path / "predictions" / ".shares" / "0.npz", {"read": np.arange(3)})
    files.write_npz(tmp_path / "predictions" / NAMES[0] / "test.npz", {"label": np.arange(3)})
    predict._remove_unfinished(tmp_path)
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == [NAMES[0]]
    assert (tmp_path / "predictions" / NAMES[0] / "test.npz").exists()


def test_a_split_without_labels_and_ids_without_room_are_refused(tmp_path):
    blank, large = Scenes(0, 0), Scenes(1 << 31, 0)
    blank.label = np.full_like(blank.label, IGNORE)
    for source, problem in ((blank, "no pixel of test has a label"), (large, "lies outside 0..2³¹ − 1")):
        with pytest.raises(InputError, match=problem):
            write(job_of({"test": source}), tmp_path, "test")


# --- evaluate and report ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def evaluated(workdir, scenes):
    evaluate.evaluate_study(job_of(scenes).config, workdir)
    report.report(workdir)
    return workdir


def test_the_metrics_of_pixels_and_images_are_those_of_their_files(evaluated, workdir):
    document = files.read_json(evaluated / "metrics.json")
    for kind, scores in (("pixels", [*pixels.SCORES]), ("images", [*pixels.SCORES, "mean_max_probability"])):
        runs = document[kind]["runs"]
        assert [(Path(row["predictions"]).parent.name, row["score"]) for row in runs] == [
            (name, score) for name in NAMES for score in scores
        ]
        for row in runs:
            given = predictions.load_scored(row["predictions"])
            aurc = ops.aurc(np.array(given.score[row["score"]]), np.array(given.loss))
            assert row["metrics"]["aurc"] == pytest.approx(float(aurc))
            assert row["tags"]["seed"] == 0
            assert row["intervals_by"] == f"percentile bootstrap over {'clusters' if kind == 'pixels' else 'examples'}"
    assert {row["intervals_cover"] for row in document["runs"]} == {"4 clusters of test examples"}


def test_intervals_of_the_sample_are_over_images(evaluated):
    """A resample draws images: its weighted error is that of the images drawn, which are few."""
    document = files.read_json(evaluated / "metrics.json")
    row = next(row for row in document["runs"] if row["score"] == "msp")
    sampled = predictions.load(row["predictions"])
    wrong = ops.predicted_class(sampled.logits) != sampled.label
    assert row["metrics"]["error"] == pytest.approx(np.average(wrong, weights=sampled.weight))
    each = [np.average(wrong[sampled.cluster == i]) for i in np.unique(sampled.cluster)]
    low, high = row["intervals"]["error"]
    assert min(each) <= low <= high <= max(each)


def test_the_threshold_of_the_pictures_accepts_nine_tenths_of_the_validation_pixels(evaluated):
    document = files.read_json(evaluated / "metrics.json")
    assert [row["alpha"] for row in document["pictures"]] == list(MEMBERS.alphas)
    for row in document["pictures"]:
        tuning = predictions.load(Path(row["predictions"]).with_name("validation.npz"))
        accepted = ops.msp(tuning.logits) >= row["threshold"]
        assert np.average(accepted, weights=tuning.weight) >= 0.9
        stricter = ops.msp(tuning.logits) > row["threshold"]
        assert np.average(stricter, weights=tuning.weight) < 0.9


def test_the_report_shows_pixels_and_images(evaluated):
    page, text = (evaluated / "report.html").read_text(), (evaluated / "report.md").read_text()
    for words in (
        "All pixels",
        "Images",
        "resamples draw images whole",
        "accepts 90 % of the pixels of the split validation",
    ):
        assert words in page
        assert words in text
    for name in pages.PIXEL_PICTURES:
        assert f"figures/{name}" in text
        with Image.open(evaluated / "figures" / name) as image:
            assert len(image.convert("RGB").getcolors(1 << 24)) > 5
    rows = (evaluated / "metrics.csv").read_text()
    assert "test_pixels.npz,test,0.2,0,max_logit" in rows
    assert "test_images.npz,test,0.2,0,mean_max_probability" in rows


def test_another_file_of_pixels_is_evaluated_again(evaluated, scenes, capsys):
    config = job_of(scenes).config
    evaluate.evaluate_study(config, evaluated)
    assert capsys.readouterr().out == "evaluate: done\n"
    sidecar = evaluated / "predictions" / NAMES[0] / "test_pixels.json"
    before = sidecar.read_text()
    files.write_json(sidecar, files.read_json(sidecar) | {"fingerprint": "0" * 64}, seal=True)
    with pytest.raises(InputError, match=r"test_pixels\.npz: its arrays are not those its sidecar"):
        evaluate.evaluate_study(config, evaluated)
    sidecar.write_text(before)
