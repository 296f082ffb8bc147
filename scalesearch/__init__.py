"""The compound scaling search of EfficientNet (arXiv:1905.11946), for any baseline, data and budget."""

__version__ = "0.1.0"
