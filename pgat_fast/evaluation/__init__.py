"""How good forecasts are: metrics, and the naive baselines they are judged against."""
