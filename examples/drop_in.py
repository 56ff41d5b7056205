"""A typical existing training script with one import replaced.

    python examples/drop_in.py

It trains on random numbers for ten steps, saves a checkpoint, loads it into a second model and prints both losses,
which agree.
"""

import tempfile
from argparse import Namespace
from pathlib import Path

import torch

from pgat_fast.compat import Model  # the only changed line


def main(steps: int = 10) -> tuple[float, float]:
    """Train `steps` steps, save, load into a second model and return the losses of the first and second model."""
    torch.manual_seed(2024)
    args = Namespace(
        seq_len=16, label_len=8, pred_len=4, enc_in=118, dec_in=118, c_out=4, d_model=104, n_heads=8, e_layers=1,
        d_layers=1, dropout=0.1, d_ff=512, embed="timeF", freq="d", combiner="batched", batch_size=2,
    )  # fmt: skip
    model = Model(args)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    criterion = torch.nn.MSELoss()
    x_enc, x_mark_enc = torch.randn(2, 16, 118), torch.rand(2, 16, 4)
    x_dec, x_mark_dec = torch.randn(2, 12, 118), torch.rand(2, 12, 4)
    truth = torch.randn(2, 4, 4)

    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        outputs, _ = model(x_enc, x_mark_enc, x_dec, x_mark_dec)
        loss = criterion(outputs, truth)
        loss.backward()
        optimizer.step()
        print(f"step {step + 1}: loss {loss.item():.4f}")

    def evaluate(trained: torch.nn.Module) -> float:
        trained.eval()
        with torch.no_grad():
            outputs, _ = trained(x_enc, x_mark_enc, x_dec, x_mark_dec)
            return criterion(outputs, truth).item()

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pth"
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
        saved = torch.load(path, weights_only=True)
    second = Model(args)
    second.load_state_dict(saved["model"])
    torch.optim.Adam(second.parameters(), lr=1e-4).load_state_dict(saved["optimizer"])
    before, after = evaluate(model), evaluate(second)
    print(f"loss before saving {before:.6f}, after loading {after:.6f}")
    return before, after


if __name__ == "__main__":
    main()
