from pathlib import Path
from typing import Any

import numpy as np
import pytest

from p2pfl.errors import ConfigError
from p2pfl.learn.data import load, part
from p2pfl.learn.options import DataOptions
from p2pfl.learn.partition import by_file

COLUMNS = ("age", "chol", "num")


def _write(folder: Any, name: Any, rows: Any) -> Any:
    (folder / name).write_text("\n".join(rows) + "\n")


@pytest.fixture
def hospitals(tmp_path: Path) -> Any:
    """Two hospitals of 12 and 8 rows: age, cholesterol (0 or ? when unknown), disease 0..4."""
    _write(tmp_path, "a.data", [f"{40 + i},{'?' if i == 3 else 200 + i},{i % 3}" for i in range(12)])
    _write(tmp_path, "b.data", [f"{60 + i}.0,{0 if i < 2 else 250},{i % 2}" for i in range(8)])
    return tmp_path


OPTIONS = DataOptions(columns=COLUMNS, target="num > 0", zero_is_missing=("chol",))


def test_files_without_a_header_become_sites_with_missing_values(hospitals: Path) -> None:
    dataset = load(f"csv:{hospitals}/*.data", OPTIONS)
    assert dataset.files == ("a", "b")
    assert dataset.features == ("age", "chol")
    assert dataset.n_classes == 2
    assert len(dataset.x_train) + len(dataset.x_test) == 20
    x = np.concatenate([dataset.x_train, dataset.x_test])
    assert np.isnan(x).sum(axis=0).tolist() == [0, 3]
    assert dataset.file_train is not None
    assert len(by_file(dataset.file_train, 2)[0]) == 9


def test_a_site_alone_draws_the_split_it_has_in_the_simulation(hospitals: Path) -> None:
    dataset = load(f"csv:{hospitals}/*.data", OPTIONS, seed=5)
    assert dataset.file_train is not None
    assert dataset.file_test is not None
    in_simulation = part(dataset, *(np.flatnonzero(f == 1) for f in (dataset.file_train, dataset.file_test)))
    (hospitals / "elsewhere.csv").write_bytes((hospitals / "b.data").read_bytes())
    alone = load(str(hospitals / "elsewhere.csv"), OPTIONS, seed=5)
    np.testing.assert_array_equal(alone.x_train, in_simulation.x_train)
    np.testing.assert_array_equal(alone.y_test, in_simulation.y_test)


def test_the_split_is_stratified_in_each_file_and_changes_with_the_seed(hospitals: Path) -> None:
    dataset = load(f"csv:{hospitals}/*.data", OPTIONS)
    assert np.bincount(dataset.y_test[dataset.file_test == 0]).tolist() == [1, 2]
    assert np.bincount(dataset.y_test[dataset.file_test == 1]).tolist() == [1, 1]
    others = [load(f"csv:{hospitals}/*.data", OPTIONS, seed=seed) for seed in (0, 1)]
    np.testing.assert_array_equal(others[0].x_test, dataset.x_test)
    assert not np.array_equal(others[1].x_test, dataset.x_test)


def test_a_header_names_the_columns_and_features_choose_among_them(tmp_path: Path) -> None:
    _write(tmp_path, "h.csv", ["a;b;who"] + [f"{i};{i * i};{'yes' if i % 2 else 'no'}" for i in range(12)])
    dataset = load(f"csv:{tmp_path}/h.csv", DataOptions(label="who", features=("b",)))
    assert dataset.features == ("b",)
    assert dataset.classes == ("no", "yes")


def test_text_labels_beside_numbers_are_no_header(tmp_path: Path) -> None:
    _write(tmp_path, "iris.data", [f"5.{i},{'setosa' if i % 2 else 'versicolor'}" for i in range(12)])
    dataset = load(f"csv:{tmp_path}/iris.data", DataOptions(label="2"))
    assert len(dataset.x_train) + len(dataset.x_test) == 12
    assert dataset.features == ("1",)


def test_whole_numbers_are_one_class_with_or_without_decimals(tmp_path: Path) -> None:
    _write(tmp_path, "x.csv", ["a,y"] + [f"{i},{['10', '9', '9.0', '10.0'][i % 4]}" for i in range(16)])
    assert load(f"csv:{tmp_path}/x.csv", DataOptions(label="y")).classes == ("9", "10")


def test_named_classes_keep_their_place_where_a_site_lacks_one(tmp_path: Path) -> None:
    _write(tmp_path, "x.csv", ["a,y"] + [f"{i},high" for i in range(8)])
    options = DataOptions(label="y", classes=("low", "mid", "high"))
    dataset = load(f"csv:{tmp_path}/x.csv", options)
    assert dataset.n_classes == 3
    assert set(dataset.y_train) == {2}
    with pytest.raises(ConfigError, match=r"name every class of the agreement in data.classes"):
        load(f"csv:{tmp_path}/x.csv", DataOptions(label="y"))


GOOD = [f"{i},{i},{i % 2}" for i in range(8)]


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (GOOD, {}, "needs data.label"),
        (GOOD, {"label": "nun"}, "no column 'nun', named by data.label; there are age, chol, num"),
        (GOOD, {"label": "age", "target": "num > 0"}, "name one column"),
        (GOOD, {"label": "num", "features": ("num",)}, "has the label 'num'"),
        (
            GOOD,
            {"label": "num", "zero_is_missing": ("hdl",)},
            "no column 'hdl', named by data.zero_is_missing",
        ),
        (GOOD, {"label": "num", "columns": ("a", "num")}, "line 1 has 3 cells, expected 2: a, num"),
        ([*GOOD, "1,2"], {"label": "num"}, "line 9 has 2 cells"),
        (
            [*GOOD, "1,high,0"],
            {"label": "num"},
            "x.data line 9: chol is 'high', not a number; list it in data.missing",
        ),
        ([*GOOD, "1,inf,0"], {"label": "num"}, "line 9: chol is 'inf'"),
        ([*GOOD, "1,1,?"], {"label": "num"}, "line 9 has no num"),
        ([*GOOD, "1,1,ill"], {"target": "num > 0"}, "line 9: num is 'ill', and target needs a number"),
        ([*GOOD, "1,1,7"], {"label": "num", "classes": ("0", "1")}, r"line 9: label '7' is not in classes"),
        ([""], {"label": "num"}, "is empty"),
        (["age,chol,num"], {"label": "num"}, "a header and no rows"),
        (["1,1,0", "2,2,1"], {"label": "num"}, "leave 2 to train on and 0 to test"),
    ],
)
def test_a_wrong_table_is_refused_with_file_line_column_and_cure(
    tmp_path: Path, rows: Any, options: Any, message: str
) -> None:
    _write(tmp_path, "x.data", rows)
    with pytest.raises(ConfigError, match=message):
        load(f"csv:{tmp_path}/x.data", DataOptions(**({"columns": COLUMNS} | options)))


def test_files_with_other_columns_are_refused(hospitals: Path) -> None:
    _write(hospitals, "c.data", ["age,num", "1,0"])
    with pytest.raises(ConfigError, match=r"c.data has 2 columns, data.columns names 3"):
        load(f"csv:{hospitals}/*.data", OPTIONS)
    (hospitals / "a.csv").write_text("x,y\n1,2\n")
    (hospitals / "b.csv").write_text("x,z\n1,2\n")
    with pytest.raises(ConfigError, match=r"b.csv has columns x, z"):
        load(f"csv:{hospitals}/*.csv", DataOptions(label="y"))


def test_a_missing_or_binary_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no file matches"):
        load(f"csv:{tmp_path}/none*.csv", DataOptions(label="y"))
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load(f"csv:{tmp_path}/b.csv", DataOptions(label="y"))


def test_a_column_may_say_whose_a_row_is_without_being_a_feature(tmp_path: Path) -> None:
    rows = [f"{i},{'north' if i % 3 else 'south'},{i % 2}" for i in range(24)]
    _write(tmp_path, "all.csv", ["x,ward,y", *rows])
    options = DataOptions(label="y", features=("x",))
    dataset = load(f"csv:{tmp_path}/all.csv", options, column="ward")
    assert (dataset.features, dataset.groups) == (("x",), ("north", "south"))
    assert dataset.group_train is not None
    assert (dataset.group_train == 1).tolist() == (dataset.x_train[:, 0] % 3 == 0).tolist()
    south = part(dataset, np.flatnonzero(dataset.group_train == 1))
    assert south.group_train is not None
    assert set(south.group_train.tolist()) == {1}
    assert load(f"csv:{tmp_path}/all.csv", options).group_train is None


def test_numbered_groups_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    _write(tmp_path, "all.csv", ["x,ward,y", *(f"{i},{(10, 9)[i % 2]},{i % 2}" for i in range(24))])
    assert load(f"csv:{tmp_path}/all.csv", DataOptions(label="y"), column="ward").groups == ("9", "10")


def test_a_column_that_is_missing_or_has_gaps_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, "all.csv", ["x,ward,y", "1,,0", "2,b,1"])
    options = DataOptions(label="y", features=("x",))
    with pytest.raises(ConfigError, match="line 2 has no ward: it is no site's"):
        load(f"csv:{tmp_path}/all.csv", options, column="ward")
    with pytest.raises(ConfigError, match=r"no column 'site', named by partition\.column"):
        load(f"csv:{tmp_path}/all.csv", options, column="site")
