"""What tables make of values: escaped text, units, and words for what is missing."""

import pytest

from sc_jax import tables


def test_tables_escape_what_they_show():
    table = tables.Table(["a<b"], [["<i>x</i> & y"], ["p | q"]])
    assert "<i>" not in table.html()
    assert "a&lt;b" in table.html()
    assert "&lt;i&gt;x&lt;/i&gt; &amp; y" in table.html()
    assert r"| p \| q |" in table.markdown()


def test_intervals_stand_beside_values_and_missing_ones_are_said_to_be_undefined():
    assert tables.number_with_interval(0.1234, [0.1, 0.15], 100) == "12.34 [10.00, 15.00]"
    assert tables.number_with_interval(-0.1234, [-0.2, 0.15], signed=True) == "−0.123 [−0.200, +0.150]"
    for nothing in (None, float("nan")):
        assert tables.number_with_interval(nothing, [nothing, nothing], 100) == "undefined [undefined, undefined]"


def test_a_cell_has_the_unit_of_its_heading_and_says_what_is_missing():
    row = {
        "n": 8,
        "metrics": {"aurc": 0.02, "nll": float("inf"), "naurc": 0.5, "e_augrc": None},
        "infinite_log_losses": 3,
    }
    row |= {"intervals": {"aurc": [0.01, 0.03], "naurc": [0.25, 0.75]}, "resamples_at_coverage_0": {"naurc": 0.25}}
    assert (tables.heading("aurc"), tables.cell(row, "aurc")) == ("AURC %", "2.00 [1.00, 3.00]")
    assert (tables.heading("naurc"), tables.cell(row, "naurc")) == (
        "NAURC",
        "0.500 [0.250, 0.750] (25% of resamples: 0)",
    )
    assert tables.cell(row, "nll") == "infinite (3 of 8 true classes have probability 0)"
    assert tables.cell(row, "e_augrc") == "undefined"
    assert tables.heading("coverage_at_risk_0.05") == "Cov@5%"  # which is in per cent already


@pytest.mark.parametrize("name", [name for name, _, _ in tables.TABLE])
def test_a_metric_has_one_unit_in_all_tables(name):
    of_files = {n: factor for _, _, columns in tables.FILES_TABLES for n, _, factor in columns}
    (factor,) = (factor for n, _, factor in tables.TABLE if n == name)
    assert of_files[name] == factor
