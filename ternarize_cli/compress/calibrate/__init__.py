"""`convert --calibrate`: the best ternary model that can be had without training, in minutes.

data        texts or images → batches
lockstep    the original's and the ternary model's forward passes, side by side, stopped at every linear
residuals   which linears write into the residual stream
moments     second moments of what goes in and what should come out
solve       codes and scales that fit them
run         all of it for an encoder
"""

from ternarize_cli.compress.calibrate.data import DEFAULT_IMAGES, DEFAULT_TEXTS, make_batches
from ternarize_cli.compress.calibrate.folder import calibrate_folder
from ternarize_cli.compress.calibrate.run import Calibrated, calibrate
from ternarize_cli.compress.options import DEFAULT_TOKENS, Calibration, CalibrationRecipe

__all__ = [
    "DEFAULT_IMAGES",
    "DEFAULT_TEXTS",
    "DEFAULT_TOKENS",
    "Calibrated",
    "Calibration",
    "CalibrationRecipe",
    "calibrate",
    "calibrate_folder",
    "make_batches",
]
