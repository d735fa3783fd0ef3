"""The results page: made from run directories alone, the same every time, and honest about what is not there."""

import copy
import json
import os
import re
import shutil

import pytest
from helpers import tables
from helpers.fresh import ROOT
from helpers.tables import TABLE, fake_audit, fake_run

from djax.io import pages
from train.table import collect, page, plot, rows, runner
from train.table.summary import Summary

FILES = ("results.md", "results.json", "results.svg")


@pytest.fixture
def table(monkeypatch):
  return tables.faked(monkeypatch)


@pytest.fixture
def call(capsys, tmp_path):
  return tables.caller(capsys, tmp_path)


@pytest.fixture
def write_page(table, call, tmp_path):
  """Runs the three rows with fakes; returns what writes the page and reads its files."""
  assert call()[0] == 0
  docs = tmp_path / "docs"

  def write_page():
    code, out, err = call("--page", str(docs / "results.md"))
    assert (code, err) == (0, [])
    return out, {name: (docs / name).read_bytes() for name in FILES}

  return write_page


def cells(text, head):
  """Returns the rows of the first table whose head has all of some columns, as dictionaries."""
  for block in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
    lines = [
      [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in block.splitlines()
    ]
    if set(head) <= set(lines[0]):
      assert set(lines[1]) == {"---"}
      return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]
  raise AssertionError(f"no table with {head}")


def facts_of(tmp_path):
  return collect.collect(rows.ROWS, tmp_path / "runs")


def test_the_page_is_the_same_every_time(write_page):
  out, first = write_page()
  again, second = write_page()
  assert first == second and out == again
  assert b"dc:date" not in first["results.svg"] and len(first["results.svg"]) > 10_000
  assert out[0].startswith("| row |") and len(out) == 6


def test_the_page_says_what_the_runs_gave(write_page):
  text = write_page()[1]["results.md"].decode()
  first, third = cells(text, ["seconds"])
  assert first["disguised %"] == "70.50 (70.00–71.00)" and first["plain twin %"] == "90.50 (90.00–91.00)"  # fmt: skip
  assert first["cost"] == "20.00" and first["seeds"] == "2" and first["seconds"] == "4"
  assert first["disguise"] == "RMT 2x2, permuted, N = 25" and first["network"] == "cnn, width 2"
  assert first["hardware"] == f"CPU, {os.cpu_count()} cores"
  assert third["disguise"] == "AES 4x4, permuted, 16-pixel units" and third["seeds"] == "1"
  assert "`disguise.scheme=aes`" in third["row"] and "`digits_rmt`" in third["row"]
  first, third = cells(text, ["verdict 1"])
  assert (first["other key %"], first["misused %"], first["key matters"]) == ("15.00", "12.00", "yes")  # fmt: skip
  assert first["best Level 1"] == "0.40, 16.0 dB (placement)" and first["verdict 1"] == "leaks"
  assert first["best Level 2"] == "0.80, 32.0 dB (procrustes, 5 pairs)"
  assert first["placement SSIM"] == "0.40" and first["moments SSIM"] == ""
  others = text.partition("## Others")[2]
  (second,) = cells(others, ["gap closed"])
  assert second["gap closed"] == "50%" and second["network"] == "cnn, width 2; stem: aligned"
  assert "gap closed" not in text.partition("## MNIST")[2].partition("## Others")[0]
  short = cells(text.partition("## ")[0], ["data"])
  assert [row["row"] for row in short] == ["first", "second"]
  assert short[0]["data"] == "digits [:128]"


def test_rows_that_were_not_run_say_so(write_page, tmp_path):
  shutil.rmtree(tmp_path / "runs/first")
  shutil.rmtree(tmp_path / "runs/second/seed0")
  for folder in (tmp_path / "runs/audits").iterdir():
    if "aes" not in str(json.loads((folder / "audit.json").read_text())["setting"]):
      shutil.rmtree(folder)
  text = write_page()[1]["results.md"].decode()
  first, _ = cells(text, ["seconds"])
  assert first["disguised %"] == "not run yet" and first["seeds"] == "0 of 2"
  assert first["cost"] == first["seconds"] == first["hardware"] == ""
  first, _ = cells(text, ["verdict 1"])
  assert first["other key %"] == "not run yet" and first["key matters"] == ""
  assert first["best Level 1"] == "not audited yet" and first["verdict 1"] == ""
  (second,) = cells(text.partition("## Others")[2], ["gap closed"])
  assert second["seeds"] == "1 of 2" and second["disguised %"] == "81.00" and second["cost"] == "10.00"  # fmt: skip
  assert second["gap closed"] == ""


def test_nothing_run_makes_a_page(table, call, tmp_path):
  code, out, _ = call("--page", str(tmp_path / "docs/results.md"))
  assert code == 0 and sum("not run yet" in line for line in out) == 2
  assert (tmp_path / "docs/results.svg").read_text().startswith("<?xml")


def test_runs_of_another_config_are_not_counted(table, call, tmp_path):
  call("first", "--config.model.width=3")
  row, _, _ = facts_of(tmp_path)["rows"]
  assert [run["disguised"] for run in row["runs"]] == [None, None] and row["audit"]
  call("third", "--config.data.data_dir=/elsewhere", "--no-audit")
  assert facts_of(tmp_path)["rows"][2]["runs"][0]["disguised"]["test_accuracy"] == pytest.approx(0.71)  # fmt: skip


def test_results_of_another_machine_stay_while_the_config_is_the_same(write_page, tmp_path, monkeypatch):  # fmt: skip
  _, before = write_page()
  shutil.rmtree(tmp_path / "runs")
  _, after = write_page()
  assert before == after
  changed = rows.Row("first", "digits_rmt", (*TABLE[0].overrides, "train.epochs=3"), seeds=(0, 1))
  quieter = rows.Row("third", "digits_rmt", (*TABLE[2].overrides, "disguise.salt_pepper=0.01"))
  monkeypatch.setattr(rows, "ROWS", (changed, TABLE[1], quieter))
  first, second, third = json.loads(write_page()[1]["results.json"])["rows"]
  assert all(run["disguised"] is None and run["plain"] is None for run in first["runs"])
  assert first["audit"] == second["audit"] is not None and third["audit"] is None
  assert [run["disguised"]["test_accuracy"] for run in second["runs"]] == pytest.approx([0.8, 0.81])  # fmt: skip


def test_a_run_that_is_here_wins_over_an_earlier_figure(write_page, tmp_path):
  write_page()
  path = tmp_path / "runs/first/seed0/result.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), "test_accuracy": 0.5}))
  first, *_ = json.loads(write_page()[1]["results.json"])["rows"]
  assert first["runs"][0]["disguised"]["test_accuracy"] == 0.5


@pytest.mark.parametrize("text", ["{}", "[1]", "half", '{"format": "djax-results", "version": 2}'])
def test_a_file_that_is_something_else_is_not_overwritten(table, call, tmp_path, text):
  (tmp_path / "results.json").write_text(text)
  code, out, err = call("--page", str(tmp_path / "results.md"))
  assert (
    code == 4
    and out == []
    and len(err) == 1
    and "must be a djax-results file of version 1" in err[0]
  )
  assert (tmp_path / "results.json").read_text() == text


def shown(change, index=0):
  """Returns made-up results after a change to the runs of their rows, and the summary of one row."""
  run = {
    "of": "x", "test_accuracy": 0.7, "single_view_accuracy": 0.7, "test_views": 1, "plain_accuracy": 0.1,
    "other_key_accuracy": 0.1, "classes": 10, "seconds": 1.0, "hardware": "H",
  }  # fmt: skip
  runs = [
    {"seed": s, "disguised": dict(run), "plain": {**run, "test_accuracy": 0.9}} for s in (0, 1)
  ]
  common = {"group": "G", "headline": True, "audit": None, "config": "c", "overrides": ["a|b"]}
  common |= {"data": "d", "disguise": "D", "network": "n", "stem": "", "ordinary": None}
  facts = {"rows": [{"row": name, "runs": copy.deepcopy(runs), **common} for name in ("a", "b")]}
  facts["rows"][1]["ordinary"] = "a"
  change(facts["rows"])
  return facts, Summary(facts["rows"][index], facts)


@pytest.mark.parametrize("name", ["plain_accuracy", "other_key_accuracy"])
def test_a_network_that_works_without_the_key_says_so(name):
  """One seed of two is enough; the line is at chance and 10 points."""

  def leak(value):
    return lambda found: found[0]["runs"][1]["disguised"].update({name: value})

  facts, f = shown(leak(0.2))
  assert f.key_matters is False
  (row, _) = cells(page.page(facts, plot=""), ["verdict 1"])
  assert row["key matters"] == "**no**"
  assert shown(leak(0.199))[1].key_matters is True
  facts, f = shown(leak(None))
  assert f.key_matters is None and "not measured" in page.page(facts, plot="")


def test_costs_and_gaps_compare_the_same_seeds():
  def change(found):
    found[0]["runs"][0]["disguised"]["test_accuracy"] = 0.5
    found[1]["runs"][0]["disguised"]["test_accuracy"] = 0.6
    found[1]["runs"][1]["plain"] = None

  f = shown(change, index=1)[1]
  assert f.cost == pytest.approx(0.3)
  assert f.closed == pytest.approx((0.6 - 0.5) / (0.9 - 0.5))
  assert (f.disguised.mean, f.disguised.low, f.disguised.high) == pytest.approx((0.65, 0.6, 0.7))
  nothing = shown(lambda found: found[0]["runs"][0]["disguised"].update(test_accuracy=1.1), index=1)
  assert nothing[1].closed is None


def test_single_views_and_bars_are_shown():
  def change(found):
    for run in found[0]["runs"]:
      run["disguised"].update(test_views=8, single_view_accuracy=0.6)

  text = page.page(shown(change)[0], plot="")
  first, second = cells(text, ["seconds"])
  assert first["disguised %"] == "70.00; one view 60.00" and second["disguised %"] == "70.00"
  assert r"`a\|b`" in text


def test_the_readme_gets_its_table_between_the_markers(write_page, tmp_path):
  readme = tmp_path / "README.md"
  readme.write_text("before\n\n<!-- results -->\nold\n<!-- /results -->\n\nafter\n")
  out, _ = write_page()
  text = readme.read_text()
  assert text == "before\n\n<!-- results -->\n" + "\n".join(out) + "\n<!-- /results -->\n\nafter\n"
  assert "](docs/results.svg)" in text and "old" not in text
  write_page()
  assert readme.read_text() == text
  for other in ("no markers", "<!-- results --> no end"):
    assert pages.between(other, "new", begin=page.BEGIN, end=page.END) == other


def test_the_plot_changes_with_the_figures(tmp_path):
  audit = {"of": "y", "levels": {}, "attacks": []}
  for n, ssim in (("1", 0.3), ("2", 0.9)):
    audit["levels"][n] = {"verdict": "leaks", "best": n}
    audit["attacks"].append({"name": n, "level": int(n), "ssim": ssim, "psnr": 9.0, "pairs": None})

  def drawn(accuracy, ssim):
    def change(found):
      audit["attacks"][0]["ssim"] = ssim
      found[0]["audit"] = copy.deepcopy(audit)
      found[0]["runs"][0]["disguised"]["test_accuracy"] = accuracy

    plot.draw(shown(change)[0], tmp_path / "plot.svg")
    return (tmp_path / "plot.svg").read_bytes()

  first = drawn(0.7, 0.3)
  assert first == drawn(0.7, 0.3)
  assert len({first, drawn(0.8, 0.3), drawn(0.7, 0.5)}) == 3


def test_the_committed_page_and_readme_are_what_the_facts_give():
  path = ROOT / "docs/results.json"
  if not path.exists():
    pytest.skip("no results yet: python -m train.table --page docs/results.md")
  facts = collect.earlier(path)
  assert [row["row"] for row in facts["rows"]] == [row.name for row in rows.ROWS]
  assert (ROOT / "docs/results.md").read_text() == page.page(facts, plot="results.svg")
  readme = (ROOT / "README.md").read_text()
  short = page.headline(facts, plot="docs/results.svg")
  assert f"{page.BEGIN}\n{short}\n{page.END}" in readme


def test_fakes_leave_what_the_table_reads(tmp_path):
  """The fakes of these tests have the fields that ``collect`` keeps: guards against tests of nothing."""
  config = rows.config_of(TABLE[0], 0)
  assert runner.run_of(tmp_path, config) is None
  fake_run(config, tmp_path)
  assert runner.run_of(tmp_path, config)["test_accuracy"] == 0.7
  assert runner.run_of(tmp_path, rows.config_of(TABLE[0], 1)) is None
  assert fake_audit(config)["attacks"]
