"""Forecast from a file of `pgat-fast export`, with torch alone: python serve.py MODEL.pt2 DATA.csv LAST_CLOSE"""

import csv
import json
import sys
from datetime import date, timedelta

import torch

extra = {"metadata.json": ""}
program = torch.export.load(sys.argv[1], extra_files=extra)
about = json.loads(extra["metadata.json"])
with open(sys.argv[2], encoding="utf-8") as file:
    rows = list(csv.DictReader(file))[-about["seq_len"] :]
days = [date.fromisoformat(row["date"]) for row in rows]
later = [days[-1] + timedelta(n + 1) for n in range(2 * about["pred_len"] + 2)]
days += [day for day in later if day.weekday() < 5][: about["pred_len"]]
marks = torch.tensor([[[(d.month - 0.5) / 12, (d.day - 0.5) / 31, (d.weekday() + 0.5) / 7, 0.5 / 24] for d in days]])
outputs = program.module()(
    history=torch.tensor([[[float(row[name]) for name in about["columns"]] for row in rows]], dtype=torch.float64),
    history_marks=marks[:, : len(rows)],
    future_marks=marks[:, len(rows) :],
    last_close=torch.tensor([float(sys.argv[3])], dtype=torch.float64),
)
for day, prices in zip(days[len(rows) :], outputs["prices"][0].tolist(), strict=True):
    print(day, *(f"{price:.6f}" for price in prices))
