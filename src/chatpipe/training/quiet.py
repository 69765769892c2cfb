"""Keeping libraries from printing: what a person sees comes from chatpipe's own console."""

import datasets
from transformers.utils import logging


def quiet_libraries() -> None:
    """Turns off the progress bars of transformers and datasets, and what they say below the level of an error."""
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    datasets.disable_progress_bars()
