"""The parts of ``language_model.py``: text, model, training, comparison and report."""
