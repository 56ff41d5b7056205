"""Export of a run as a program, and `torch.export` of models."""

import io
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from pgat_fast import build_model
from pgat_fast.cli import main
from pgat_fast.compat import Model
from pgat_fast.data.build import build_file
from pgat_fast.data.columns import COLUMNS
from pgat_fast.data.prices import PRICES
from pgat_fast.errors import CheckpointError, ConfigError
from pgat_fast.forecasting import export
from pgat_fast.forecasting.export import example_inputs, export_run
from pgat_fast.forecasting.load_run import Run, load_run
from pgat_fast.forecasting.predict import forecast_ahead, predict
from pgat_fast.forecasting.standalone import StandaloneForecaster
from pgat_fast.model.forecast import Mixture
from pgat_fast.model.precision import products_in
from pgat_kernels.matmul_precision import fast_exact_float32
from tests.pgat_fast.forecasting.small_run import CPU, make_run
from tests.pgat_fast.model.variants import FEW, VARIANTS, config_of, inputs_of, tensors_of

ROOT = Path(__file__).parents[3]
TORCH_ALONE = (
    "import sys, runpy; sys.modules['pgat_fast'] = sys.modules['pgat_kernels'] = None; sys.argv = sys.argv[1:]"
)


@pytest.fixture(scope="module")
def level_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_file(tmp_path_factory.mktemp("levels") / "levels.csv", targets="levels", rows=40).path


def run_of(folder: Path, settings: list[str]) -> Run:
    make_run(folder, settings)
    return load_run(folder, device="cpu")


@pytest.fixture
def run(tiny: list[str], tmp_path: Path) -> Run:
    return run_of(tmp_path / "run", tiny)


# --- the module that is exported ---


@pytest.mark.parametrize(
    "settings",
    [
        ["combiner=hierarchical", "decoder_future=known"],
        ["target_kind=levels", "label_len=0"],
        ["use_mixture_decoder=true", "mdn_components=2", "freq=h", "calendar_marks=integer"],
        ['data.targets=["log_Close"]', "c_out=1", "decoder_future=known", "freq=t"],
    ],
)
def test_module_computes_what_predict_does(
    tiny: list[str], data_file: Path, level_file: Path, tmp_path: Path, settings: list[str]
) -> None:
    source = level_file if "target_kind=levels" in settings else data_file
    loaded = run_of(tmp_path / "run", [*tiny, f"data.path={source}", *settings, "run.backend=reference"])
    ahead = forecast_ahead(loaded, source)
    module = StandaloneForecaster(loaded)
    with torch.no_grad(), products_in("highest", CPU):
        outputs = module(**example_inputs(loaded, module, ahead))
    values = outputs["prices"] if loaded.config.model.c_out == 4 else outputs["targets"]
    # numpy and torch may round exponentials differently; everything else has the same bits.
    np.testing.assert_allclose(values.numpy(), ahead.values, rtol=1e-15)
    if isinstance(ahead.output, Mixture):
        assert all(torch.equal(outputs[name], x) for name, x in ahead.output._asdict().items())
    else:
        assert torch.equal(outputs["scaled"], ahead.output)


def test_module_serves_several_windows(run: Run, data_file: Path) -> None:
    module = StandaloneForecaster(run).double()
    inputs = example_inputs(run, module, forecast_ahead(run, data_file))
    other = inputs | {"last_close": 2 * inputs["last_close"], "history": 1.1 * inputs["history"]}
    module.model_inputs = lambda *args: tuple(x.double() for x in StandaloneForecaster.model_inputs(module, *args))
    with torch.no_grad():
        both = module(**{name: torch.cat((x, other[name])) for name, x in inputs.items()})
        for row, one in enumerate((inputs, other)):
            torch.testing.assert_close(both["prices"][row], module(**one)["prices"][0], rtol=1e-9, atol=0)


# --- the command ---


@pytest.mark.parametrize(
    ("out", "arguments", "message"),
    [
        ("model.pth", [], "model.pth: unknown format: name the file *.pt2 (torch.export) or *.onnx"),
        ("model.pt2", ["--format", "onnx"], "model.pt2: unknown format: name the file *.onnx"),
        ("", [], "not a file name"),
        ("model.pt2", ["--from", "missing.csv"], "missing.csv"),
        ("model.pt2", ["--checkpoint", "step-00000009"], "step-00000009"),
    ],
)
def test_invalid_arguments_are_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], out: str, arguments: list[str], message: str
) -> None:
    assert main(["export", str(run.folder), "--out", str(tmp_path / out), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("model*"))


def test_missing_onnx_packages_are_named(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r'needs onnx and onnxscript: pip install "pgat-fast\[onnx\]"'):
        export_run(run, tmp_path / "model.onnx")


@pytest.mark.parametrize("error", [1e-3, float("nan")])
def test_program_that_deviates_is_not_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: float
) -> None:
    module = StandaloneForecaster(run)

    def wrong(inputs: dict[str, Any]) -> dict[str, Any]:
        return {name: x * (1 + error) if name == "scaled" else x for name, x in module(**inputs).items()}

    monkeypatch.setattr(export, "export_forecaster", lambda *args: None)
    monkeypatch.setattr(export, "_serialize_program", lambda *args: b"program")
    monkeypatch.setattr(export, "_load_program", lambda content: wrong)
    out = tmp_path / "model.pt2"
    out.write_bytes(b"earlier")
    with pytest.raises(CheckpointError, match="scaled of the exported program deviate from `predict`"):
        export_run(run, out)
    assert out.read_bytes() == b"earlier"
    monkeypatch.setattr(export, "_load_program", lambda content: lambda inputs: module(**inputs))
    assert export_run(run, out)["check"]["deviation"]["prices"] < 1e-6
    assert out.read_bytes() == b"program"


def test_script_on_the_page_is_the_tested_one() -> None:
    script = (ROOT / "docs" / "serve.py").read_text().partition("\n\n")[2]
    assert f"```py\n{script}```" in (ROOT / "docs" / "export.md").read_text()


@pytest.mark.slow  # torch takes a quarter of a minute to export a model
def test_exported_run_is_served_by_torch_alone(
    run: Run, data_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "model.pt2"
    assert main(["export", str(run.folder), "--out", str(out), "--json"]) == 0
    extra = {"metadata.json": ""}
    program = torch.export.load(io.BytesIO(out.read_bytes()), extra_files=extra)
    about = json.loads(extra["metadata.json"])
    assert about == json.loads(capsys.readouterr().out)
    assert about["columns"] == list(COLUMNS)
    assert about["inputs"]["history"] == {
        "shape": ["batch", 6, 118],
        "axes": ["batch", "seq_len", "columns"],
        "dtype": "float64",
    }
    assert all(deviation <= about["check"]["bound"][name] for name, deviation in about["check"]["deviation"].items())

    module, exported = StandaloneForecaster(run), program.module()
    inputs = example_inputs(run, module, forecast_ahead(run, data_file))
    for batch in (1, 2, 17):
        several = {name: torch.cat([x * (1 + 1e-3 * n) for n in range(batch)]) for name, x in inputs.items()}
        with torch.no_grad():
            torch.testing.assert_close(exported(**several), module(**several), rtol=1e-5, atol=1e-6)

    table = predict(run, data_file)
    command = [sys.executable, "-c", f"{TORCH_ALONE}; runpy.run_path(sys.argv[0])", str(ROOT / "docs" / "serve.py")]
    close = str(table.attrs["last_close"])
    served = subprocess.run([*command, str(out), str(data_file), close], capture_output=True, text=True, check=True)
    rows = [line.split() for line in served.stdout.splitlines()]
    assert [row[0] for row in rows] == [str(day.date()) for day in table["date"]]
    np.testing.assert_allclose(np.array([row[1:] for row in rows], float), table[list(PRICES)], rtol=1e-6)


@pytest.mark.slow  # the conversion takes a minute
@pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxscript", "onnxruntime")),
    reason="needs onnx, onnxscript and onnxruntime: pip install 'pgat-fast[onnx]'",
)
def test_run_is_exported_to_onnx(run: Run, tmp_path: Path) -> None:
    metadata = export_run(run, tmp_path / "model.onnx")
    assert metadata["check"]["deviation"]["prices"] < 1e-4
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    assert [x.name for x in session.get_inputs()] == list(metadata["inputs"])
    assert [x.name for x in session.get_outputs()] == list(metadata["outputs"])
    assert json.loads(session.get_modelmeta().custom_metadata_map["metadata.json"]) == metadata


# --- torch.export of models ---


def test_no_submodule_is_called_like_an_attribute_of_a_graph_module() -> None:
    reserved = {*dir(torch.fx.GraphModule), *vars(torch.fx.GraphModule(nn.Module(), torch.fx.Graph()))}
    for variant in FEW:
        config = config_of(variant)
        for model in (build_model(config), Model(VARIANTS[variant])):
            assert not {name for name, _ in model.named_children()} & reserved


@pytest.mark.slow  # torch takes a quarter of a minute to export a model
@pytest.mark.parametrize(
    ("variant", "kind", "strict"),
    [
        ("batched everything", "torch", False),
        ("hierarchical attention, bias", "torch", True),
        ("hierarchical everything, joint", "compat", False),
        ("no bodies, everything", "compat", True),
        ("batched original, 3 blocks", "reference", False),
        ("no bodies, attention, bias", "reference", True),
    ],
)
def test_models_export_with_any_number_of_windows(variant: str, kind: str, strict: bool) -> None:
    torch.manual_seed(0)
    model: nn.Module = Model(VARIANTS[variant]) if kind == "compat" else build_model(config_of(variant), backend=kind)
    config = model.settings if isinstance(model, Model) else config_of(variant)
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        model.eval(), inputs_of(config), dynamic_shapes=({0: batch},) * 4, strict=strict
    ).module()
    for windows in (1, 2, 3, 17):
        inputs = inputs_of(config, windows, seed=windows)
        # The model asks for this setting of products itself; a program cannot.
        with torch.no_grad(), fast_exact_float32():
            pairs = zip(tensors_of(program(*inputs)), tensors_of(model(*inputs)), strict=True)
        for actual, expected in pairs:
            if kind == "reference":  # torch's modules take another path in evaluation
                torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
            else:
                assert torch.equal(actual, expected)
