from ._classifier import GPClassifier as GPClassifier
from ._regressor import GPRegressor as GPRegressor
