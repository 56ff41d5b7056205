"""Errors in configurations name the file, the line, the key, the value found and what is expected."""

from pathlib import Path

import pytest

from tests.pgat_fast.config.refusals import listed_errors, refusal

WRONG_VALUES = [
    ("seq_len: abc", "model.seq_len: found 'abc', expected an integer, at least 1, at most 5000"),
    ("seq_len: 5001", "model.seq_len: found 5001, expected an integer, at least 1, at most 5000"),
    ("training: {epochs: 0}", "training.epochs: found 0, expected an integer, at least 1"),
    ("epochs: 1.5", "training.epochs: found 1.5, expected an integer, at least 1"),
    ("epochs: true", "training.epochs: found true, expected an integer, at least 1"),
    ("epochs: null", "training.epochs: found null, expected an integer, at least 1"),
    ("epochs: [1]", "training.epochs: found [1], expected an integer, at least 1"),
    ("epochs: {a: 1}", "training.epochs: found a mapping, expected an integer, at least 1"),
    ("max_steps: 0", "training.max_steps: found 0, expected an integer, at least 1, or null"),
    ("seed: 99999999999999999999", "found 99999999999999999999, expected an integer, at least 0: it does not fit"),
    ("{enc_in: 100001, use_celestial_graph: false}", "model.enc_in: found 100001, expected an integer, at least 1, at"),
    ("dropout: 1.0", "model.dropout: found 1.0, expected a number, at least 0, below 1"),
    ("dropout: false", "model.dropout: found false, expected a number, at least 0, below 1"),
    ("learning_rate: 0", "training.learning_rate: found 0, expected a number, above 0"),
    ("learning_rate: .nan", "training.learning_rate: found nan, expected a number, above 0"),
    ("learning_rate: 'nan'", "training.learning_rate: found 'nan', expected a number, above 0"),
    ("min_lr: .inf", "training.min_lr: found inf, expected a number, at least 0"),
    ("use_mixture_decoder: yes", "found 'yes', expected true or false: write true (without quotes)"),
    ("adjacency_bias: off", "model.adjacency_bias: found 'off', expected true or false: write false"),
    ("adjacency_bias: 1", "model.adjacency_bias: found 1, expected true or false"),
    ("combiner: petri", "model.combiner: found 'petri', expected hierarchical or batched"),
    ("backend: cuda", "run.backend: found 'cuda', expected auto, reference, torch or triton"),
    ("path: 5", "data.path: found 5, expected text that is not empty"),
    ("path: ''", "data.path: found '', expected text that is not empty"),
    ('path: "a\\0b"', "data.path: found 'a\\x00b', expected text that is not empty: no file name holds a NUL"),
    ('path: "\\ud800"', "data.path: found '\\ud800', expected text that is not empty"),
    (
        "targets: [a, 5, b, c]",
        "found ['a', 5, 'b', 'c'], expected a list of names, all different, or null: item 2 is 5",
    ),
    ("targets: []", "data.targets: found [], expected a list of names, all different, or null"),
    ("targets: a,,b,c", "found 'a,,b,c', expected a list of names, all different, or null: name 2 is"),
    ("targets: [a, b, a, c]", "all different, or null: 'a' is named twice"),
    ("name: ../x", "run.name: found '../x', expected a name of letters, digits, `_`, `.` and `-`"),
    ("name: '..'", "run.name: found '..', expected a name of letters, digits, `_`, `.` and `-`"),
    ("precision: true", "run.precision: found true, expected auto, highest, high, bf16 or fp16"),
    ("compile: yes", "run.compile: found 'yes', expected auto, on, whole or off"),
    ("combiner_chunk: 0", "run.combiner_chunk: found 0, expected auto or off, or an integer, at least 1"),
    ("combiner_chunk: true", "run.combiner_chunk: found true, expected auto or off, or an integer, at least 1"),
    ("{training: {use_amp: true}}", "section training has no such setting; did you mean use_amp (now"),
    ("device: gpu", "run.device: found 'gpu', expected auto, cpu, cuda or cuda:N"),
]

UNKNOWN_KEYS = [
    ("d_modle: 5", "d_modle: unknown key; did you mean model.d_model?"),
    ("{model: {d_modle: 5}}", "model.d_modle: unknown key; did you mean model.d_model?"),
    ("train_epoch: 5", "train_epoch: unknown key; did you mean train_epochs (now training.epochs)?"),
    ("modle: {d_model: 5}", "modle: unknown section; did you mean model?"),
    ("Dropout: 0.1", "Dropout: unknown key; did you mean model.dropout?"),
    ("training: {d_model: 5}", "training.d_model: section training has no such setting; did you mean model.d_model?"),
    ("training: {train_epochs: 5}", "training has no such setting; did you mean train_epochs (now training.epochs)?"),
    ("xyzzy: 5", "xyzzy: unknown key"),
    ('"a\\nb": 5', "'a\\nb': unknown key"),
    ("'': 5", "'': unknown key"),
    ("5: 5", "5: unknown key"),
    ("training: 5", "training: expected a section of settings, found 5"),
]

CONFLICTS = [
    ("seq_len: 10\nlabel_len: 11", 2, "model.label_len: label_len 11 is longer than seq_len 10: lower label_len"),
    ("\n\nseq_len: 10", 3, "model.seq_len: label_len 125 is longer than seq_len 10: lower label_len"),
    ("pred_len: 4999", 1, "model.pred_len: label_len + pred_len is above 5000 steps"),
    ("enc_in: 6\nphase_edges: zero", 1, "model.enc_in: feature_map: named needs enc_in 118"),
    ("enc_in: 117\nfeature_map: positional", 1, "model.enc_in: phase_edges: computed needs enc_in 118, not 117"),
    ("compatibility: original\nenc_in: 115", 2, "model.enc_in: feature_map: positional reads columns 5 to 115"),
    ("enc_in: 4\nuse_celestial_graph: false", 2, "partitioned needs more nodes than targets, but there are 4 nodes"),
    ("c_out: 200\ngraph_processing: attention", 1, "model.c_out: c_out 200 is above enc_in 118"),
    ("seed: 1\nmin_lr: 1", 2, "training.min_lr: min_lr 1.0 is above learning_rate 0.001: lower min_lr"),
    ("seed: 1\ntargets: [a]", 2, "data.targets: data.targets names 1 columns, but model.c_out is 4"),
    ("seed: 1\ninputs: [a]", 2, "data.inputs: data.inputs names 1 columns, but model.enc_in is 118"),
]

GIVEN_TWICE = [
    ("epochs: 1\ntraining:\n  epochs: 2", 3, "epochs: given both as epochs (PATH:1) and as training.epochs"),
    (
        "epochs: 1\ntrain_epochs: 1",
        2,
        "training.epochs): given both as epochs (PATH:1) and as train_epochs: remove one",
    ),
    ("data_path: a\npath: b", 2, "data.path: given both as data_path (PATH:1) and as path: remove one"),
    (
        "training: {mixed_precision: bf16}\nrun: {precision: bf16}",
        2,
        "run.precision: given both as training.mixed_precision (PATH:1) and as run.precision: remove one",
    ),
    ("path: b\nroot_path: a", 2, "root_path (now data.path): given both as path (PATH:1) and as root_path"),
    ("epochs: 1\nseed: 1\nepochs: 2", 3, "epochs: given twice, first in line 1: remove one"),
]

REFUSED_YAML = [
    ("epochs: &a 1", 1, "epochs: anchors (&name) are not accepted"),
    ("seed: 1\nepochs: *a", 2, "epochs: aliases (*name) are not accepted"),
    ("seed: 1\n<<: {epochs: 1}", 2, "<<: merge keys (<<) are not accepted"),
    ("epochs: !!int 1", 1, "epochs: tags (!!int) are not accepted"),
    ("epochs: 1\n---\nepochs: 2", 2, "found another document: write one document, without `---`"),
    ("- epochs: 1", 1, "expected settings, one `name: value` a line, found a list"),
    ("epochs", 1, "expected settings, one `name: value` a line, found only 'epochs'"),
    ("model:\n\tfreq: d", 2, "indent with spaces, not with tabs"),
    ("seed: 1\nepochs 5\nfreq: d", 2, "write `name: value`"),
    ("seed: 1\nname: a: b", 2, "quote a value that holds `: `"),
    ("seed: 1\nname: @a", 2, "quote a value that starts with this character"),
    ("targets: [a, b", 1, "not valid YAML: "),
    ("name: 'a", 1, "not valid YAML: "),
    ("seed: 1\nname: a\x01", 2, "a control character: '\\x01': save the file as UTF-8 without it"),
    ('seed: 1\nname: "\\UFFFFFFFF"', 2, "a number out of range"),
]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [(text, 1, message) for text, message in WRONG_VALUES + UNKNOWN_KEYS] + CONFLICTS + GIVEN_TWICE + REFUSED_YAML,
)
def test_wrong_file_is_refused_with_line_and_key(tmp_path: Path, text: str, line: int, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    (error,) = listed_errors(path)
    assert error.startswith(f"{path}:{line}: ")
    assert message.replace("PATH", str(path)) in error


def test_all_errors_of_a_file_are_listed_in_order(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    lines = ["lradj: type1", "model:", "  n_heads: 0", "  seq_len: a", "epochs: x", "drop: 1", "train_epochs: 2"]
    path.write_text("\n".join([*lines, "num_input_waves: 3", "model_id: a/b", ""]), encoding="utf-8")
    errors = listed_errors(path, ("seed=-1", "seet=1"))
    assert [error.split(": ")[:2] for error in errors] == [
        [f"{path}:1", "lradj (now training.lr_schedule)"],
        [f"{path}:3", "model.n_heads"],
        [f"{path}:4", "model.seq_len"],
        [f"{path}:5", "training.epochs"],
        [f"{path}:6", "drop"],
        [f"{path}:7", "train_epochs (now training.epochs)"],
        [f"{path}:9", "model_id (now run.name)"],
        ["override 'seed=-1'", "training.seed"],
        ["override 'seet=1'", "seet"],
    ]


def test_all_conflicts_are_listed() -> None:
    errors = listed_errors({"seq_len": 10, "enc_in": 6, "c_out": 13, "min_lr": 1})
    keys = ["model.seq_len", "model.enc_in", "model.enc_in", "model.c_out", "model.c_out", "training.min_lr"]
    assert [error.split(": ")[0] for error in errors] == keys


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epochs", "epochs: expected key=value, such as training.epochs=5"),
        ("", "expected key=value, such as training.epochs=5"),
        ("=5", "'': unknown key"),
        ("trainin.epochs=5", "trainin.epochs: unknown section 'trainin'; did you mean training?"),
        ("model.epochs=5", "model.epochs: section model has no such setting; did you mean training.epochs?"),
        ("training=5", "training: expected a section of settings, found 5"),
        ("train_epochs=0", "train_epochs (now training.epochs): found 0, expected an integer, at least 1"),
        ("lradj=type2", "lradj (now training.lr_schedule): found 'type2', expected warmup_cosine, cosine, step"),
        ("training.epochs={a: 1}", "training.epochs: expected one value or a list [a, b], found a mapping"),
        ("name=a: b", "name: expected one value or a list [a, b], found a mapping: quote text"),
        ("epochs=[1", "epochs: not valid YAML"),
        ("epochs=&a 1", "epochs: anchors (&name) are not accepted"),
        ("epochs=1\n---\n2", "epochs: not valid YAML: expected a single document"),
        ("model=PatchTST", "model: found 'PatchTST', expected Celestial_Enhanced_PGAT"),
        ("seq_len=10", "model.seq_len: label_len 125 is longer than seq_len 10"),
    ],
)
def test_wrong_override_is_quoted(override: str, message: str) -> None:
    text = refusal(None, [override])
    assert text.startswith(f"override {override!r}: ")
    assert message in text


def test_wrong_setting_of_mapping_is_named_by_key() -> None:
    message = "training.epochs: found 0, expected an integer, at least 1"
    assert refusal({"training": {"epochs": 0}}) == refusal({"epochs": 0}) == message
    assert refusal({1: 2}) == "1: unknown key"


def test_missing_file_and_directory_are_named(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    assert refusal(path) == f"{path}: the file does not exist: name a YAML file with settings"
    assert refusal(tmp_path) == f"{tmp_path}: this is a directory: name a YAML file with settings"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing\n", "---\n"])
def test_empty_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, encoding="utf-8")
    assert refusal(path) == f"{path}: the file is empty: write at least one setting"


@pytest.mark.parametrize("content", [b"seed: 1\nname: \xff", b"seed: 1\nname: \xc3", b"seed: 1\n\xed\xa0\x80: 1"])
def test_file_that_is_not_utf_8_is_refused_with_line(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    assert refusal(path).startswith(f"{path}:2: not UTF-8 text")
