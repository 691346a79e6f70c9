from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stages.data.plugins import HANDED_IN, hand_in_plugins, load_plugins, say_how_rows_are_written
from stages.errors import ArgumentsError

HEAD = "from stages.data.plugins import DatasetMeta, register_dataset\n"


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_file_is_executed_once_whatever_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = HEAD + "print('executed', __name__.startswith('martlet_plugin_'))\nregister_dataset(DatasetMeta('a/b'))\n"
    for folder in ("one", "other"):
        write(tmp_path / folder / "plugin.py", code)
        assert [dataset.ms_dataset_id for dataset in load_plugins(tmp_path / folder)] == ["a/b"]
    assert capsys.readouterr().out == "executed True\n"


def test_files_run_in_the_order_given_and_may_import_each_other(tmp_path: Path) -> None:
    write(tmp_path / "0" / "names_of_test.py", "NAMES = ['x/y']\n")
    for number in (1, 2, 10):
        text = f"from names_of_test import NAMES\nregister_dataset(DatasetMeta(f'{{NAMES[0]}}{number}'))\n"
        write(tmp_path / str(number) / "plugin.py", HEAD + text)
    path = list(sys.path)
    assert [dataset.ms_dataset_id for dataset in load_plugins(tmp_path)] == ["x/y1", "x/y2", "x/y10"]
    assert sys.path == path


def test_a_relative_path_starts_at_the_plugin(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py", HEAD + "register_dataset(DatasetMeta(dataset_path='rows.jsonl'))\n")
    assert load_plugins([file])[0].dataset_path == str(tmp_path / "rows.jsonl")


def test_an_object_with_a_method_preprocess_may_read_rows(tmp_path: Path) -> None:
    text = """
class Upper:
    def preprocess(self, row):
        return {"text": row["raw"].upper()}

register_dataset(DatasetMeta("a/upper", preprocess_func=Upper()))
"""
    (dataset,) = load_plugins([write(tmp_path / "plugin.py", HEAD + text)])
    assert dataset.preprocess_func is not None
    assert dataset.preprocess_func({"raw": "abc"}) == {"text": "ABC"}


def test_swifts_example_works(tmp_path: Path) -> None:
    text = """
from stages.data.plugins import DatasetMeta, ResponsePreprocessor, register_dataset

class Similarity(ResponsePreprocessor):
    prompt = "How alike are {text1} and {text2}?"

    def preprocess(self, row):
        return super().preprocess({"query": self.prompt.format(**row), "response": f"{row['label']:.1f}"})

register_dataset(DatasetMeta(
    ms_dataset_id="swift/stsb", hf_dataset_id="SetFit/stsb", preprocess_func=Similarity(columns={"score": "label"}),
))
"""
    (dataset,) = load_plugins([write(tmp_path / "plugin.py", text)])
    assert dataset.preprocess_func is not None
    row = {"text1": "a", "text2": "b", "score": 3}
    assert dataset.preprocess_func(row) == {"query": "How alike are a and b?", "response": "3.0"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\ny = x / 0\n", "plugin.py line 2: ZeroDivisionError: division by zero"),
        ("def f():\n    raise KeyError('k')\n\nf()\n", "plugin.py line 2: KeyError: 'k'"),
        (
            "import nowhere_to_be_found\n",
            "plugin.py line 1: ModuleNotFoundError: No module named 'nowhere_to_be_found'",
        ),
        (
            "from swift.dataset import DatasetMeta\n",
            "plugin.py line 1: ModuleNotFoundError: No module named 'swift'. What SWIFT's plugins import is in",
        ),
        (
            HEAD + "register_dataset(DatasetMeta('a/b', preprocess_func=5))\n",
            "dataset 'a/b': preprocess_func is neither a function nor has `preprocess`",
        ),
        ("x = 1\nif x\n", "plugin.py line 2: SyntaxError: expected ':'"),
        ("raise SystemExit(3)\n", "plugin.py line 1: SystemExit: 3"),
        (HEAD + "DatasetMeta(tags=[])\n", "plugin.py line 2: dataset without a name: give one of ms_dataset_id"),
        (
            HEAD + "for _ in range(2):\n    register_dataset(DatasetMeta('a/twice'))\n",
            "plugin.py line 3: dataset 'a/twice' is registered twice",
        ),
    ],
)
def test_a_plugin_that_raises_is_named_with_the_line(tmp_path: Path, text: str, message: str) -> None:
    write(tmp_path / "plugin.py", text)
    for _ in range(2):  # it is not taken for loaded
        with pytest.raises(ArgumentsError) as caught:
            load_plugins(tmp_path)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere.py", r"nowhere\.py` does not exist"),
        ("folder", "is a folder: name the Python files in it"),
        ("notes.txt", "is no Python file"),
    ],
)
def test_what_is_no_python_file_is_refused(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "folder").mkdir()
    write(tmp_path / "notes.txt", "")
    with pytest.raises(ArgumentsError, match=message):
        hand_in_plugins([str(tmp_path / name)])


def test_what_is_handed_in_names_no_path(tmp_path: Path) -> None:
    file = write(tmp_path / "plugin.py", "")
    assert hand_in_plugins([str(file)]) == ([HANDED_IN], (file,))
    assert hand_in_plugins([HANDED_IN]) == ([HANDED_IN], ())
    assert hand_in_plugins([]) == ([], ())


def test_registering_belongs_into_a_plugin() -> None:
    from stages.data.plugins import DatasetMeta, register_dataset

    with pytest.raises(ArgumentsError, match="register_dataset is for files given with `--custom_register_path`"):
        register_dataset(DatasetMeta("a/b"))


def test_only_files_that_were_handed_in_can_be_imported(tmp_path: Path) -> None:
    helper = write(tmp_path / "helper_of_test.py", "X = 'a/one'\n")
    plugin = write(
        tmp_path / "plugin.py", HEAD + "from helper_of_test import X\nregister_dataset(DatasetMeta(X))  # alone\n"
    )
    with pytest.raises(
        ArgumentsError, match=r"plugin\.py line 2: .*: name helper_of_test\.py in `--custom_register_path`"
    ):
        load_plugins([plugin])
    assert load_plugins([plugin, helper])[0].ms_dataset_id == "a/one"
    helper.write_text("X = 'a/two'\n")
    plugin.write_text(plugin.read_text().replace("alone", "again"))
    assert load_plugins([helper, plugin])[0].ms_dataset_id == "a/two"
    plugin.write_text(plugin.read_text().replace("again", "at last"))
    with pytest.raises(ArgumentsError, match="No module named 'helper_of_test'"):
        load_plugins([plugin])


def test_an_edited_plugin_takes_the_place_of_what_it_was(tmp_path: Path) -> None:
    from stages.data.loss_scale import LossScale

    plugin = tmp_path / "scales.py"
    code = (
        "from stages.data.loss_scale import by_pattern, register_loss_scale\n"
        "register_loss_scale('edited', by_pattern({{'a+': {}}}))\n"
    )
    plugin.write_text(code.format(1.0) + "1 / 0\n")
    with pytest.raises(ArgumentsError, match=r"scales\.py line 3"):
        load_plugins([plugin])
    for weight in (2.0, 3.0):
        plugin.write_text(code.format(weight))
        load_plugins([plugin])
        assert LossScale.parse("edited").weigh("xaa", "") == [(0, 1, 1.0), (1, 3, weight)]
    other = tmp_path / "other.py"
    other.write_text("x = 1\n")
    load_plugins([other])
    with pytest.raises(ArgumentsError, match="there is no loss scale 'edited'"):
        LossScale.parse("edited")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("from stages.data.loss_scale import register_loss_scale\nregister_loss_scale('of_test', len)", True),
        (
            "from stages.data.templates.meta import TemplateMeta, register_template\n"
            "register_template(TemplateMeta('of_test', prefix='', prompt='{{QUERY}}', chat_sep=None))",
            True,
        ),
        (HEAD + "register_dataset(DatasetMeta(hf_dataset_id='a/b'))", False),
        ("from stages.training.plugins import register_loss\nregister_loss('of_test')(len)", False),
        ("", False),
    ],
)
def test_only_what_says_how_rows_are_written_is_an_input_of_tokenize(tmp_path: Path, text: str, says: bool) -> None:
    from stages.arguments import TokenizeArguments
    from stages.tokenize import prepare

    file = write(tmp_path / "plugin.py", text)
    load_plugins([file])
    assert say_how_rows_are_written([file]) is says
    prepared = prepare(TokenizeArguments(custom_register_path=[str(file)], template="chatml"))
    assert dict(prepared.inputs) == ({"plugins": (file,)} if says else {})
    assert prepared.arguments.custom_register_path == ([HANDED_IN] if says else [])
    load_plugins([])


def test_a_template_that_no_plugin_registers_is_said_before_anything_runs(tmp_path: Path) -> None:
    from stages.arguments import TokenizeArguments
    from stages.tokenize import prepare

    file = write(tmp_path / "plugin.py", "from stages.training.plugins import register_loss\nregister_loss('l')(len)")
    with pytest.raises(ArgumentsError, match="nobodys"):
        prepare(TokenizeArguments(custom_register_path=[str(file)], template="nobodys"))
