"""Arguments, the workdir that belongs to one config and one process, and errors as one line with an exit status."""

import contextlib
import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sc_jax import cli, files
from sc_jax import config as config_lib
from sc_jax.files import InputError
from sc_jax.training.loop import DivergedError

CONFIG = str(Path(__file__).parents[1] / "experiments" / "label_smoothing" / "config.py")
SMOKE = f"--config={CONFIG}:smoke"


def parse(*argv):
    return cli.study_arguments("train", "A door.", list(argv))


def usage_error(capsys, *argv):
    """What the parser says before it exits with status 2."""
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    return capsys.readouterr().err


# --- arguments --------------------------------------------------------------------------------------------------------


def test_config_workdir_and_overrides_are_read():
    config, workdir = parse(SMOKE, "--workdir=here/there", "--config.training.epochs=2", "--config.data.name=a=b")
    assert workdir == Path("here/there")
    assert config.training.epochs == 2
    assert config.data.name == "a=b"
    unchanged = config_lib.load(f"{CONFIG}:smoke")
    assert config.members == unchanged.members


def test_the_workdir_is_named_after_study_and_variant():
    assert parse(SMOKE)[1] == Path("runs/label_smoothing-smoke")
    assert parse(f"--config={CONFIG}")[1] == Path("runs/label_smoothing-default")


@pytest.mark.parametrize(
    "argument",
    ["--epochs=3", "--training.epochs=3", "--config.training.epochs", "training.epochs=3", "--work=x", "--workdirs=x"],
)
def test_an_unknown_argument_is_refused_and_named(capsys, argument):
    assert f"unknown argument {argument}" in usage_error(capsys, SMOKE, argument)


@pytest.mark.parametrize("number", ["²", "0", "-1", "two", ""])
def test_a_number_of_processes_that_is_none_is_refused(capsys, number):
    with pytest.raises(SystemExit) as caught:
        cli.study_arguments("train", "A door.", [SMOKE, f"--processes={number}"], devices=True)
    assert caught.value.code == 2
    assert f"--processes = {number!r}; it should be a positive number, or auto" in capsys.readouterr().err


def test_a_config_is_required(capsys):
    assert "--config" in usage_error(capsys, "--workdir=x")


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("--config.training.epoch=3", ["training.epoch", "did you mean training.epochs?"]),
        ("--config.training.epochs=three", ["training.epochs", "'three'"]),
        ("--config.evaluation.scores=('msp','max_logit_pnorm','max_logits')", ["'max_logits'", "'max_logit'"]),
    ],
)
def test_what_no_stage_could_use_is_refused_at_the_door(override, parts):
    with pytest.raises(InputError) as caught:
        parse(SMOKE, override)
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("old", "new", "parts"),
    [
        ('"naurc", smooth', '"narc", smooth', ["primary[0].metric", "'narc'", "'naurc'"]),
        ('"naurc", normed', '"ece", normed', ["primary[2].metric", "'ece'"]),
    ],
)
def test_a_primary_contrast_of_an_unknown_metric_is_refused_before_anything_is_trained(tmp_path, old, new, parts):
    text = Path(CONFIG).with_name("recipe.py").read_text(encoding="utf-8")
    assert old in text
    (tmp_path / "recipe.py").write_text(text.replace(old, new, 1), encoding="utf-8")
    (tmp_path / "config.py").write_text(Path(CONFIG).read_text(encoding="utf-8"), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        parse(f"--config={tmp_path / 'config.py'}")
    for part in parts:
        assert part in str(caught.value)


# --- the workdir ------------------------------------------------------------------------------------------------------


def test_a_workdir_keeps_its_config_and_opens_again_for_the_same(tmp_path):
    config = parse(SMOKE)[0]
    workdir = tmp_path / "run"
    with cli.open_workdir(workdir, config):
        assert files.read_json(workdir / "config.json", sealed=True) == config_lib.as_dict(config)
    before = (workdir / "config.json").stat().st_mtime_ns
    with cli.open_workdir(workdir, config):
        pass
    assert (workdir / "config.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("override", "difference"),
    [
        ("--config.training.epochs=2", "training.epochs is 1 there, 2 was asked for"),
        ("--config.members.seeds=(0,7)", "members.seeds[1] is 1 there, 7 was asked for"),
        ("--config.members.seeds=(0,)", "members.seeds is [0, 1] there, [0] was asked for"),
    ],
)
def test_a_workdir_of_another_config_is_refused_naming_the_field(tmp_path, override, difference):
    with cli.open_workdir(tmp_path, parse(SMOKE)[0]):
        pass
    before = {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)}
    other = parse(SMOKE, override)[0]
    with pytest.raises(InputError) as caught, cli.open_workdir(tmp_path, other):
        pytest.fail("it was opened")
    assert difference in str(caught.value)
    assert "--workdir" in str(caught.value)
    assert {name: (tmp_path / name).read_bytes() for name in os.listdir(tmp_path)} == before


@pytest.mark.parametrize("content", ["[]", "3", "{"])
def test_a_config_json_that_is_none_of_ours_is_refused_and_kept(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"config\.json"), cli.open_workdir(tmp_path, parse(SMOKE)[0]):
        pytest.fail("it was opened")
    assert (tmp_path / "config.json").read_text() == content


def test_a_workdir_in_use_is_refused_and_free_again_afterwards(tmp_path):
    config = parse(SMOKE)[0]
    with cli.open_workdir(tmp_path, config):
        with pytest.raises(InputError, match="another run is using"), cli.open_workdir(tmp_path, config):
            pytest.fail("it was opened twice")
        with pytest.raises(InputError, match="another run is using"), files.lock(tmp_path):
            pytest.fail("it was locked twice")
    with contextlib.suppress(ZeroDivisionError), cli.open_workdir(tmp_path, config):
        raise ZeroDivisionError
    with cli.open_workdir(tmp_path, config):
        pass


# --- exit status ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (InputError("x.npz: no such file"), 2, "error: x.npz: no such file\n"),
        (DivergedError("step 3, member a"), 2, "error: step 3, member a\n"),
        (OSError(errno.ENOSPC, "No space left", "x.npz"), 2, "error: x.npz: No space left; make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "error: Disk quota exceeded; make room"),
        (OSError(errno.EROFS, "Read-only file system"), 2, "error: Read-only"),
        (OSError(errno.EIO, "Input/output error"), 2, "error: Input"),
        (OSError(errno.ENOLCK, "No locks available"), 2, "error: No locks"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 2, "error: x: Permission denied; give this user"),
        (OSError(errno.ENAMETOOLONG, "File name too long", "x"), 2, "error: x: File name too long; name another path"),
        (KeyboardInterrupt(), 130, "interrupted; the same command goes on"),
    ],
)
def test_a_mistake_is_one_line_and_a_status(capsys, error, status, said):
    def door(argv):
        raise error

    with pytest.raises(SystemExit) as caught:
        cli.main(door)
    assert caught.value.code == status
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(said)
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(errno.EBADF, "Bad file descriptor")])
def test_an_error_of_ours_keeps_its_traceback(error):
    def door(argv):
        raise error

    with pytest.raises(type(error)):
        cli.main(door)


@pytest.mark.parametrize(
    ("door", "arguments", "said"),
    [
        ("train", [SMOKE, "--config.training.epoch=2"], "error: --config.training.epoch: there is no field"),
        ("report", ["--workdir=nowhere"], "error: nowhere: no such workdir"),
    ],
)
def test_a_process_ends_with_status_2_and_one_line(tmp_path, door, arguments, said):
    done = subprocess.run(
        [sys.executable, "-m", f"sc_jax.{door}", *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""
    assert os.listdir(tmp_path) == []


# --- SIGTERM ----------------------------------------------------------------------------------------------------------


def test_sigterm_unwinds_a_door_and_is_143(tmp_path, capsys, monkeypatch):
    """What a door had begun to write is gone, and the handler is as it was."""
    before = signal.getsignal(signal.SIGTERM)
    replace = os.replace

    def stopped(source, target):
        os.kill(os.getpid(), signal.SIGTERM)
        replace(source, target)

    monkeypatch.setattr(os, "replace", stopped)
    with pytest.raises(SystemExit) as caught:
        cli.main(lambda argv: files.write_text(tmp_path / "x", "abc"))
    assert caught.value.code == 143
    assert capsys.readouterr().err.count("\n") == 1
    assert os.listdir(tmp_path) == []
    assert signal.getsignal(signal.SIGTERM) is before


def test_sigterm_is_noted_until_the_end_of_the_block():
    done = []

    def door(argv):
        with cli.noting_sigterm() as came:
            assert not came(1)
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
            assert came(1)
            done.append("saved")
        done.append("never")

    with pytest.raises(SystemExit) as caught:
        cli.main(door)
    assert caught.value.code == 143
    assert done == ["saved"]


def test_an_error_in_the_block_is_not_hidden_by_sigterm():
    def work():
        with cli.noting_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
