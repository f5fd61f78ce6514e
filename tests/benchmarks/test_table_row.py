"""A row of the table of docs/ascend.md, from files as a run writes them."""

import json
from pathlib import Path

import pytest

from benchmarks.table_row import row
from dvt.config import RunConfig, TrainSection
from dvt.config.files import save_config

COLUMNS = "epoch,step,loss_exit_0,images_per_second,seconds,learning_rate,skipped_steps,val_accuracy_exit_0"


def test_a_row_has_the_columns_of_the_page(tmp_path: Path) -> None:
    save_config(RunConfig(train=TrainSection(batch_size=64, amp_level="O1")), tmp_path / "config.yaml")
    start = {"device": "Ascend: Ascend910B2, one of 8 here, 8 ranks"}
    (tmp_path / "environment.json").write_text(json.dumps({"starts": [start]}))
    rows = ["1,5,6.9,100,350,1e-6,0,1.5", "2,10,6.8,5120,50,1e-6,0,3.25"]
    (tmp_path / "metrics.csv").write_text("\n".join([COLUMNS, *rows]) + "\n")
    # 8 cards of 64 images at 5,120 images/s are 100 ms a step; the first epoch took 300 s longer.
    assert row(tmp_path) == "| dvt_t2t_vit_12, O1 | 8 | 64 | auto | 300 | 100.0 | 5120.0 | 3.25 |"
    page = (Path(__file__).parents[2] / "docs" / "ascend.md").read_text(encoding="utf-8")
    assert any(line.count("|") == row(tmp_path).count("|") for line in page.splitlines() if "graph compile s" in line)
    (tmp_path / "metrics.csv").write_text("\n".join([COLUMNS, rows[0]]) + "\n")
    with pytest.raises(ValueError, match="holds one epoch"):
        row(tmp_path)
