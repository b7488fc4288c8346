"""Methods: fitted on one named split, applied to another. `fit(calibration, …) -> state`, `apply(state, predictions)`."""
